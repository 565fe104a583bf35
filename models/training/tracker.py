"""The record of a run: metrics.jsonl, W&B if requested, curves.png at the end, and warnings."""
import json
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm import tqdm

from config import UserError
from models import checkpoint
from models.training.plots import draw_curves

MEAN_ITERATIONS = 5     # success rates are averaged over so many iterations before they are compared
LOW_SUCCESS = 0.1       # a drop from below this success rate is no warning

PROGRESS_METRICS = {"train/bc_loss": "loss", "train/parser_loss": "parser", "rollout/success_rate": "success",
                    "train/approx_kl": "KL", "eval/success_rate": "validation"}     # beside the progress bar
STAGE_TITLES = {"parser": "goal parser", "bc": "behaviour cloning", "ppo": "PPO"}

Row = dict[str, Any]


class TrackerError(UserError):
    """W&B cannot be started. The message is one line."""


def import_wandb() -> ModuleType:
    """Return the module wandb. Raises TrackerError if it is not installed."""
    try:
        import wandb
    except ImportError:
        raise TrackerError("log.wandb requires the package wandb: pip install 'flexibleworld[wandb]', "
                           "or give log.wandb=disabled") from None
    return wandb


class MetricsLogger:
    """Writes rows of metrics to metrics.jsonl in `folder` and to W&B.

    A resumed run keeps the first `lines` rows and the W&B run `wandb_id`. `settings` is config.log, `config` is plain
    data for W&B. `rows` holds all rows, `wandb_id` the W&B run's id or "".
    """

    def __init__(self, folder: Path, settings: Any, config: dict, lines: int = 0, wandb_id: str = ""):
        self.path = folder / "metrics.jsonl"
        kept = self.path.read_text().splitlines()[:lines] if lines and self.path.exists() else []
        with checkpoint.atomic_write(self.path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self.rows = [json.loads(line) for line in kept]
        self.run, self.wandb_id = None, wandb_id
        if settings.wandb != "disabled":
            self._start_wandb(folder, settings, config)

    def _start_wandb(self, folder: Path, settings: Any, config: dict) -> None:
        wandb = import_wandb()
        resume = {"id": self.wandb_id, "resume": "allow"} if self.wandb_id else {}
        try:
            self.run = wandb.init(project=settings.project, name=settings.run_name or None, dir=str(folder),
                                  mode=settings.wandb, config=config, **resume)
        except wandb.Error as error:
            raise TrackerError(f"W&B cannot be started ({str(error).splitlines()[0]}): log in with `wandb login`, "
                               "or give log.wandb=offline") from None
        self.wandb_id = self.run.id

    def write(self, row: Row) -> None:
        """Append a row, with the memory peaks."""
        row = row | memory()
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.run:
            self.run.log(row)

    def video(self, name: str, path: Path) -> None:
        """Log a GIF to W&B."""
        if self.run:
            self.run.log({name: import_wandb().Video(str(path), format="gif")})

    def close(self) -> None:
        """Draw curves.png and finish the W&B run."""
        draw_curves(self.rows, self.path.with_name("curves.png"))
        if self.run:
            self.run.finish()


def progress_bar(run: Any, stage: str) -> tqdm:
    """Return the progress bar of a stage of a `run_state.Run`; it is hidden in all processes but the main one."""
    total = run.num_iterations[stage]
    return tqdm(total=total, initial=run.state.iteration, unit="iteration", desc=STAGE_TITLES[stage],
                disable=not total or not run.is_main)


def log_metrics(run: Any, metrics: Row, bar: tqdm) -> None:
    """Write the metrics and warnings of an iteration of a `run_state.Run`, and advance the progress bar."""
    if run.is_main:
        counts = {name: getattr(run.state, name) for name in ("stage", "iteration", "samples", "env_steps")}
        run.logger.write(counts | {"time/seconds": round(run.state.seconds, 2)} | metrics)
        for line in training_warnings(run.logger.rows, run.config.rl.target_kl):
            tqdm.write(f"warning: {line}", file=sys.stderr)
    shown = [f"{title} {metrics[key]:.3f}" for key, title in PROGRESS_METRICS.items() if key in metrics]
    bar.set_postfix_str(" ".join(shown), refresh=False)
    bar.update()


def memory() -> dict[str, float]:
    """Return the peaks in GB (1e9 bytes) of this process and, if there is one, of its GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"system/memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peaks["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated()
    return {name: round(value / 1e9, 3) for name, value in peaks.items()}


def training_warnings(rows: list[Row], target_kl: float) -> list[str]:
    """Return the warnings of the last row, one line each: the KL explodes, or the success rate collapses.

    The KL warning compares with ten times `target_kl`, also if the KL ended the update. The success warning comes when
    the mean over five iterations falls below half of its maximum.
    """
    ppo_rows = [row for row in rows if row["stage"] == "ppo"]
    if not ppo_rows or rows[-1]["stage"] != "ppo":
        return []
    lines = []
    kl = max(ppo_rows[-1].get(name, 0.0) for name in ("train/approx_kl", "train/kl_early_stop"))
    if kl > 10 * target_kl:
        lines.append(f"KL explodes: {kl:.3f} in this update, and rl.target_kl is {target_kl}; "
                     "lower train.lr and train.head_lr")
    success = [row["rollout/success_rate"] for row in ppo_rows if "rollout/success_rate" in row]
    means = [sum(success[i:i + MEAN_ITERATIONS]) / MEAN_ITERATIONS for i in range(len(success) - MEAN_ITERATIONS + 1)]
    if len(means) > 1 and max(means) > LOW_SUCCESS and means[-1] < 0.5 * max(means) <= means[-2]:
        lines.append(f"success rate collapses: {100 * means[-1]:.0f} % of the rollouts' episodes, after "
                     f"{100 * max(means):.0f} %; lower train.lr, or resume an earlier training state")
    return lines
