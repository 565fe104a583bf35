"""Runs that stop: Ctrl-C, SIGKILL, a folder in use, a loss that is not finite, too little memory."""
import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from train_helpers import ROOT, SMALL, bad, equal, metrics, run, weights

import train_vlm
from models import checkpoint
from models.training import learner, run_state


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_a_state(tmp_path, number):
    """A real process, a real signal."""
    process = subprocess.Popen([sys.executable, "train_vlm.py", *SMALL, "rl.iterations=500", "eval.every=0",
                                f"train.output_dir:={tmp_path}"], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    log = tmp_path / "metrics.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count('"ppo"') >= 2:
            break
        time.sleep(0.1)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "train.resume" in out
    meta, _, state = checkpoint.load(tmp_path / "vlm_state.pt")
    assert meta["progress"]["stage"] == "ppo" and meta["progress"]["iteration"] >= 2 and state is not None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(capsys, tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_state.fcntl, "flock", fail)
    with train_vlm.lock_output_dir(tmp_path):
        pass
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "cannot be locked" in line


def test_a_second_ctrl_c_stops_at_once(capsys, tmp_path, monkeypatch):
    """The first one is a flag, the second one ends the run in one line that names the last save."""
    def twice(run):
        (tmp_path / "vlm_state.pt").touch()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    monkeypatch.setattr(train_vlm, "run_stages", twice)
    assert run(tmp_path) == 130
    err = capsys.readouterr().err.strip().splitlines()
    state = tmp_path / "vlm_state.pt"
    assert err[-1] == f"stopped at once; last save: {state}; go on with: python train_vlm.py train.resume:={state}"
    assert "Traceback" not in "".join(err) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_runs_in_one_folder_at_once(capsys, tmp_path):
    with train_vlm.lock_output_dir(tmp_path):
        bad(capsys, *SMALL, f"train.output_dir:={tmp_path}", says="another run is writing")
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_not_finite_stops_with_a_state(capsys, tmp_path, monkeypatch):
    honest = learner.ppo_loss

    def poisoned(*arguments, **settings):
        loss, row = honest(*arguments, **settings)
        return loss * float("nan"), row

    monkeypatch.setattr(learner, "ppo_loss", poisoned)
    bad(capsys, *SMALL, f"train.output_dir:={tmp_path}", "rl.critic_warmup=0", says="ppo iteration 0.*train.lr")
    assert checkpoint.load(tmp_path / "vlm_state.pt")[0]["progress"]["stage"] == "ppo"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_names_what_to_lower(capsys, tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(learner, "ppo_loss", full)
    bad(capsys, *SMALL, f"train.output_dir:={tmp_path}", "rl.critic_warmup=0",
        says="lower train.batch_size.*train.grad_accum_steps.*env.num_envs.*gradient_checkpointing=True")


KILLER = """
import os, random, shutil, signal, sys, threading
rng = random.Random(int(sys.argv[1]))
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if int(sys.argv[1]) % 2:            # in the middle of a save: at one of the calls that it is made of
    left = [rng.randrange(1, 25)]
    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                die()
            return function(*arguments, **options)
        return call
    os.fsync, os.replace, shutil.copyfile = map(counted, (os.fsync, os.replace, shutil.copyfile))
import train_vlm
if not int(sys.argv[1]) % 2:        # anywhere
    threading.Timer(rng.uniform(0.1, 4.0), die).start()
code = train_vlm.main(sys.argv[2:])
os._exit(code)
"""


def test_killed_ten_times_it_ends_with_the_same_weights(tmp_path):
    """SIGKILL at random moments and in the middle of saves; each time the run goes on from the state there is."""
    words = [*SMALL, "train.save_every=1", "eval.every=1", "eval.episodes=8"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, "train.save_every=1", "eval.every=1", "eval.episodes=8") == 0
    kills, seed, state = 0, 0, killed / "vlm_state.pt"
    while kills < 10:
        resume = [f"train.resume:={state}"] if state.exists() else [*words, f"train.output_dir:={killed}"]
        process = subprocess.run([sys.executable, "-c", KILLER, str(seed), *resume], cwd=ROOT, timeout=120,
                                 capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
        assert process.returncode in (0, -9), process.stderr
        kills, seed = kills + (process.returncode == -9), seed + 1
        if process.returncode == 0:         # it was quicker: begin again
            assert equal(weights(killed / "vlm_final.pt"), weights(whole / "vlm_final.pt"))
            state.unlink()
    if state.exists():
        assert train_vlm.main([f"train.resume={state}"]) == 0
    else:
        assert train_vlm.main([*words, f"train.output_dir:={killed}"]) == 0
    assert metrics(killed) == metrics(whole)
    for name in ("vlm_final.pt", "vlm_best.pt"):
        assert equal(weights(killed / name), weights(whole / name))
    assert not list(killed.glob("*.tmp*"))
