"""Goals: what is asked for, how near it is, and when it is reached.

A goal is written as in `push(direction=left)`, `cluster()`, `spread()`, `heat()`, `cool()`, `vibrate()`,
`move_to(region=top_left)`, `align(axis=horizontal)`; `Goal.parse(str(goal)) == goal`.

Everything is measured on the particles that were there when the episode started, and success is measured against
that start. Lengths are shares of the world's shorter side W (64 px by default).

| goal    | progress (its growth is rewarded)       | reached when                                 | reward (a step)   |
|---------|-----------------------------------------|----------------------------------------------|-------------------|
| push    | way of the centroid in the direction    | 0.22 W that way, at most 0.08 W to each side | 0.05/px, +-0.5    |
| cluster | minus the spread                        | spread at most 0.6 of that at the start      | 0.05/px, +-0.3    |
| spread  | spread                                  | spread at least twice that at the start      | 0.05/px, +-0.3    |
| heat    | mean temperature                        | 3 warmer than at the start                   | 0.1/unit, +-0.3   |
| cool    | minus the mean temperature              | at most a quarter of that at the start       | 0.1/unit, +-0.3   |
| vibrate | speed (itself rewarded, not its growth) | speed at least 2 px/step, centroid within    | 0.01/(px/step),   |
|         |                                         | 0.1 W, the spread within 1.5 times its start | up to 0.3         |
| move_to | minus the centroid's way to a point     | within 0.06 W of the centre, or 0.1 W of a   | 0.05/px, +-0.3    |
|         |                                         | point 0.22 W from both walls of the corner   |                   |
| align   | minus the extent across the line        | at most 0.07 W across, twice as far along    | 0.05/px, +-0.3    |

Reaching the goal adds 1. Spread: root mean square distance from the centroid. Speed: root mean square velocity
relative to the centroid's. Extent: standard deviation of one coordinate. The reward for vibrating is small on
purpose: a larger one would pay more for shaking just under the threshold for ever than for reaching it.
"""
from dataclasses import dataclass

import numpy as np

from simulator.kernels import MAX_RADIUS, MIN_RADIUS

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}   # y points down
REGIONS = {"center": (0.5, 0.5), "top_left": (0.22, 0.22), "top_right": (0.78, 0.22),
           "bottom_left": (0.22, 0.78), "bottom_right": (0.78, 0.78)}
AXES = {"horizontal": 0, "vertical": 1}
ARGUMENTS = {"push": ("direction", DIRECTIONS), "cluster": None, "spread": None, "heat": None, "cool": None,
             "vibrate": None, "move_to": ("region", REGIONS), "align": ("axis", AXES)}
# kind: (reward per unit of progress, bound of the reward)
REWARD = {"push": (0.05, 0.5), "cluster": (0.05, 0.3), "spread": (0.05, 0.3), "heat": (0.1, 0.3), "cool": (0.1, 0.3),
          "vibrate": (0.01, 0.3), "move_to": (0.05, 0.3), "align": (0.05, 0.3)}
SUCCESS_REWARD = 1.0
TRIES = 1000     # draws of a start state before the world is held to be too small or too full for the goal


class GoalError(ValueError):
    """A goal that cannot be read; the message names what would be right."""


@dataclass(frozen=True)
class Goal:
    """One goal: a kind and, for some kinds, its one argument."""
    kind: str
    argument: str | None = None

    def __post_init__(self):
        if self.kind not in ARGUMENTS:
            raise GoalError(f"unknown goal {self.kind!r}: goals are {', '.join(ARGUMENTS)}")
        allowed = ARGUMENTS[self.kind][1] if ARGUMENTS[self.kind] else (None,)
        if self.argument not in allowed:
            what = f"{ARGUMENTS[self.kind][0]}= one of {', '.join(allowed)}" if ARGUMENTS[self.kind] else "no argument"
            raise GoalError(f"{self.kind}() takes {what}, not {self.argument!r}")

    def __str__(self):
        return f"{self.kind}({ARGUMENTS[self.kind][0]}={self.argument})" if self.argument else f"{self.kind}()"

    @classmethod
    def parse(cls, text):
        """The goal written as `text`; GoalError if it is none."""
        kind, bracket, rest = text.strip().partition("(")
        if not bracket or not rest.endswith(")"):
            raise GoalError(f"cannot read the goal {text!r}: write it like push(direction=left) or cluster()")
        key, _, value = (part.strip() for part in rest[:-1].partition("="))
        if kind in ARGUMENTS and key and (not ARGUMENTS[kind] or key != ARGUMENTS[kind][0]):
            raise GoalError(f"{kind}() has no argument {key!r}")
        return cls(kind, value or None)


GOALS = tuple(Goal(kind, value) for kind, argument in ARGUMENTS.items()
              for value in (argument[1] if argument else [None]))


@dataclass
class Summary:
    """What the goals look at, for B worlds: centroid [B,2] and extent [B,2] px, spread [B] px, speed [B] px/step,
    temperature [B] (means over each world's particles)."""
    centroid: np.ndarray
    extent: np.ndarray
    spread: np.ndarray
    speed: np.ndarray
    temperature: np.ndarray

    @classmethod
    def of(cls, sim, count, worlds=slice(None)):
        """Of the first `count[b]` particles of each world."""
        position, velocity = sim.position[worlds], sim.velocity[worlds]
        count = count[worlds]
        limit = int(count.max(initial=1))
        share = (np.arange(limit) < count[:, None]) / count[:, None]                        # [B,N], sums to 1
        mean = lambda values: np.einsum("bn,bn...->b...", share, values[:, :limit])          # noqa: E731
        centroid, drift = mean(position), mean(velocity)
        extent = np.sqrt(mean((position - centroid[:, None]) ** 2))
        speed = np.sqrt(mean((velocity - drift[:, None]) ** 2).sum(-1))
        return cls(centroid, extent, np.sqrt((extent**2).sum(-1)), speed, mean(sim.temperature[worlds]))

    def __getitem__(self, worlds):
        return Summary(*(getattr(self, name)[worlds] for name in self.__dataclass_fields__))

    def __setitem__(self, worlds, other):
        for name in self.__dataclass_fields__:
            getattr(self, name)[worlds] = getattr(other, name)


def progress(goal, now, start, size):
    """How far the goal has come, [B]; in the unit of its own measure (px, temperature, px/step)."""
    match goal.kind:
        case "push":
            return (now.centroid - start.centroid) @ np.array(DIRECTIONS[goal.argument])
        case "cluster":
            return -now.spread
        case "spread":
            return now.spread
        case "heat":
            return now.temperature
        case "cool":
            return -now.temperature
        case "vibrate":
            return now.speed
        case "move_to":
            return -np.linalg.norm(now.centroid - np.array(REGIONS[goal.argument]) * size, axis=-1)
        case "align":
            return -now.extent[:, 1 - AXES[goal.argument]]


def target(goal, start, size):
    """The progress at which the goal's main condition holds, [B] or a number."""
    width = min(size)
    match goal.kind:
        case "push":
            return 0.22 * width
        case "cluster":
            return -0.6 * start.spread
        case "spread":
            return 2 * start.spread
        case "heat":
            return start.temperature + 3
        case "cool":
            return -0.25 * start.temperature
        case "vibrate":
            return 2.0
        case "move_to":
            return -(0.06 if goal.argument == "center" else 0.1) * width
        case "align":
            return -0.07 * width


def reached(goal, now, start, size):
    """Whether the goal is reached, bool [B]."""
    done, width = progress(goal, now, start, size), min(size)
    main = done >= target(goal, start, size)
    moved = now.centroid - start.centroid
    match goal.kind:
        case "push":     # as asked, not slantwise
            return main & (np.abs(moved @ np.array(DIRECTIONS[goal.argument])[::-1]) <= 0.08 * width)
        case "vibrate":  # on the spot
            return main & (np.linalg.norm(moved, axis=-1) <= 0.1 * width) & (now.spread <= 1.5 * start.spread)
        case "align":    # a line, not a heap
            return main & (now.extent[:, AXES[goal.argument]] >= -2 * done)
        case _:
            return main


def reward(goal, now, before, start, size):
    """Dense reward of one step, [B], without the 1 for success. Progress counts up to the target only: it must not
    pay to go on without fulfilling the rest of the goal."""
    scale, bound = REWARD[goal.kind]
    limit = target(goal, start, size)
    gained = np.minimum(progress(goal, now, start, size), limit)
    if goal.kind != "vibrate":
        gained = gained - np.minimum(progress(goal, before, start, size), limit)
    return np.clip(scale * gained, -bound, bound)


def start_state(goal, rng, size, n):
    """A start for one world in which the goal is neither met nor out of reach.

    -> position [n,2], velocity [n,2], radius, mass, charge, temperature, conductivity [n]. Particles are at rest and
    do not overlap; most starts are a loose group somewhere in the world.
    """
    radius = np.clip(rng.uniform(1.5, 3.0, n) * min(size) / 64, MIN_RADIUS, MAX_RADIUS)
    temperature = rng.uniform(3.0, 6.0, n) if goal.kind == "cool" else rng.uniform(0.0, 1.0, n)
    extent = rng.uniform(0.07, 0.09) if goal.kind == "spread" else rng.uniform(0.12, 0.2)   # share of the world
    margin = 0.08
    for _ in range(TRIES):
        middle = rng.uniform(0.2, 0.8, 2)
        if goal.kind == "push":   # leave room to go, and do not start at the wall
            middle = np.clip(middle - 0.5 * np.array(DIRECTIONS[goal.argument]) * rng.uniform(0.3, 0.6), 0.2, 0.8)
        position = np.clip(rng.normal(middle, extent, (n, 2)), margin, 1 - margin) * size
        position = _apart(position, radius, rng, size)
        offset = position - position.mean(0)
        spread, across = np.sqrt((offset**2).sum(-1).mean()), offset.std(0)
        to_go = None
        if goal.kind == "move_to":
            to_go = np.linalg.norm(position.mean(0) - np.array(REGIONS[goal.argument]) * size)
        if (spread > 0.06 * min(size)
                and (goal.kind != "cluster" or spread > 0.18 * min(size))
                and (goal.kind != "spread" or spread < 0.16 * min(size))
                and (goal.kind != "align"
                     or across[AXES[goal.argument]] > across[1 - AXES[goal.argument]] > 0.12 * min(size))
                and (to_go is None or to_go > (0.2 if goal.argument == "center" else 0.3) * min(size))):
            break
    else:
        raise GoalError(f"no start for {goal} found in a world of {size[0]:.0f}x{size[1]:.0f} with {n} particles: "
                        "give fewer particles, at least two, or a squarer world")
    # most particles carry some charge, a few none
    charge = rng.uniform(-0.6, 0.6, n) * (rng.random(n) < 0.75)
    return position, np.zeros((n, 2)), radius, (radius * 64 / min(size) / 2) ** 2, charge, temperature, np.full(n, 0.1)


def _apart(position, radius, rng, size):
    """Moves overlapping particles to free places near by; gives up after a while (the physics separates the rest)."""
    for i in range(len(position)):
        for _ in range(50):
            gap = np.linalg.norm(position[:i] - position[i], axis=1) - radius[:i] - radius[i]
            if (gap > 0.5).all():
                break
            position[i] = np.clip(position[i] + rng.normal(0, 0.06 * min(size), 2), radius[i] + 1, size - radius[i] - 1)
    return position
