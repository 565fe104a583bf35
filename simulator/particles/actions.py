"""The eight actions on particle worlds: their vector, their meaning, and what happens to impossible ones.

Vector, 7 numbers: `[action_type, target, x, y, value, radius, property_type]`.
Bounds: type 0..7, target -1..N-1, x and y within the world, value -5..5 (SET_PROPERTY: the property's own),
radius 1..64 (ADD_PARTICLE: 1..5), property 0..7. Type, target and property are rounded to whole numbers.

| type             | reads                       | effect                                                  |
|------------------|-----------------------------|---------------------------------------------------------|
| NOOP             |                             | nothing                                                 |
| ADD_PARTICLE     | x, y, value, radius         | a particle at rest, charge value, mass (radius / 2)^2   |
| SET_PROPERTY     | target or x, y; value, type | sets a property of particle `target`; with target -1 of |
|                  |                             | the nearest whose disc, with 2 px grace, covers (x, y)  |
| APPLY_HEAT       | x, y, value, radius         | temperature += value (1 - d / radius), never below 0    |
| APPLY_FORCE      | x, y, value, radius         | velocity += value (1 - d / radius) / mass, outwards     |
| APPLY_ATTRACTION | x, y, value, radius         | the same, towards (x, y)                                |
| APPLY_REPULSION  | x, y, value, radius         | the same outwards as an acceleration, during the step   |
| STEP             |                             | one step more than every action takes                   |

d is the distance of a particle's centre from (x, y). Those within `radius` are affected; negative values act
the other way; a particle exactly at (x, y) has no direction to be pushed in.
"""
from dataclasses import astuple, dataclass
from enum import IntEnum

import numpy as np

from simulator.particles import kernels


class ActionType(IntEnum):
    NOOP = 0
    ADD_PARTICLE = 1
    SET_PROPERTY = 2
    APPLY_HEAT = 3
    APPLY_FORCE = 4
    APPLY_ATTRACTION = 5
    APPLY_REPULSION = 6
    STEP = 7


class PropertyType(IntEnum):
    POSITION_X = 0
    POSITION_Y = 1
    VELOCITY_X = 2
    VELOCITY_Y = 3
    CHARGE = 4
    MASS = 5
    RADIUS = 6
    TEMPERATURE = 7


class ActionStatus(IntEnum):
    """What became of an action: done, done with values clipped, or refused (the world then only steps)."""
    OK = 0
    CLIPPED = 1
    NOT_FINITE = 2
    NO_TARGET = 3
    WORLD_FULL = 4


_AREA = ("x", "y", "value", "radius")
USED_PARAMS = {ActionType.NOOP: (), ActionType.ADD_PARTICLE: _AREA,
        ActionType.SET_PROPERTY: ("target", "x", "y", "value", "property_type"), ActionType.APPLY_HEAT: _AREA,
        ActionType.APPLY_FORCE: _AREA, ActionType.APPLY_ATTRACTION: _AREA, ActionType.APPLY_REPULSION: _AREA,
        ActionType.STEP: ()}
_WORDS = {ActionType.APPLY_HEAT: "heat", ActionType.APPLY_FORCE: "push outwards",
          ActionType.APPLY_ATTRACTION: "pull inwards", ActionType.APPLY_REPULSION: "repel"}


@dataclass
class Action:
    """One action by name; `to_vector` and `from_vector` are inverse to each other (float32 [7])."""
    action_type: int
    target: int = -1
    x: float = 0.0
    y: float = 0.0
    value: float = 0.0
    radius: float = 1.0
    property_type: int = 0

    def to_vector(self):
        return np.array(astuple(self), np.float32)

    @classmethod
    def from_vector(cls, vector):
        kind, target, x, y, value, radius, prop = (float(v) for v in vector)
        return cls(ActionType(round(kind)), round(target), x, y, value, radius, PropertyType(round(prop)))

    def describe(self):
        """The action in a few English words."""
        kind = ActionType(self.action_type)
        if kind in (ActionType.NOOP, ActionType.STEP):
            return "do nothing" if kind == ActionType.NOOP else "let time pass"
        where = f"({self.x:.0f}, {self.y:.0f})"
        if kind == ActionType.SET_PROPERTY:
            which = f"particle {self.target}" if self.target >= 0 else f"the particle at {where}"
            return f"set {PropertyType(self.property_type).name.lower()} of {which} to {self.value:.1f}"
        if kind == ActionType.ADD_PARTICLE:
            return f"add a particle at {where}, charge {self.value:.1f}, radius {self.radius:.1f}"
        return f"{_WORDS[kind]} at {where}, strength {self.value:.1f}, radius {self.radius:.0f}"


class ActionOperator:
    """Executes action vectors [B,7] on a ParticleSimulator of B worlds."""

    def __init__(self, simulator):
        self.simulator = simulator
        width, height = simulator.width, simulator.height
        self.low = np.array([0, -1, 0, 0, -5, 1, 0], float)
        self.high = np.array([len(ActionType) - 1, simulator.max_particles - 1, width, height, 5, 64,
                              len(PropertyType) - 1], float)
        # by PropertyType; walls also keep positions a radius away, and MAX_SPEED bounds velocities as a whole
        bounds = [(0, width), (0, height), (-kernels.MAX_SPEED, kernels.MAX_SPEED),
                  (-kernels.MAX_SPEED, kernels.MAX_SPEED), (-kernels.MAX_CHARGE, kernels.MAX_CHARGE),
                  (kernels.MIN_MASS, kernels.MAX_MASS), (kernels.MIN_RADIUS, kernels.MAX_RADIUS),
                  (0, kernels.MAX_TEMPERATURE)]
        self.property_low, self.property_high = np.array(bounds, float).T

    def apply(self, actions):
        """The immediate part -> (status codes int64 [B], repulsion field [B,4] for `simulator.step`).

        A vector with a NaN or an infinity is not executed; other values are clipped. Raises ValueError for a
        wrong shape, and nothing else ever.
        """
        sim = self.simulator
        actions = np.array(actions, float)
        if actions.shape != (sim.batch_size, 7):
            raise ValueError(f"actions must be [{sim.batch_size},7], not {list(actions.shape)}")
        finite = np.isfinite(actions).all(1)
        actions[~finite] = ActionType.NOOP, -1, 0, 0, 0, 1, 0
        actions[:, [0, 1, 6]] = actions[:, [0, 1, 6]].round()
        low, high = np.tile(self.low, (len(actions), 1)), np.tile(self.high, (len(actions), 1))
        kind, prop = np.clip(actions[:, [0, 6]], 0, 7).astype(int).T
        sets = kind == ActionType.SET_PROPERTY
        low[sets, 4], high[sets, 4] = self.property_low[prop[sets]], self.property_high[prop[sets]]
        high[kind == ActionType.ADD_PARTICLE, 5] = kernels.MAX_RADIUS
        clipped = np.clip(actions, low, high)
        status = np.where((clipped == actions).all(1), ActionStatus.OK, ActionStatus.CLIPPED)
        status[~finite] = ActionStatus.NOT_FINITE
        field, extra_step = np.zeros((sim.batch_size, 4)), np.zeros(sim.batch_size, bool)
        kernels.act(clipped, sim._state(), sim._size, status, field, extra_step)
        if extra_step.any():
            sim.step(worlds=np.flatnonzero(extra_step))
        return status, field

    def execute(self, actions):
        """`apply`, then one step of the simulation -> status codes [B]."""
        status, field = self.apply(actions)
        self.simulator.step(field)
        return status
