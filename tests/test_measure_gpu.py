"""The script for the GPU machine, run on a CPU."""
import json
import subprocess
import sys
from pathlib import Path

from scripts import measure_gpu

ROOT = Path(__file__).resolve().parent.parent


def test_the_dry_run_makes_every_step(tmp_path):
    path = tmp_path / "gpu.json"
    done = subprocess.run([sys.executable, "scripts/measure_gpu.py", "--dry-run", "--json", str(path)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(path.read_text())
    assert list(results["steps"]) == list(measure_gpu.STEPS)
    assert not any("failed" in figures or "skipped" in figures for figures in results["steps"].values())
    steps = results["steps"]
    assert steps["2B decisions"]["batched_baseline_per_s"] > 0 < steps["2B updates"]["samples_per_s"]
    assert steps["2B PPO iteration"]["samples"] == 4 and 0 <= steps["vlm_tiny"]["success"] <= 1
    assert 0 < steps["2B bfloat16 against float32"]["max_log_prob_difference"] < 1
    assert all(f"| {name} |" in done.stdout for name in steps)


def test_a_step_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def fail(dry_run, seconds):
        raise RuntimeError("out of memory\nsecond line")

    monkeypatch.setattr(measure_gpu, "STEPS", {"one": fail, "two": lambda dry_run, seconds: {"rate": 2.5}})
    path = tmp_path / "gpu.json"
    assert measure_gpu.main(["--dry-run", "--json", str(path)]) == 1
    steps = json.loads(path.read_text())["steps"]
    assert steps == {"one": {"failed": "RuntimeError: out of memory second line"}, "two": {"rate": 2.5}}
    assert "| two | rate 2.5 |" in capsys.readouterr().out
