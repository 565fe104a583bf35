"""Small parts that several heads use."""
import math
from collections.abc import Sequence

import torch
from torch import nn

MIN_STD = 0.02      # fractions of a parameter's range
MAX_STD = 0.5


def mlp(width: int, hidden: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Return an MLP with GELU after every layer, and its output width."""
    layers = []
    for out_width in hidden:
        layers += [nn.Linear(width, out_width), nn.GELU()]
        width = out_width
    return nn.Sequential(*layers), width


def init_small(*layers: nn.Linear) -> None:
    """Initialise output layers near 0, in place: a nearly uniform policy at the start.

    Andrychowicz et al. 2021 (arXiv:2006.05990, section 3.2) recommend this for PPO.
    """
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)


def clamp_log_std(log_std: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation exp(log_std), clamped to [MIN_STD, MAX_STD]."""
    return log_std.clamp(math.log(MIN_STD), math.log(MAX_STD)).exp()
