"""What a policy reads besides the instruction: checks of images and proprioception, and their features."""
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from config import MAX_INSTRUCTION_LENGTH

FREQUENCIES = (0.5, 1, 2, 4, 8)     # the shortest wave is an eighth of the range


class ProprioEncoder(nn.Module):
    """Fourier features of proprioception, for the heads.

    Each number becomes 11 features: its position in [low, high], scaled to [-1, 1], and sines and cosines of five
    frequencies. An MLP on the numbers alone is slow to distinguish near values (Tancik et al. 2020,
    arXiv:2006.10739). It has no parameters.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.low, self.high = list(low), list(high)
        self.width = (1 + 2 * len(FREQUENCIES)) * len(self.low)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return features float32 [B,11*Q] of proprioception float32 [B,Q]."""
        low = values.new_tensor(self.low)
        high = values.new_tensor(self.high)
        unit = 2 * (values - low) / (high - low) - 1                                              # [B,Q]
        angles = math.pi * unit[..., None] * unit.new_tensor(FREQUENCIES)                         # [B,Q,5]
        return torch.cat([unit[..., None], angles.sin(), angles.cos()], -1).flatten(1)            # [B,11*Q]


def proprio_tensor(proprio: torch.Tensor | np.ndarray | Sequence | None, shape: tuple[int, int],
                   device: torch.device) -> torch.Tensor:
    """Return proprioception as float32 of this shape [B,Q]. Raises ValueError if it has another one."""
    given = None if proprio is None else tuple(np.shape(proprio))
    if given != shape:
        raise ValueError(f"this policy reads proprioception: give proprio, floats of shape {shape}, not {given}")
    if not isinstance(proprio, torch.Tensor):
        proprio = np.asarray(proprio)
    return torch.as_tensor(proprio, dtype=torch.float32, device=device)


def image_tensor(images: torch.Tensor | np.ndarray | Sequence) -> torch.Tensor:
    """Return images as uint8 [B,H,W,3].

    They are an array or tensor uint8 [B,H,W,3], or a list of B arrays uint8 [H,W,3] or PIL images, all of one size.
    Raises ValueError for anything else.
    """
    expected = "images must be uint8 [B,H,W,3] or PIL images of one size, not "
    if not isinstance(images, (list, tuple, np.ndarray, torch.Tensor)):
        raise ValueError(f"{expected}one {type(images).__name__}")
    if isinstance(images, (list, tuple)):
        arrays = [np.asarray(image.convert("RGB") if hasattr(image, "convert") else image) for image in images]
        if len({array.shape for array in arrays}) != 1:
            raise ValueError(expected + str([array.shape for array in arrays]))
        images = np.stack(arrays)
    has_shape = images.ndim == 4 and images.shape[-1] == 3 and min(images.shape) > 0
    if images.dtype not in (np.uint8, torch.uint8) or not has_shape:
        raise ValueError(f"{expected}{images.dtype} {tuple(images.shape)}")
    return torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)


def check_instructions(instructions: str | Sequence[str], count: int) -> list[str]:
    """Return a list of `count` instructions.

    Raises ValueError if there are more or fewer, or one is empty or longer than 500 characters.
    """
    instructions = [instructions] if isinstance(instructions, str) else list(instructions)
    valid = all(isinstance(text, str) and text.strip() for text in instructions)
    if len(instructions) != count or not valid:
        raise ValueError(f"goals must be one instruction for each of the {count} images, not {instructions!r}")
    longest = max(map(len, instructions))
    if longest > MAX_INSTRUCTION_LENGTH:
        raise ValueError(f"an instruction has {longest} characters: at most {MAX_INSTRUCTION_LENGTH} are allowed")
    return instructions
