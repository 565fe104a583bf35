"""The curves of a run."""
from pathlib import Path
from typing import Any

from models import checkpoint

PANELS = (("success rate", ("eval/success_rate", "rollout/success_rate")),
          ("steps per episode", ("eval/steps", "rollout/length")),
          ("return", ("rollout/return",)),
          ("behaviour cloning loss", ("train/bc_loss",)),
          ("KL per update", ("train/approx_kl",)),
          ("critic: explained variance", ("train/explained_variance",)))
FEW_POINTS = 30     # below this number the points get markers


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Write one image of six panels over the samples seen: success, length, return, losses, KL and critic."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), constrained_layout=True)
    for axis, (title, keys) in zip(axes.flat, PANELS, strict=True):
        _draw_panel(axis, title, keys, rows)
    with checkpoint.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    plt.close(figure)


def _draw_panel(axis: Any, title: str, keys: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Draw some metrics over the samples seen, with a dotted line where PPO begins."""
    for key in keys:
        points = [(row["samples"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            marker = "o" if len(points) < FEW_POINTS else None
            axis.plot(*zip(*points, strict=True), marker=marker, ms=3, label=key)
    ppo_samples = [row["samples"] for row in rows if row["stage"] == "ppo"]
    if ppo_samples:
        axis.axvline(ppo_samples[0], color="grey", lw=0.8, ls=":")
    axis.set(title=title, xlabel="samples seen (dotted: PPO begins)")
    if axis.lines and axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
