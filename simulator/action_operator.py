"""The eight actions on particle worlds: their vector, their meaning, and what happens to impossible ones.

Vector, 7 numbers: `[action_type, target, x, y, value, radius, property_type]`.
Bounds: type 0..7, target -1..N-1, x and y within the world, value -5..5, radius 1..64, property 0..7.

| type             | reads                          | effect                                                             |
|------------------|--------------------------------|--------------------------------------------------------------------|
| NOOP             |                                | nothing                                                            |
| ADD_PARTICLE     | x, y, value, radius            | a particle at rest with charge value, radius (1..5), mass (r/2)^2  |
| SET_PROPERTY     | target or x, y; value, property| sets a property of particle `target`, or with target -1 of the one |
|                  |                                | at (x, y), to value, within the property's bounds                  |
| APPLY_HEAT       | x, y, value, radius            | temperature += value (1 - d / radius), never below 0               |
| APPLY_FORCE      | x, y, value, radius            | velocity += value (1 - d / radius) / mass, away from (x, y)        |
| APPLY_ATTRACTION | x, y, value, radius            | the same, towards (x, y)                                           |
| APPLY_REPULSION  | x, y, value, radius            | the same as an acceleration away from (x, y), during the step      |
| STEP             |                                | one step more than every action takes                              |
"""
from dataclasses import astuple, dataclass
from enum import IntEnum

import numpy as np

from simulator import kernels


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
USED = {ActionType.NOOP: (), ActionType.ADD_PARTICLE: _AREA,
        ActionType.SET_PROPERTY: ("target", "x", "y", "value", "property_type"), ActionType.APPLY_HEAT: _AREA,
        ActionType.APPLY_FORCE: _AREA, ActionType.APPLY_ATTRACTION: _AREA, ActionType.APPLY_REPULSION: _AREA,
        ActionType.STEP: ()}
_WORDS = {ActionType.ADD_PARTICLE: "add a particle", ActionType.APPLY_HEAT: "heat", ActionType.APPLY_FORCE: "push outwards",
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
        kind, target, x, y, value, radius, what = (float(v) for v in vector)
        return cls(ActionType(round(kind)), round(target), x, y, value, radius, PropertyType(round(what)))

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
        self.low = np.array([0, -1, 0, 0, -5, 1, 0], float)
        self.high = np.array([len(ActionType) - 1, simulator.max_particles - 1, simulator.width, simulator.height, 5, 64,
                              len(PropertyType) - 1], float)

    def apply(self, actions):
        """The immediate part -> (status codes int64 [B], repulsion field [B,4] for the coming `simulator.step`).

        Values are rounded (type, target, property) and clipped into their bounds; a vector with a NaN or an infinity
        is not executed. ValueError for a wrong shape, and nothing else is ever raised.
        """
        sim = self.simulator
        actions = np.asarray(actions, float)
        if actions.shape != (sim.batch_size, 7):
            raise ValueError(f"actions must be [{sim.batch_size},7], not {list(actions.shape)}")
        finite = np.isfinite(actions).all(1)
        actions = np.where(finite[:, None], actions, [ActionType.NOOP, -1, 0, 0, 0, 1, 0])
        clipped = np.clip(actions, self.low, self.high)
        status = np.where(finite, np.where((clipped != actions).any(1), ActionStatus.CLIPPED, ActionStatus.OK),
                          ActionStatus.NOT_FINITE)
        clipped[:, [0, 1, 6]] = clipped[:, [0, 1, 6]].round()
        field, extra = np.zeros((sim.batch_size, 4)), np.zeros(sim.batch_size, bool)
        kernels.act(clipped, sim.count, sim.position, sim.velocity, sim.radius, sim.mass, sim.charge, sim.temperature,
                    sim.conductivity, sim._size, status, field, extra)
        if extra.any():
            sim.step(worlds=np.flatnonzero(extra))
        return status, field

    def execute(self, actions):
        """`apply`, then one step of the simulation -> status codes [B]."""
        status, field = self.apply(actions)
        self.simulator.step(field)
        return status
