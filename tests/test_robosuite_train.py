"""The robot arm in the real trainer, evaluation and inference, with a tiny configuration."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("robosuite", reason="robosuite is not installed: pip install -e '.[robosuite]'")

import config  # noqa: E402
import inference  # noqa: E402
import train_vlm  # noqa: E402
from models import checkpoint  # noqa: E402
from models.vlm_policy import VLMPolicy  # noqa: E402
from simulator.registry import EnvError, make_env  # noqa: E402
from simulator.robosuite import env as robosuite_env  # noqa: E402
from simulator.robosuite.rendering import choose_backend  # noqa: E402
from simulator.rollout import collect  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import evaluate  # noqa: E402

try:
    choose_backend()
except EnvError as error:
    pytest.skip(str(error), allow_module_level=True)

SMALL = ["vlm_tiny", "robosuite_lift", "model.heads.hidden=[32]", "env.num_envs=2", "env.max_steps=6",
         "robosuite.resolution=64", "parser.samples=32", "bc.episodes=8", "bc.samples=48",
         "rl.rollout_steps=8", "rl.iterations=3", "train.batch_size=8", "rl.critic_warmup=1", "rl.update_epochs=2",
         "rl.target_kl=10.0", "eval.episodes=4", "eval.every=0", "train.save_every=1"]


def weights(folder):
    """Return the weights of a finished run."""
    return checkpoint.load(folder / "vlm_final.pt")[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train_vlm.main([*SMALL, f"train.output_dir:={folder}"]) == 0
    return folder


def test_a_run_writes_metrics_stages_and_checkpoints(run):
    """Episodes of 6 steps continue across rollouts of 8 steps: 24 steps complete 4 episodes per env."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ppo = [row for row in rows if row.get("stage") == "ppo"]
    assert len(ppo) == 3 and sum(row["rollout/episodes"] for row in ppo) >= 8
    rollouts = [row for row in ppo if row["rollout/episodes"]]
    assert all(row["rollout/length"] <= 6 and 0 <= row["rollout/success_rate"] <= 1 for row in rollouts)
    assert all({"rollout/stage_reach", "rollout/return"} <= set(row) for row in rollouts)
    assert any("rollout/stage_grasp" in row for row in rollouts)
    assert not any("rollout/stage_hover" in row for row in rollouts)        # Lift has no such stage
    assert (run / "vlm_best.pt").is_file() and (run / "vlm_best.pt").stat().st_size < 4_000_000
    figures = json.loads((run / "eval.json").read_text())
    mine = figures["policy"]["greedy"]
    stages = {name.removeprefix("stage_") for name in mine["stages"]}
    assert figures["episodes"] == 4 and stages == {"reach", "grasp", "lift"}
    assert set(mine["per_goal"]) == {"lift_cube", "push_cube"}
    assert len(list((run / "demos").glob("*.hdf5"))) == train_vlm.NUM_DAGGER_ROUNDS
    with Image.open(run / "episodes.gif") as gif:
        assert gif.n_frames >= 8 and gif.size[0] >= 512


def test_a_resumed_run_is_the_same_run(run, tmp_path, monkeypatch):
    """It is interrupted every few iterations and resumed from its files."""
    class StopSoon(train_vlm.Interrupt):
        asked = 0

        def __bool__(self):
            self.asked += 1
            return self.asked > 2

    monkeypatch.setattr(train_vlm, "Interrupt", StopSoon)
    argv, codes = [*SMALL, f"train.output_dir:={tmp_path}"], []
    while not codes or codes[-1] == 130:
        codes.append(train_vlm.main(argv))
        argv = [f"train.resume:={tmp_path / 'vlm_state.pt'}"]
        assert len(codes) < 20
    assert codes[-1] == 0 and len(codes) > 3
    once, again = weights(run), weights(tmp_path)
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())


def test_the_ratio_is_one_on_a_rollout_of_the_arm(run):
    """Dropout while collecting, or values [B,1] against [B], would break it."""
    settings = config.load([*SMALL, f"train.output_dir:={run}"])
    policy, env = VLMPolicy.from_checkpoint(run / "vlm_best.pt"), make_env(settings)
    try:
        obs, _ = env.reset(seed=3)
        rollout, _ = collect(env, policy.train(), obs, 5)
        assert rollout.actions.shape == rollout.log_probs.shape == (5, 2)
        with torch.no_grad():
            again, _, values = policy.evaluate_actions(rollout.flat_obs(), rollout.actions.flatten())
        assert torch.allclose((again - rollout.log_probs.flatten()).exp(), torch.ones(10), atol=1e-5)
        assert torch.allclose(values, rollout.values.flatten(), atol=1e-5)
    finally:
        env.close()


def test_evaluation_and_its_splits(run, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert evaluate.main(["--model", str(run / "vlm_best.pt"), "--episodes", "2", "--json", str(out)]) == 0
    assert "reach" in capsys.readouterr().out
    assert set(json.loads(out.read_text())["baselines"]) == {"no-op", "random", "expert"}
    args = ["--model", str(run / "vlm_best.pt"), "--split", "held_out_ko", "instruction_swap", "--episodes", "2"]
    assert evaluate.main([*args, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["held_out_ko"]["greedy"]["n"] == 2
    assert set(figures["instruction_swap"]["expert"]) == {"instructed", "original", "original_if_instructed", "gap"}
    assert evaluate.main(["--model", str(run / "vlm_best.pt"), "--split", "long_horizon"]) == 2
    assert "unknown split 'long_horizon'" in capsys.readouterr().err


def test_inference_shows_an_episode_of_the_arm(run, tmp_path, capsys):
    gif = tmp_path / "lift.gif"
    words = ["--model", str(run / "vlm_best.pt"), "--output", str(gif), "--seed", "2"]
    assert inference.main(["--goal", "큐브를 들어 올려줘", *words]) == 0
    out = capsys.readouterr().out
    assert "scored as lift_cube" in out and any(f"1  {name}" in out for name in robosuite_env.ACTIONS)
    with Image.open(gif) as frames:
        assert frames.n_frames == 7 and np.asarray(frames.convert("RGB")).std() > 20
    assert inference.main(["--goal", "sing", "--force", *words]) == 0 and "not scored" in capsys.readouterr().out
    image = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(image)
    assert inference.main(["--goal", "up", "--image", str(image), *words]) == 2
    assert "leave out --image" in capsys.readouterr().err


@pytest.mark.parametrize(("literal", "message"), [
    ("env.goals=['fly']", "unknown goal 'fly': did you mean lift_cube? Choose from lift_cube, push_cube"),
    ("robosuite.cameras=['eye']", "unknown camera 'eye': did you mean"),
    ("robosuite.robot:=R2D2", "unknown robot 'R2D2': did you mean"),
    ("bc.data:=nowhere.hdf5", "no demonstrations at nowhere.hdf5"),
])
def test_wrong_settings_are_one_line_before_anything_is_written(literal, message, tmp_path, capsys):
    assert train_vlm.main([*SMALL, literal, f"train.output_dir:={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_sigterm_to_the_process_group_saves_the_training_state(tmp_path):
    """A cluster's scheduler sends it to every process of a job."""
    literals = ["parser.samples=0", "bc.epochs=0", "rl.iterations=1000", f"train.output_dir:={tmp_path}"]
    argv = [sys.executable, "train_vlm.py", *SMALL, "debug", *literals]
    with (tmp_path / "log.txt").open("w") as log:
        trainer = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 300
            while not (metrics.exists() and "ppo" in metrics.read_text()) and time.monotonic() < deadline:
                assert trainer.poll() is None, (tmp_path / "log.txt").read_text()
                time.sleep(0.1)
            os.killpg(trainer.pid, signal.SIGTERM)
            assert trainer.wait(timeout=180) == 130, (tmp_path / "log.txt").read_text()
        finally:
            if trainer.poll() is None:
                os.killpg(trainer.pid, signal.SIGKILL)
    assert checkpoint.load(tmp_path / "vlm_state.pt")[2] is not None
