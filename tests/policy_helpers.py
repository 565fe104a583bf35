"""The action space and a random distribution, for the tests of the policy."""
import torch

from models.heads import spec_from_space
from models.heads.distributions import HybridDistribution
from simulator.particles.actions import ActionType
from simulator.particles.task import action_space

SPACE = action_space(64, 64, 50)
SPEC = spec_from_space(SPACE)
KINDS, CLASSES = len(ActionType), 8
GOALS = ["입자들을 왼쪽으로 이동시켜", "heat", "push everything up to the very top of the world, please, if you can",
         "모아줘", "align them in a horizontal line"]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def distribution(batch=1, modes=4, seed=0, low=0.15, high=0.5, dtype=torch.float64):
    """A random HybridDistribution with std between `low` and `high`."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64).to(dtype)
    return HybridDistribution(SPEC, 2 * rand(batch, KINDS) - 1, 2 * rand(batch, KINDS, modes) - 1,
                              rand(batch, KINDS, modes, 2), rand(batch, KINDS, 2),
                              low + (high - low) * rand(KINDS, 4), 2 * rand(batch, CLASSES) - 1)
