"""Action heads: what describes an action space, the interface of a head, and the registry.

A spec describes an action space as plain data, so that a checkpoint can hold it. Its `kind` names the head:

    spec = spec_from_space(env.action_space)                           # BoxSpec(low, high, kind="box")
    head = make_head(spec, goal_width, patch_width, hidden=(512, 256), init_std=0.135)
    distribution = head(goal_features, patches, patch_xy)

Shapes: B samples, S subgoals of an instruction, W goal features, P image patches, D patch features, A action
numbers, K action types. Importing this package loads no torch.
"""
from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from config import UserError

if TYPE_CHECKING:
    import gymnasium
    import torch

    from models.heads.distributions import ActionDistribution


# --- the description of an action space -------------------------------------------------------------------------
@dataclass(frozen=True)
class HybridSpec:
    """A float vector [A]: an action type in column 0, and the parameters that this type uses.

    `used_params[k][a]` is True if type k uses column a. The columns `continuous` are bounded numbers; the first two
    of them are `xy_params`, a point in the image. The column `categorical` is a class index. A column that is
    unused keeps its `low`. Such spaces are parameterised action spaces (Masson et al. 2016, arXiv:1509.01644).
    """
    low: tuple[float, ...]
    high: tuple[float, ...]
    used_params: tuple[tuple[bool, ...], ...]
    continuous: tuple[int, ...]
    xy_params: tuple[int, ...]
    categorical: int
    kind: str = "hybrid"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HybridSpec:
        """Return the spec of JSON data, whose sequences may be lists or arrays."""
        return cls(low=_floats(data["low"]),
                   high=_floats(data["high"]),
                   used_params=tuple(tuple(bool(used) for used in row) for row in data["used_params"]),
                   continuous=tuple(int(column) for column in data["continuous"]),
                   xy_params=tuple(int(column) for column in data["xy_params"]),
                   categorical=int(data["categorical"]),
                   kind=data["kind"])


@dataclass(frozen=True)
class DiscreteSpec:
    """One of `n` actions, an int64 from 0; `names` has n entries, or none."""
    n: int
    names: tuple[str, ...] = ()
    kind: str = "discrete"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DiscreteSpec:
        """Return the spec of JSON data."""
        return cls(n=int(data["n"]), names=tuple(data["names"]), kind=data["kind"])


@dataclass(frozen=True)
class BoxSpec:
    """A float vector [A] with low[a] <= action[a] <= high[a]. Where both are equal, the number is a constant."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    kind: str = "box"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BoxSpec:
        """Return the spec of JSON data, whose sequences may be lists or arrays."""
        return cls(low=_floats(data["low"]), high=_floats(data["high"]), kind=data["kind"])


ActionSpec = HybridSpec | DiscreteSpec | BoxSpec
HYBRID_ATTRIBUTES = ("used_params", "continuous", "xy_params", "categorical")


def spec_from_space(space: gymnasium.Space) -> ActionSpec:
    """Return the spec of a Gymnasium action space.

    Supported: `Discrete(n)` that starts at 0 (its attribute `names` is kept); a bounded `Box` with one axis, of
    float32 or float64; a `Box` with the attributes HYBRID_ATTRIBUTES, which is a hybrid space.
    Raises TypeError for any other space.
    """
    from gymnasium import spaces
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return DiscreteSpec(int(space.n), tuple(getattr(space, "names", ())))
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        if not np.can_cast(np.float32, space.dtype):        # the heads sample float32
            raise TypeError(f"no action head for {space} of {space.dtype}: give a Box of float32 or float64")
        bounds = {"low": space.low, "high": space.high}
        if all(hasattr(space, name) for name in HYBRID_ATTRIBUTES):
            columns = {name: getattr(space, name) for name in HYBRID_ATTRIBUTES}
            if (space.low == space.high)[list(columns["continuous"])].any():
                raise TypeError(f"no action head for {space}: give each continuous column a range above 0")
            return HybridSpec.from_dict(bounds | columns | {"kind": "hybrid"})
        return BoxSpec.from_dict(bounds | {"kind": "box"})
    raise TypeError(f"no action head for {space}: give Discrete(n), a bounded Box with one axis, or a hybrid space")


def spec_from_dict(data: dict[str, Any]) -> ActionSpec:
    """Return the spec that `dataclasses.asdict` turned into data. Raises UserError for an unregistered kind."""
    kind = data.get("kind") or _infer_kind(data)
    if kind not in SPECS:
        raise UserError(f"unknown action head {kind!r} (registered: {', '.join(HEADS)}): "
                        "import the module that calls register_head first")
    return SPECS[kind].from_dict(data | {"kind": kind})


def _infer_kind(data: dict[str, Any]) -> str:
    """Return the kind of a spec that was saved before specs had a kind."""
    if "used_params" in data:
        return "hybrid"
    return "discrete" if "n" in data else "box"


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


# --- the interface and the registry -----------------------------------------------------------------------------
class ActionHead(Protocol):
    """What an action head is: an nn.Module with this constructor and this forward pass.

    `goal_width` is W, `patch_width` is D, `hidden` the widths of the trunk's layers. `init_std` is the standard
    deviation of continuous parameters at the start, as a fraction of their range.
    """

    def __init__(self, spec: ActionSpec, goal_width: int, patch_width: int, hidden: Sequence[int],
                 init_std: float) -> None: ...

    def forward(self, goal_features: torch.Tensor, patches: torch.Tensor,
                patch_xy: torch.Tensor) -> ActionDistribution:
        """Return the distribution over actions.

        goal_features: float32 [B,S,W], the features of every subgoal. patches: float32 [B,P,D], the features of every
        image patch. patch_xy: float32 [P,2], the patches' centres (x, y) as fractions of the image.
        """


HEADS: dict[str, str] = {}      # kind of spec -> "module:Class" of its head
SPECS: dict[str, type] = {}     # kind of spec -> its class


def register_head(kind: str, path: str, spec_class: type) -> None:
    """Register the head at `path`, "module:Class", for specs of this `kind`, which are of `spec_class`."""
    HEADS[kind] = path
    SPECS[kind] = spec_class


def make_head(spec: ActionSpec, goal_width: int, patch_width: int, hidden: Sequence[int],
              init_std: float) -> ActionHead:
    """Return a new head for the spec; the arguments are those of ActionHead."""
    module, _, name = HEADS[spec.kind].partition(":")
    head_class = getattr(importlib.import_module(module), name)
    return head_class(spec, goal_width, patch_width, hidden, init_std)


register_head("hybrid", "models.heads.attention:HybridHead", HybridSpec)
register_head("discrete", "models.heads.attention:DiscreteHead", DiscreteSpec)
register_head("box", "models.heads.attention:BoxHead", BoxSpec)
