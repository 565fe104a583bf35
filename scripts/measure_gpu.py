"""Measure everything that needs a GPU, in at most eight minutes, on a machine without a network.

    make gpu                                        on the GPU machine; writes gpu.json
    make gpu WHEELS=folder                          installs the wheels of a folder first
    python scripts/measure_gpu.py --dry-run         the same steps on a CPU with a tiny model

The steps: the tests that need CUDA, a minute of the preset vlm_tiny, Qwen2-VL-2B with random weights (decisions, PPO
updates, the transformers baselines beside them; a whole PPO iteration with its memory; log-probabilities in bfloat16
against float32), one PPO update of 7B if it fits. A step that fails or runs out of time is reported and the next one
begins. It prints a table in Markdown, headed by the name of the card, and writes all figures with --json.
"""
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts import cli
from scripts.cli import ROOT

BUDGET_S = 480
SMALL_MODEL = "vlm_tiny"            # of the dry run
RANDOM = ["model.vlm.init=random"]
PPO_WORDS = ["bc.epochs=0", "parser.samples=0", "rl.iterations=1", "rl.critic_warmup=0", "eval.episodes=8",
             "eval.baselines=False", "eval.every=0"]


def model_words(size: str, dry_run: bool) -> list[str]:
    """Return the words of train_vlm.py for Qwen2-VL of a `size`, "2B" or "7B", with random weights."""
    if dry_run:
        return ["vlm_fast", *RANDOM, f"model.vlm.name={SMALL_MODEL}", "env.num_envs=2", "train.batch_size=2",
                "rl.rollout_steps=2", "rl.update_epochs=1", "device=cpu"]
    return ["vlm_fast", *RANDOM, f"model.vlm.name=Qwen/Qwen2-VL-{size}-Instruct", "model.vlm.dtype=bfloat16",
            "env.num_envs=16", "train.batch_size=16"]


def run(words: list[str], seconds: float) -> str:
    """Return what a program printed. Raises RuntimeError with its last line if it fails, TimeoutError if it is slow."""
    try:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{words[0]} took over {seconds:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise RuntimeError(f"{words[0]} ended with exit code {done.returncode}: {lines[-1][:200]}")
    return done.stdout


def train(words: list[str], seconds: float) -> list[dict[str, Any]]:
    """Return the metrics of every iteration of a training run."""
    with tempfile.TemporaryDirectory() as folder:
        run(["train_vlm.py", *words, f"train.output_dir={folder}"], seconds)
        return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


# --- the steps: each takes (dry_run, seconds left) and returns figures ------------------------------------------
def cuda_tests(dry_run: bool, seconds: float) -> dict[str, Any]:
    """Run the tests with the marker `cuda`; in a dry run only collect them."""
    words = ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *(["--collect-only"] if dry_run else [])]
    return {"tests": run(words, seconds).strip().splitlines()[-1]}


def tiny_preset(dry_run: bool, seconds: float) -> dict[str, Any]:
    """Train vlm_tiny on a tenth of its samples."""
    words = ["vlm_tiny", "parser.samples=4096", "bc.samples=8192", "rl.iterations=2", "eval.episodes=64",
             "eval.baselines=False"]
    if dry_run:
        words = ["vlm_tiny", "debug", "eval.baselines=False", "device=cpu"]
    started = time.perf_counter()
    rows = train(words, min(seconds, 90))
    ppo_rows = [row for row in rows if row["stage"] == "ppo"]
    return {"seconds": time.perf_counter() - started, "success": ppo_rows[-1]["eval/success_rate"],
            "env_steps_per_s": ppo_rows[-1]["time/env_steps_per_s"]}


def speed(command: str) -> Callable[[bool, float], dict[str, Any]]:
    """Return a step that runs a command of scripts/benchmark.py with Qwen2-VL-2B."""
    def step(dry_run: bool, seconds: float) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "out.json")
            run(["scripts/benchmark.py", command, "--json", str(path), "--repeats", "1" if dry_run else "3",
                 "--preset", *model_words("2B", dry_run)], seconds)
            return json.loads(path.read_text())
    return step


def ppo_iteration(size: str) -> Callable[[bool, float], dict[str, Any]]:
    """Return a step that trains a model for one PPO iteration: rollout, advantages, updates."""
    def step(dry_run: bool, seconds: float) -> dict[str, Any]:
        words = [*model_words(size, dry_run), *PPO_WORDS]
        if not dry_run:
            words += ["rl.rollout_steps=16", "rl.update_epochs=1"]
        row = train(words, seconds)[-1]
        names = ("time/env_steps_per_s", "time/seconds", "train/approx_kl", "train/grad_norm", "system/memory_gb",
                 "system/gpu_memory_gb")
        return {name.partition("/")[2]: row[name] for name in names if name in row} | {"samples": row["samples"]}
    return step


def precision(dry_run: bool, seconds: float) -> dict[str, Any]:
    """Compare the log-probabilities of the same actions in bfloat16 and float32, with the same weights."""
    import torch

    from scripts.benchmark import build_run
    config, policy, _, env = build_run([*model_words("2B", dry_run), "model.vlm.dtype=float32"])
    obs, _ = env.reset(seed=0)
    obs = {"image": obs["image"][:16], "goal": obs["goal"][:16]}
    torch.manual_seed(0)
    with torch.no_grad():
        actions, before, _ = policy.act(obs)
        policy.backbone.bfloat16()
        after = policy.evaluate_actions(obs, actions)[0].cpu()
    difference = (after - before).abs()
    return {"max_log_prob_difference": float(difference.max()), "mean_log_prob_difference": float(difference.mean())}


STEPS: dict[str, Callable[[bool, float], dict[str, Any]]] = {
    "tests that need CUDA": cuda_tests,
    "vlm_tiny": tiny_preset,
    "2B decisions": speed("policy"),
    "2B updates": speed("ppo"),
    "2B PPO iteration": ppo_iteration("2B"),
    "2B bfloat16 against float32": precision,
    "7B PPO iteration": ppo_iteration("7B"),
}


def device_name() -> str:
    """Return the name of the GPU, or "CPU"."""
    import torch
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def format_table(results: dict[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    lines = [f"| on {results['device']} | |", "|---|---|"]
    for name, figures in results["steps"].items():
        words = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                 for key, value in figures.items()]
        lines.append(f"| {name} | {', '.join(words)} |")
    return "\n".join(lines)


def parse_args(argv: list[str] | None = None):
    """Return the arguments. Raise UserError for a wrong value."""
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU with a tiny model, to test this script")
    args = parser.parse_args(argv)
    if args.json:
        cli.require_output_path(args.json, option="--json")
    return args


@cli.report_user_errors
def main(argv: list[str] | None = None) -> int:
    """Run all steps and return the exit code: 0, or 1 if a step failed."""
    started, args = time.perf_counter(), parse_args(argv)
    cli.use_quiet_threads()
    results = {"device": device_name(), "dry_run": args.dry_run, "steps": {}}
    for i, (name, step) in enumerate(STEPS.items()):
        left = BUDGET_S - (time.perf_counter() - started)
        print(f"{i + 1} of {len(STEPS)}: {name} ({left:.0f} s left)", file=sys.stderr)
        try:
            results["steps"][name] = step(args.dry_run, left) if left > 0 else {"skipped": "no time left"}
        except Exception as error:      # the other steps still count: machine time is short
            results["steps"][name] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
        with contextlib.suppress(OSError):      # after every step, for the machine may be taken away
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    results["seconds"] = time.perf_counter() - started
    print(format_table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any("failed" in figures for figures in results["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
