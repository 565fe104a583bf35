"""The value head: the critic."""
from collections.abc import Sequence

import torch
from torch import nn

from models.heads.layers import mlp


class ValueHead(nn.Module):
    """The value V(s, g) of an observation and an instruction; 0 at the start of training.

    `width` is that of its input: D, or D + F for a policy with F proprioception features.
    """

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.trunk, out_width = mlp(width, hidden)
        self.out = nn.Linear(out_width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return values float32 [B] from features float32 [B,width]."""
        return self.out(self.trunk(features)).squeeze(-1)
