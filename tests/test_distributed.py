"""Several processes: the same updates as one with the same samples, one clear end where one of them dies."""
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.utils import gather_object

import config as configuration
import train_vlm
from models import checkpoint
from models.training import distributed
from models.training.learner import Learner
from simulator.registry import make_env
from simulator.rollout import Rollout, collect, concat_obs

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["vlm_tiny", "device:=cpu", "env.num_envs=4", "rl.rollout_steps=8", "train.batch_size=32", "rl.update_epochs=2",
         "rl.target_kl=1000"]
PROGRAM = "import sys; sys.path[:0] = ['tests', '.']; import test_distributed as t; t.in_each_process(*sys.argv[1:])"


def launch(*arguments):
    """Two processes as `accelerate launch --num_processes 2` makes them on a machine without a GPU."""
    return subprocess.Popen([sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", *arguments],
                            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})


def learner_of(words):
    config = configuration.load(words)
    accelerator = train_vlm.make_accelerator(config)
    env = make_env(config, config.env.num_envs // accelerator.num_processes)
    return config, env, Learner(accelerator, train_vlm.build_policy(config, env), config)


def two_updates(learner, rollout, config):
    """Two epochs over the whole rollout as one batch -> (metrics, weights)."""
    learner.set_learning_rates({"backbone": 1e-3, "action": 1e-3, "value": 1e-3})
    row = train_vlm.update_ppo(learner, rollout, config, torch.Generator().manual_seed(0))
    return row, learner.policy.trainable_state_dict()


def distance(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one if one[name].numel())


def sharded(config, make=train_vlm.make_accelerator):
    """As scripts/accelerate/fsdp.yaml has it. accelerate takes FSDP for GPUs only; torch does not."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    settings = yaml.safe_load((ROOT / "scripts/accelerate/fsdp.yaml").read_text())["fsdp_config"]
    accelerator = make(config)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"], auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=[settings["fsdp_transformer_layer_cls_to_wrap"]],
        reshard_after_forward=settings["fsdp_reshard_after_forward"])
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def in_each_process(out, kind, *words):
    torch.set_num_threads(1)
    if kind == "fsdp":
        train_vlm.make_accelerator = sharded
    config, env, learner = learner_of([*WORDS, *words])
    assert kind in type(learner.model).__name__.lower() or kind == "ddp" and "DistributedData" in type(
        learner.model).__name__
    rank = learner.accelerator.process_index
    torch.manual_seed(rank)
    obs, _ = env.reset(seed=100 + 2 * rank + np.arange(2))
    rollout, _ = collect(env, learner.actor, obs, config.rl.rollout_steps)
    rollouts = gather_object([rollout])
    row, weights = two_updates(learner, rollout, config)
    state = learner.state()
    learner.restore(state)                          # what a resumed run does
    learner.policy.load_trainable_state_dict(weights)
    for name, again in learner.policy.trainable_state_dict().items():
        assert torch.equal(again, weights[name]), name
    for key, values in learner.state()["state"].items():
        for name, value in values.items():
            assert torch.equal(value, state["state"][key][name]), name
    if rank == 0:
        Path(out).write_bytes(pickle.dumps((rollouts, row, weights)))


@pytest.mark.parametrize(("kind", "words"), [("ddp", []), ("fsdp", ["model.vlm.use_lora=True"])])
def test_two_processes_make_the_updates_of_one(tmp_path, kind, words):
    """Each with a whole copy of the model, and with the model spread over both."""
    (tmp_path / "program.py").write_text(f"import os; os.chdir({str(ROOT)!r})\n{PROGRAM}")
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", tmp_path / "program.py",
         tmp_path / "out.pkl", kind, *words], env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    (one, other), row, weights = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert not torch.equal(one.actions, other.actions)              # each has its own environments
    columns = {name: torch.cat([getattr(one, name), getattr(other, name)], 1) for name in (
        "actions", "log_probs", "values", "next_values", "rewards", "terminated", "truncated")}
    obs = {key: np.concatenate([one.obs[key], other.obs[key]], 1) for key in one.obs}
    config, _, learner = learner_of([*WORDS, *words])
    before = learner.policy.trainable_state_dict()
    wanted_row, wanted = two_updates(learner, Rollout(obs, **columns), config)
    moved = distance(wanted, before)
    apart = distance(weights, wanted)
    assert moved > 1e-3 and apart < 1e-5, (moved, apart)
    assert row["train/num_updates"] == wanted_row["train/num_updates"] == 2
    for name, value in wanted_row.items():
        assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_a_batch_in_parts_is_the_batch():
    """train.grad_accum_steps saves memory and changes nothing."""
    results = []
    for parts in (1, 4):
        config, env, learner = learner_of([*WORDS, f"train.grad_accum_steps={parts}"])
        torch.manual_seed(0)
        rollout, _ = collect(env, learner.actor, env.reset(seed=0)[0], config.rl.rollout_steps)
        results.append(two_updates(learner, rollout, config))
    (row, one), (wanted, whole) = results
    assert distance(one, whole) < 1e-5
    assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_a_run_of_two_processes_is_resumed_by_one_and_by_two(tmp_path):
    words = ["vlm_tiny", "debug", "device:=cpu", f"train.output_dir:={tmp_path}", "eval.episodes=16", "seed=3"]
    process = launch("train_vlm.py", *words)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    assert checkpoint.load(tmp_path / "vlm_best.pt")[0]["processes"] == 2 and out.count("k of n") == 1
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert '"rollout/episodes": 4' in lines[-2] or '"rollout/episodes": 4' in lines[-1]       # of all four environments
    assert len(checkpoint.load(tmp_path / "vlm_state.pt")[2]["envs"]["goals"]) == 4
    assert train_vlm.main([f"train.resume={tmp_path / 'vlm_state.pt'}", "rl.iterations=3"]) == 0
    process = launch("train_vlm.py", f"train.resume:={tmp_path / 'vlm_state.pt'}", "rl.iterations=4")
    assert process.wait(300) == 0, process.stdout.read()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(lines) + 2


def test_one_dies_and_the_other_ends_with_a_clear_error(tmp_path):
    import psutil
    process = launch("train_vlm.py", "vlm_tiny", "device:=cpu", "rl.iterations=500", "parser.samples=0",
                     "bc.epochs=0", "eval.every=0", "train.save_every=1", f"train.output_dir:={tmp_path}")
    for _ in range(1200):
        if (tmp_path / "vlm_state.pt").exists():
            break
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children(recursive=True)
    last = next(one for one in workers if one.environ().get("RANK") == "1" and "train_vlm.py" in one.cmdline())
    last.send_signal(signal.SIGKILL)
    out = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "another process of this run has ended" in out and "train.resume" in out
    assert checkpoint.load(tmp_path / "vlm_state.pt")[2] is not None
    assert not any(one.is_running() for one in workers)


def test_what_cannot_be_shared_is_refused(capsys, monkeypatch, tmp_path):
    class Three:
        num_processes = 3

    monkeypatch.setattr(distributed, "Accelerator", lambda **_: Three())
    assert train_vlm.main(["vlm_tiny", "device:=cpu", f"train.output_dir:={tmp_path / 'o'}"]) == 2
    assert "env.num_envs is shared by 3 processes and is 64: give env.num_envs=66" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_joined_observations_keep_their_order():
    a, b = ({"image": np.full((n, 2), n), "goal": tuple("xyz"[:n])} for n in (1, 2))
    joined = concat_obs([a, b])
    assert joined["image"].tolist() == [[1, 1], [2, 2], [2, 2]] and list(joined["goal"]) == ["x", "x", "y"]
