"""The eight actions on particles: their vector, their effects, and how out-of-range actions are treated.

Vector, 7 numbers: `[action_type, target, x, y, value, radius, property_type]`; `action_bounds` returns their ranges.
Type, target and property are rounded to whole numbers.

| type             | parameters used             | effect                                                  |
|------------------|-----------------------------|---------------------------------------------------------|
| NOOP             |                             | none                                                    |
| ADD_PARTICLE     | x, y, value, radius         | a particle at rest, charge value, mass (radius / 2)^2   |
| SET_PROPERTY     | target or x, y; value, type | sets a property of particle `target`; with target -1 of |
|                  |                             | the nearest whose disc, with 2 px margin, covers (x, y) |
| APPLY_HEAT       | x, y, value, radius         | temperature += value (1 - d / radius), never below 0    |
| APPLY_FORCE      | x, y, value, radius         | velocity += value (1 - d / radius) / mass, outwards     |
| APPLY_ATTRACTION | x, y, value, radius         | the same, towards (x, y)                                |
| APPLY_REPULSION  | x, y, value, radius         | the same outwards as an acceleration, during the step   |
| STEP             |                             | one more step of the simulation                         |

d is the distance of a particle's centre from (x, y). Particles with d < radius are affected. Negative values act the
other way. A particle exactly at (x, y) has no direction to be pushed in.
"""
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np

from simulator.particles import kernels
from simulator.particles.kernels import ActionStatus, ActionType, PropertyType
from simulator.particles.physics import ParticleSimulator

ACTION_PARAMS = ("action_type", "target", "x", "y", "value", "radius", "property_type")
INTEGER_COLUMNS = [0, 1, 6]         # action_type, target, property_type
MAX_VALUE = 5.0                     # absolute, of all types but SET_PROPERTY
MAX_ACTION_RADIUS = 64.0            # px; of ADD_PARTICLE: kernels.MAX_RADIUS
_AREA = ("x", "y", "value", "radius")
USED_PARAMS = {
    ActionType.NOOP: (),
    ActionType.ADD_PARTICLE: _AREA,
    ActionType.SET_PROPERTY: ("target", "x", "y", "value", "property_type"),
    ActionType.APPLY_HEAT: _AREA,
    ActionType.APPLY_FORCE: _AREA,
    ActionType.APPLY_ATTRACTION: _AREA,
    ActionType.APPLY_REPULSION: _AREA,
    ActionType.STEP: (),
}
_VERBS = {
    ActionType.APPLY_HEAT: "heat",
    ActionType.APPLY_FORCE: "push outwards",
    ActionType.APPLY_ATTRACTION: "pull inwards",
    ActionType.APPLY_REPULSION: "repel",
}


def action_bounds(width: float, height: float, max_particles: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper bound of action vectors, float64 [7] each."""
    low = [0, -1, 0, 0, -MAX_VALUE, kernels.MIN_RADIUS, 0]
    high = [len(ActionType) - 1, max_particles - 1, width, height, MAX_VALUE, MAX_ACTION_RADIUS, len(PropertyType) - 1]
    return np.array(low, float), np.array(high, float)


def property_bounds(width: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper bound of every PropertyType, float64 [8] each.

    Walls also keep positions a radius away, and MAX_SPEED bounds velocities as a whole.
    """
    low = [0, 0, -kernels.MAX_SPEED, -kernels.MAX_SPEED, -kernels.MAX_CHARGE, kernels.MIN_MASS, kernels.MIN_RADIUS, 0]
    high = [width, height, kernels.MAX_SPEED, kernels.MAX_SPEED, kernels.MAX_CHARGE, kernels.MAX_MASS,
            kernels.MAX_RADIUS, kernels.MAX_TEMPERATURE]
    return np.array(low, float), np.array(high, float)


@dataclass
class Action:
    """One action with named parameters. `to_vector` and `from_vector` are inverse to each other."""
    action_type: int
    target: int = -1
    x: float = 0.0
    y: float = 0.0
    value: float = 0.0
    radius: float = 1.0
    property_type: int = 0

    def to_vector(self) -> np.ndarray:
        """Return the action vector, float32 [7]."""
        return np.array(astuple(self), np.float32)

    @classmethod
    def from_vector(cls, vector: np.ndarray) -> Self:
        """Return the action of a vector [7]. ValueError for an unknown type or property."""
        action_type, target, x, y, value, radius, property_type = (float(v) for v in vector)
        return cls(ActionType(round(action_type)), round(target), x, y, value, radius,
                   PropertyType(round(property_type)))

    def describe(self) -> str:
        """Return the action in a few English words."""
        action_type = ActionType(self.action_type)
        point = f"({self.x:.0f}, {self.y:.0f})"
        if action_type == ActionType.NOOP:
            return "do nothing"
        if action_type == ActionType.STEP:
            return "let time pass"
        if action_type == ActionType.SET_PROPERTY:
            particle = f"particle {self.target}" if self.target >= 0 else f"the particle at {point}"
            return f"set {PropertyType(self.property_type).name.lower()} of {particle} to {self.value:.1f}"
        if action_type == ActionType.ADD_PARTICLE:
            return f"add a particle at {point}, charge {self.value:.1f}, radius {self.radius:.1f}"
        return f"{_VERBS[action_type]} at {point}, strength {self.value:.1f}, radius {self.radius:.0f}"


class ActionOperator:
    """Applies action vectors [B,7] to a ParticleSimulator of B environments."""

    def __init__(self, simulator: ParticleSimulator) -> None:
        self.simulator = simulator
        self.low, self.high = action_bounds(simulator.width, simulator.height, simulator.max_particles)
        self.property_low, self.property_high = property_bounds(simulator.width, simulator.height)

    def apply(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply the immediate part of the actions; return the status [B] and the repulsion field [B,4].

        The status is int64, an ActionStatus; the field is for `simulator.step`. A vector with a NaN or an infinity is
        replaced by NOOP. Other values are clipped. ValueError for a wrong shape.
        """
        sim = self.simulator
        actions = np.array(actions, float)
        if actions.shape != (sim.batch_size, 7):
            raise ValueError(f"actions must be [{sim.batch_size},7], not {list(actions.shape)}")
        is_finite = np.isfinite(actions).all(1)
        actions[~is_finite] = ActionType.NOOP, -1, 0, 0, 0, 1, 0
        actions[:, INTEGER_COLUMNS] = actions[:, INTEGER_COLUMNS].round()
        clipped = np.clip(actions, *self._bounds(actions))
        status = np.where((clipped == actions).all(1), ActionStatus.OK, ActionStatus.CLIPPED)
        status[~is_finite] = ActionStatus.NOT_FINITE
        field = np.zeros((sim.batch_size, 4))
        extra_step = np.zeros(sim.batch_size, bool)
        kernels.act(clipped, sim._state(), sim._size, status, field, extra_step)
        if extra_step.any():
            sim.step(envs=np.flatnonzero(extra_step))
        return status, field

    def _bounds(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and upper bounds [B,7], which depend on each action's type and property."""
        low = np.tile(self.low, (len(actions), 1))
        high = np.tile(self.high, (len(actions), 1))
        action_type, property_type = np.clip(actions[:, [0, 6]], 0, 7).astype(int).T
        sets = action_type == ActionType.SET_PROPERTY
        low[sets, 4] = self.property_low[property_type[sets]]
        high[sets, 4] = self.property_high[property_type[sets]]
        high[action_type == ActionType.ADD_PARTICLE, 5] = kernels.MAX_RADIUS
        return low, high
