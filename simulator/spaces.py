"""Gymnasium spaces with what a policy has to know of them besides their bounds."""
import copy
from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from config import MAX_INSTRUCTION_LENGTH
from simulator.commands import ALLOWED_CHARS


class HybridActionSpace(spaces.Box):
    """A float32 Box [A] whose column 0 is an action type, 0..K-1.

    `used_params` (bool [K,A]) says which columns each type uses, `continuous` which columns are continuous,
    `xy_params` which two of these are a point of the image, and `categorical` which column is a second category.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, used_params: np.ndarray, continuous: Sequence[int],
                 xy_params: Sequence[int], categorical: int):
        super().__init__(low, high, dtype=np.float32)
        self.used_params = used_params
        self.continuous = continuous
        self.xy_params = xy_params
        self.categorical = categorical


class NamedDiscrete(spaces.Discrete):
    """Discrete(n) with a name for each of its n actions."""

    def __init__(self, names: Sequence[str]):
        super().__init__(len(names))
        self.names = tuple(names)


class InstructionSpace(spaces.Text):
    """All texts that `simulator.commands.clean_instruction` returns. Its repr leaves out the 11,000 characters."""

    def __init__(self):
        super().__init__(MAX_INSTRUCTION_LENGTH, charset=ALLOWED_CHARS)

    def __deepcopy__(self, memo: dict) -> "InstructionSpace":
        """Return a copy that shares the tables of characters: Gymnasium copies the space for each env of a batch."""
        other = copy.copy(self)
        other._np_random = copy.deepcopy(self._np_random, memo)
        return other

    def __repr__(self) -> str:
        return f"InstructionSpace(max_length={self.max_length})"
