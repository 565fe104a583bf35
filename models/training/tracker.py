"""The record of a run: metrics.jsonl always, curves.png at the end, W&B if asked, and a word where it goes wrong."""
import json
import resource
import sys

import torch

from models import checkpoint


class TrackerError(Exception):
    """W&B cannot be started; the message is one line."""


class MetricsLogger:
    """Rows of metrics in `folder`; of an earlier part of the run the first `lines` are kept. `settings` is config.log,
    `config` plain data for W&B."""

    def __init__(self, folder, settings, config, lines=0):
        self.path = folder / "metrics.jsonl"
        kept = self.path.read_text().splitlines()[:lines] if lines and self.path.exists() else []
        with checkpoint.atomic_write(self.path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        self.rows = [json.loads(line) for line in kept]
        self.wandb = None
        if settings.wandb != "disabled":
            import wandb
            try:
                self.wandb = wandb.init(project=settings.project, name=settings.run_name or None, dir=str(folder),
                                        mode=settings.wandb, config=config)
            except wandb.Error as error:
                raise TrackerError(f"W&B cannot be started ({str(error).splitlines()[0]}): log in with `wandb login`, "
                                   "or give log.wandb:=offline") from None

    def write(self, row):
        row = row | memory()
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.wandb:
            self.wandb.log(row)

    def video(self, name, path):
        """An episode, a GIF, for W&B."""
        if self.wandb:
            import wandb
            self.wandb.log({name: wandb.Video(str(path), format="gif")})

    def close(self):
        draw_curves(self.rows, self.path.with_name("curves.png"))
        if self.wandb:
            self.wandb.finish()


def memory():
    """Peaks in GB (1e9 bytes): of this process, and of its GPU if it uses one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peaks = {"system/memory_gb": peak} | (
        {"system/gpu_memory_gb": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})
    return {name: round(value / 1e9, 3) for name, value in peaks.items()}


def training_warnings(rows, target_kl):
    """What the last of these rows says that a person should know at once: a list of lines, mostly empty.

    The KL estimate passed ten times its target, also where that stopped the update; or half of the success that
    rollouts once had is gone (of means over five iterations; a success of under 10 % is not missed)."""
    ppo = [row for row in rows if row["stage"] == "ppo"]
    if not ppo or rows[-1]["stage"] != "ppo":
        return []
    lines, kl = [], max(ppo[-1].get(name, 0.0) for name in ("train/approx_kl", "train/kl_early_stop"))
    if kl > 10 * target_kl:
        lines.append(f"KL explodes: {kl:.3f} in this update, and rl.target_kl is {target_kl}; "
                     "lower train.lr and train.head_lr")
    success = [row["rollout/success_rate"] for row in ppo if "rollout/success_rate" in row]
    means = [sum(success[i:i + 5]) / 5 for i in range(len(success) - 4)]
    if len(means) > 1 and max(means) > 0.1 and means[-1] < 0.5 * max(means) <= means[-2]:
        lines.append(f"reward collapses: rollouts succeed in {100 * means[-1]:.0f} %, and did in "
                     f"{100 * max(means):.0f} %; lower train.lr, or go back to an earlier state")
    return lines


def draw_curves(rows, path):
    """Success, length, KL and critic over the samples seen, as one picture."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels = [("success rate", ["eval/success_rate", "rollout/success_rate"]),
              ("steps per episode", ["eval/steps", "rollout/length"]), ("return", ["rollout/return"]),
              ("behaviour cloning loss", ["train/bc_loss"]), ("KL per update", ["train/approx_kl"]),
              ("critic: explained variance", ["train/explained_variance"])]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), constrained_layout=True)
    for axis, (title, keys) in zip(axes.flat, panels, strict=True):
        for key in keys:
            points = [(row["samples"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, ms=3, label=key)
        switch = [row["samples"] for row in rows if row["stage"] == "ppo"]
        if switch:
            axis.axvline(switch[0], color="grey", lw=0.8, ls=":")
        axis.set(title=title, xlabel="samples seen (dotted: PPO begins)")
        if axis.lines and axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    with checkpoint.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    plt.close(figure)
