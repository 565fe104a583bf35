"""The real `main`: train, resume, refuse wrong settings, and act with the result."""
import json
import re

import pytest
import torch
from train_helpers import SMALL, bad, equal, metrics, run, weights

import config
import train_vlm
from models import checkpoint
from models.training import learner


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert run(folder) == 0
    return folder


def test_leaves_what_it_promises(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"vlm_best.pt", "vlm_best.json", "vlm_final.pt", "vlm_state.pt", "metrics.jsonl", "curves.png",
            "eval.json", "episodes.gif", "config.yaml"} <= names
    assert config.load([str(trained / "config.yaml")]).to_dict() == config.load([
        *SMALL, f"train.output_dir:={trained}"]).to_dict()
    figures = json.loads((trained / "eval.json").read_text())
    for policy in (figures["policy"]["sampled"], figures["baselines"]["expert"]):
        assert {"k", "n", "rate", "low", "high", "per_goal"} <= policy.keys()
    made_by = json.loads((trained / "vlm_best.json").read_text())
    assert made_by["presets"] == ["vlm_tiny", "debug"] and made_by["seed"] == 0
    stages = [row["stage"] for row in metrics(trained)]
    assert stages == ["parser"] * 2 + ["bc"] * 2 + ["ppo"] * 3


def test_same_seed_same_run(trained, tmp_path):
    assert run(tmp_path) == 0
    assert metrics(tmp_path) == metrics(trained)
    assert equal(weights(tmp_path / "vlm_final.pt"), weights(trained / "vlm_final.pt"))


def test_other_seed_other_weights(trained, tmp_path):
    assert run(tmp_path, "seed=1", "rl.iterations=0") == 0
    assert not equal(weights(tmp_path / "vlm_final.pt"), weights(trained / "vlm_final.pt"))


@pytest.mark.parametrize("units", [1, 2, 3, 4, 6])      # within the stages and between them
def test_resumed_equals_uninterrupted(trained, tmp_path, monkeypatch, units):
    asked = []

    class StopAfter(train_vlm.Interrupt):
        def __bool__(self):
            asked.append(0)
            done = sum(1 for _ in (tmp_path / "metrics.jsonl").open())
            return done >= units

    with monkeypatch.context() as patch:
        patch.setattr(train_vlm, "Interrupt", StopAfter)
        assert run(tmp_path) == 130
    assert len(metrics(tmp_path)) == units and not (tmp_path / "vlm_final.pt").exists()
    assert train_vlm.main([f"train.resume={tmp_path / 'vlm_state.pt'}"]) == 0
    assert metrics(tmp_path) == metrics(trained)
    assert equal(weights(tmp_path / "vlm_final.pt"), weights(trained / "vlm_final.pt"))


def test_second_run_keeps_the_first(trained, tmp_path):
    assert run(tmp_path, "rl.iterations=0") == 0
    first = (tmp_path / "metrics.jsonl").read_text()
    assert run(tmp_path, "rl.iterations=0", "seed=3") == 0
    [previous] = (tmp_path / "previous_runs").iterdir()
    assert (previous / "metrics.jsonl").read_text() == first
    assert (previous / "vlm_best.pt").exists()


def test_bad_input(capsys, tmp_path, trained):
    here = f"train.output_dir:={tmp_path / 'out'}"
    bad(capsys, *SMALL, here, "env.goals=['jump()']", says="expected one of push, cluster.*found 'jump'.*per_object")
    bad(capsys, *SMALL, here, "env.goals=['move_toward(3, 8)']", says="particle 8, and the environment has 8, from 0")
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "warm, please", "language": "en", "goal": "heat()",
                                                      "split": "held_out", "source": "me", "template_family": "me"}))
    bad(capsys, *SMALL, here, f"env.instructions=['{tmp_path / 'other.jsonl'}']", says="no instruction for training")
    bad(capsys, "vlm_fast", here, "model.vlm.name:=/no/such/folder", says="cannot load.*no such folder.*vlm_tiny")
    if not torch.cuda.is_available():
        bad(capsys, "vlm_fast", here, "model.vlm.load_in_4bit=True", says="on a CUDA GPU only.*gradient_checkpointing")
    bad(capsys, *SMALL, "train.output_dir:=/proc/nowhere", says="cannot write")
    bad(capsys, f"train.resume={tmp_path}/none.pt", says="no checkpoint")
    bad(capsys, f"train.resume={trained}/vlm_best.pt", says="vlm_state.pt")
    bad(capsys, f"train.resume={trained}/vlm_state.pt", "vlm_full", says="keeps its presets")
    bad(capsys, f"train.resume={trained}/vlm_state.pt", "world.width=100", says="keeps its seed, model.*leave out")
    bad(capsys, *SMALL, here, "world.n_particles=200", "world.max_particles=200", says="no start for")
    bad(capsys, *SMALL, here, "world.n_particles=50", says="no start for")
    bad(capsys, f"train.resume={trained}", says="is a folder")
    assert not (tmp_path / "out").exists()
    for words in (["vlm_tinny"], ["vlm_tiny", "train.lrr=1"], ["vlm_tiny", "train.lr=fast"],
                  ["vlm_tiny", "model.heads.hidden=[]"], ["vlm_tiny", "physics.dt=1000"]):
        with pytest.raises(SystemExit) as stop:
            train_vlm.main(words)
        assert stop.value.code == 2
    assert not (tmp_path / "out" / "vlm_state.pt").exists()


@pytest.mark.parametrize(("word", "says"), [
    ("train.output_dir=/proc/nowhere", "cannot write to train.output_dir='/proc/nowhere'"),
    ("device=mps", "device=mps is not available on this machine: use device=cpu"),
    ("bc.data=/no/such.hdf5", "no demonstrations at /no/such.hdf5"),
])
def test_cheap_checks_come_before_env_and_model(capsys, tmp_path, monkeypatch, word, says):
    monkeypatch.setattr(train_vlm, "make_env", None)
    monkeypatch.setattr(train_vlm, "build_policy", None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    pytest.importorskip("h5py")
    words = ["vlm_tiny", "robosuite_lift", f"train.output_dir={tmp_path / 'out'}", word]
    bad(capsys, *words, says=says)
    assert not (tmp_path / "out").exists()


def test_the_length_of_a_cloning_iteration_cannot_change_on_resume(capsys, tmp_path):
    for stage, refused in (("bc", True), ("ppo", False)):
        state = tmp_path / f"{stage}.pt"
        meta = {"config": config.load(SMALL).to_dict(), "progress": {"stage": stage}}
        checkpoint.save(state, meta, {}, {})
        if refused:
            bad(capsys, f"train.resume={state}", "rl.rollout_steps=16", says="rl.rollout_steps.*leave out")
        else:
            assert train_vlm.read_config([f"train.resume={state}", "rl.rollout_steps=16"])[0].rl.rollout_steps == 16


def test_debug_says_that_its_episodes_are_short(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(train_vlm, "finish_run", lambda run: run.interrupt.restore())
    assert run(tmp_path) == 130
    assert "debug: episodes end after 8 steps, so most goals cannot be reached" in capsys.readouterr().out


def test_entropy_and_all_terms_reach_the_loss(monkeypatch, tmp_path):
    """What the config says of PPO arrives at ppo_loss."""
    seen = []
    honest = learner.ppo_loss

    def spy(*arguments, **settings):
        seen.append(settings)
        return honest(*arguments, **settings)

    monkeypatch.setattr(learner, "ppo_loss", spy)
    assert run(tmp_path, "rl.entropy_coef=0.5", "rl.clip_ratio=0.3", "rl.value_coef=0.25", "bc.epochs=0",
               "rl.iterations=1", "rl.critic_warmup=0") == 0
    assert seen[0] == {"clip_ratio": 0.3, "value_coef": 0.25, "entropy_coef": 0.5}


def test_cloning_trains_attention_to_objects_and_to_the_active_goal(monkeypatch, tmp_path):
    from models.heads.distributions import HybridDistribution
    seen, honest = [], learner.bc_loss
    for name, value in (("point_log_prob", 1.0), ("patch_log_prob", 10.0), ("subgoal_log_prob", 100.0)):
        monkeypatch.setattr(HybridDistribution, name, lambda self, given, value=value: torch.full((len(given),), value))
    monkeypatch.setattr(learner, "bc_loss", lambda log_probs, attention, *slots, **options: (
        seen.append(attention) or honest(log_probs, attention, *slots, **options)))
    assert run(tmp_path, "rl.iterations=0") == 0
    assert seen and all((attention == 111).all() for attention in seen)


def test_notebook_example(trained):
    """The example of the README, as it stands but for the path and the number of steps."""
    from PIL import Image

    from simulator.goal_env import GoalConditionedEnv
    from train_vlm import VLMPolicy

    env = GoalConditionedEnv(width=64, height=64)
    model = VLMPolicy.from_checkpoint(trained / "vlm_best.pt")
    obs = env.reset()
    goal = "입자들을 왼쪽으로 이동시켜"
    for _ in range(5):
        image = Image.fromarray(env.render())
        action, _, _ = model.sample_action([image], [goal])
        obs, reward, done, info = env.step(action[0].numpy())
        if done:
            break
    assert set(obs) == {"image", "goal"} and isinstance(reward, float) and "success" in info


def test_inference_writes_a_gif(trained, tmp_path, capsys):
    from PIL import Image

    import inference
    gif = tmp_path / "a.gif"
    assert inference.main(["--goal", "입자들을 왼쪽으로 이동시켜", "--model", str(trained / "vlm_best.pt"),
                           "--steps", "3", "--output", str(gif)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"(not )?reached in \d steps", out) and "decisions per second" in out
    assert Image.open(gif).n_frames >= 2
    assert inference.main(["--goal", "sing me a song", "--force", "--model", str(trained / "vlm_best.pt"), "--steps",
                           "2",
                           "--sample", "--output", str(gif)]) == 0
    assert "not scored" in capsys.readouterr().out


def test_the_last_states_are_kept(trained, tmp_path):
    """Of every unit a state; three are kept, the newest under its usual name."""
    assert run(tmp_path, "train.keep_checkpoints=3", "train.save_every=1", "eval.every=0") == 0
    units = [checkpoint.load(tmp_path / name)[0]["progress"]["iteration"] for name in (
        "vlm_state.pt", "vlm_state.1.pt", "vlm_state.2.pt")]
    assert units == [3, 3, 2] and not (tmp_path / "vlm_state.3.pt").exists()
    (tmp_path / "vlm_state.pt").write_bytes((tmp_path / "vlm_state.pt").read_bytes()[:-100])
    for name, code in (("vlm_state.pt", 2), ("vlm_state.2.pt", 0)):
        assert train_vlm.main([f"train.resume={tmp_path / name}"]) == code
    assert equal(weights(tmp_path / "vlm_final.pt"), weights(trained / "vlm_final.pt"))
