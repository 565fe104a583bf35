"""Goals: what is asked for, how near it is, and when it is reached.

A goal is written in a small language; `parse(str(goal)) == goal`, and spaces do not matter:

    plan  = phase, {"THEN", phase}                  phases are reached one after the other
    phase = goal, {"AND", goal}                     goals of one phase must hold at once
    goal  = "push(direction=" (left | right | up | down) [", distance=" px] ")"
          | "cluster(" ["ids=[" id, id, ... "]"] ")"   of all particles, or of these
          | "spread()" | "vibrate()"
          | "heat(" [("to=" | "by=") degrees] ")"  | "cool(" [("to=" | "by=") degrees] ")"
          | "align(axis=" (horizontal | vertical) ")"
          | "move_to(region=" (center | top_left | top_right | bottom_left | bottom_right) ")"
          | "move_to(id=" id {", " (x | y) (> | <) px} ")"     at least one bound; x to the right, y downwards
          | "move_toward(" id ", " id ")"              the first goes to the second

Everything is measured on the particles that were there when the episode started, and success is measured against
that start (of a later phase: against where the phase before was reached). An id counts from 0; its colour is
`core.PALETTE[id % 8]`. Lengths are shares of the world's shorter side W (64 px by default).

| goal        | progress (its growth is rewarded)     | reached when                                 | reward (a step) |
|-------------|---------------------------------------|----------------------------------------------|-----------------|
| push        | way of the centroid in the direction  | `distance` (0.22 W) that way, at most a      | 0.05/px, +-0.5  |
|             |                                       | fifth of it to each side                     |                 |
| cluster     | minus the spread (of the ids)         | spread at most 0.6 (of ids 0.36) of that at  | 0.05/px, +-0.3  |
|             |                                       | the start                                    |                 |
| spread      | spread                                | spread at least 0.42 W                       | 0.05/px, +-0.3  |
| heat        | mean temperature                      | `to`, or `by` (3) warmer than at the start   | 0.1/unit, +-0.3 |
| cool        | minus the mean temperature            | `to`, or `by` colder than at the start, or   | 0.1/unit, +-0.3 |
|             |                                       | at most a fifth of that at the start         |                 |
| vibrate     | speed (itself rewarded, not its rise) | speed at least 2.5 px/step, centroid within  | 0.01/(px/step), |
|             |                                       | 0.08 W, spread within 1.5 times its start    | up to 0.3       |
| move_to     | minus the centroid's way to a point   | within 0.06 W of the centre, or 0.1 W of a   | 0.05/px, +-0.3  |
|             |                                       | point 0.22 W from both walls of the corner   |                 |
| move_to id  | minus the way to the bounds           | all bounds hold                              | 0.05/px, +-0.3  |
| move_toward | minus the distance of the two         | at most 0.12 W between their centres         | 0.05/px, +-0.3  |
| align       | minus the extent across the line      | at most 0.07 W across, twice as far along    | 0.05/px, +-0.3  |

Reaching the goal adds 1. Spread: root mean square distance from the centroid. Speed: root mean square velocity
relative to the centroid's. Extent: standard deviation of one coordinate. The reward for vibrating is small on
purpose: a larger one would pay more for shaking just under the threshold for ever than for reaching it. The reward
of several goals at once is the mean of theirs.
"""
import re
from dataclasses import dataclass

import numpy as np

from simulator.particles.kernels import MAX_RADIUS, MAX_TEMPERATURE, MIN_RADIUS

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}   # y points down
REGIONS = {"center": (0.5, 0.5), "top_left": (0.22, 0.22), "top_right": (0.78, 0.22),
           "bottom_left": (0.22, 0.78), "bottom_right": (0.78, 0.78)}
AXES = {"horizontal": 0, "vertical": 1}
MAX_IDS = 256      # particles of a world at most
# kind: (reward per unit of progress, bound of the reward)
REWARD = {"push": (0.05, 0.5), "cluster": (0.05, 0.3), "spread": (0.05, 0.3), "heat": (0.1, 0.3), "cool": (0.1, 0.3),
          "vibrate": (0.01, 0.3), "move_to": (0.05, 0.3), "move_toward": (0.05, 0.3), "align": (0.05, 0.3)}
SUCCESS_REWARD = 1.0
TRIES = 1000     # draws of a start state before the world is held to be too small or too full for the goal


class GoalError(ValueError):
    """A goal that cannot be read, or a world it cannot be given to; the message names what would be right."""


@dataclass(frozen=True)
class Goal:
    """One thing asked for: its `kind`; `argument` (a direction, axis or region; "to" or "by" of a temperature);
    `amount` (px of a push, degrees of a temperature); the `ids` meant, () for all; `bounds`, triples (0 for x, 1 for y;
    ">" or "<"; px). Make it by `Goal.parse`, which checks it."""
    kind: str
    argument: str | None = None
    amount: float | None = None
    ids: tuple = ()
    bounds: tuple = ()

    def __str__(self):
        number = lambda value: repr(float(value)).removesuffix(".0")      # noqa: E731
        match self.kind:
            case "push" | "align" | "move_to" if not self.ids:
                parts = [f"{GOAL_ARGUMENTS[self.kind][0]}={self.argument}"]
                parts += [f"distance={number(self.amount)}"] if self.amount is not None else []
            case "heat" | "cool":
                parts = [f"{self.argument}={number(self.amount)}"] if self.argument else []
            case "cluster":
                parts = [f"ids=[{','.join(map(str, self.ids))}]"] if self.ids else []
            case "move_to":
                parts = [f"id={self.ids[0]}", *("xy"[axis] + side + number(at) for axis, side, at in self.bounds)]
            case _:
                parts = map(str, self.ids)
        return f"{self.kind}({', '.join(parts)})"

    @classmethod
    def parse(cls, text):
        """The single goal written as `text`; GoalError if it is none."""
        plan = parse(text)
        if len(plan.goals) > 1:
            raise GoalError(f"{text!r} is a plan of several goals: one is wanted here")
        return plan.goals[0]


@dataclass(frozen=True)
class Plan:
    """What an episode asks for: phases, tuples of goals that must hold at once, to be reached in order."""
    phases: tuple

    @property
    def goals(self):
        """The goals of all phases, in order."""
        return tuple(goal for phase in self.phases for goal in phase)

    @property
    def canonical(self):
        """Equal for plans that ask for the same: the order of goals at once is only that in which they are said."""
        return tuple(map(frozenset, self.phases))

    def __str__(self):
        return " THEN ".join(" AND ".join(map(str, phase)) for phase in self.phases)


GOAL_ARGUMENTS = {"push": ("direction", DIRECTIONS), "align": ("axis", AXES), "move_to": ("region", REGIONS)}
KINDS = ("push", "cluster", "spread", "heat", "cool", "vibrate", "move_to", "move_toward", "align")


def parse(text):
    """The Plan written as `text` (see the grammar above). GoalError: a line that names the character and what was
    expected there."""
    parser = _Parser(text)
    phases = [[parser.goal()]]
    while not parser.sees(r"$"):
        if parser.take(r"THEN\b|AND\b", "AND, THEN or the end") == "THEN":
            phases.append([])
        phases[-1].append(parser.goal())
    return Plan(tuple(map(tuple, phases)))


class _Parser:
    """Reads a text from left to right; every failure names the place."""

    def __init__(self, text):
        self.text, self.at = text, 0

    def sees(self, pattern):
        return re.compile(rf"\s*(?:{pattern})").match(self.text, self.at)

    def fail(self, expected, at=None):
        at = self.sees("").end() if at is None else at
        found = re.match(r"\w+|.|$", self.text[at:], re.DOTALL)[0]
        raise GoalError(f"cannot read the goal {self.text!r}: at character {at + 1} expected {expected}, "
                        f"found {repr(found) if found else 'the end'}")

    def take(self, pattern, expected):
        found = self.sees(rf"({pattern})")
        if not found:
            self.fail(expected)
        self.at = found.end()
        return found[1]

    def choice(self, names):
        start, expected = self.sees("").end(), "one of " + ", ".join(names) if len(names) > 2 else " or ".join(names)
        word = self.take(r"\w+", expected)
        return word if word in names else self.fail(expected, start)

    def number(self, low, high):
        start, expected = self.sees("").end(), f"a number from {low:g} to {high:g}"
        value = float(self.take(r"\d+(\.\d*)?(e-?\d+)?|\.\d+", expected))
        return value if low <= value <= high else self.fail(expected, start)

    def particle(self, others=()):
        start, expected = self.sees("").end(), f"a particle's number from 0 to {MAX_IDS - 1}"
        value = int(self.take(r"\d+(?!\.)", expected)[:9])
        if value >= MAX_IDS:
            self.fail(expected, start)
        return value if value not in others else self.fail("another particle than before", start)

    def goal(self):
        kind = self.choice(KINDS)
        self.take(r"\(", '"("')
        goal = getattr(self, "_" + kind, lambda: {})()
        self.take(r"\)", '")"')
        return Goal(kind, **goal)

    def _named(self, kind):
        name, values = GOAL_ARGUMENTS[kind]
        self.take(rf"{name}\b", f"{name}=")
        self.take("=", '"="')
        return {"argument": self.choice(tuple(values))}

    def _push(self):
        goal = self._named("push")
        if self.sees(","):
            self.take(",", '","')
            self.take(r"distance\b", "distance=")
            self.take("=", '"="')
            goal["amount"] = self.number(1, 1000)
        return goal

    def _align(self):
        return self._named("align")

    def _temperature(self):
        if self.sees(r"\)"):
            return {}
        which = self.choice(("to", "by"))
        self.take("=", '"="')
        return {"argument": which, "amount": self.number(0 if which == "to" else 0.1, MAX_TEMPERATURE)}

    _heat = _cool = _temperature

    def _cluster(self):
        if self.sees(r"\)"):
            return {}
        for mark in (r"ids\b", "=", r"\["):
            self.take(mark, "ids=[")
        ids = [self.particle()]
        while len(ids) < 2 or not self.sees(r"\]"):
            self.take(",", '","' if len(ids) < 2 else '"," or "]"')
            ids.append(self.particle(ids))
        self.take(r"\]", '"]"')
        return {"ids": tuple(ids)}

    def _move_toward(self):
        first = self.particle()
        self.take(",", '","')
        return {"ids": (first, self.particle([first]))}

    def _move_to(self):
        if self.sees(r"region\b"):
            return self._named("move_to")
        self.take(r"id\b", "region= or id=")
        self.take("=", '"="')
        ids, bounds = (self.particle(),), {}
        while not bounds or not self.sees(r"\)"):
            self.take(",", '","' if not bounds else '"," or ")"')
            start = self.sees("").end()
            axis, side = "xy".index(self.choice(("x", "y"))), self.take("[<>]", '">" or "<"')
            if (axis, side) in bounds:
                self.fail("a bound that was not given before", start)
            bounds[axis, side] = self.number(0, 1000)
            if bounds.get((axis, ">"), -1) >= bounds.get((axis, "<"), 2000):
                self.fail("bounds with a place between them", start)
        return {"ids": ids, "bounds": tuple((*key, bounds[key]) for key in sorted(bounds))}


GOALS = tuple(map(parse, [*(f"push(direction={way})" for way in DIRECTIONS), "cluster()", "spread()", "heat()",
                               "cool()", "vibrate()", *(f"move_to(region={place})" for place in REGIONS),
                               *(f"align(axis={axis})" for axis in AXES)]))


@dataclass
class StateSummary:
    """What the goals look at, for B worlds: centroid [B,2] and extent [B,2] px, spread [B] px, speed [B] px/step,
    temperature [B] (means over each world's particles), position [B,N,2] px."""
    centroid: np.ndarray
    extent: np.ndarray
    spread: np.ndarray
    speed: np.ndarray
    temperature: np.ndarray
    position: np.ndarray

    @classmethod
    def from_sim(cls, sim, count, worlds=slice(None)):
        """Of the first `count[b]` particles of each world."""
        position, velocity = sim.position[worlds], sim.velocity[worlds]
        count = count[worlds]
        limit = int(count.max(initial=1))
        share = (np.arange(limit) < count[:, None]) / count[:, None]                        # [B,N], sums to 1
        mean = lambda values: np.einsum("bn,bn...->b...", share, values[:, :limit])          # noqa: E731
        centroid, drift = mean(position), mean(velocity)
        extent = np.sqrt(mean((position - centroid[:, None]) ** 2))
        speed = np.sqrt(mean((velocity - drift[:, None]) ** 2).sum(-1))
        return cls(centroid, extent, np.sqrt((extent**2).sum(-1)), speed, mean(sim.temperature[worlds]),
                   position[:, :limit].copy())

    def __getitem__(self, worlds):
        return StateSummary(*(getattr(self, name)[worlds] for name in self.__dataclass_fields__))

    def __setitem__(self, worlds, other):
        for name in self.__dataclass_fields__:
            getattr(self, name)[worlds] = getattr(other, name)


def dispersion(goal, at):
    """The spread [B], px, of the particles that a goal means."""
    if not goal.ids:
        return at.spread
    position = at.position[:, list(goal.ids)]
    return np.sqrt(((position - position.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))


def offset_to_target(goal, at):
    """What a particle lacks [B,2], px: to the bounds of move_to(id=...), to the other one of move_toward."""
    position = at.position[:, goal.ids[0]]
    if goal.kind == "move_toward":
        return at.position[:, goal.ids[1]] - position
    lacks = np.zeros_like(position)
    for axis, side, bound in goal.bounds:
        gap = bound - position[:, axis]
        lacks[:, axis] += np.maximum(0, gap) if side == ">" else np.minimum(0, gap)
    return lacks


def progress(goal, now, start, size):
    """How far the goal has come, [B]; in the unit of its own measure (px, temperature, px/step)."""
    match goal.kind:
        case "push":
            return (now.centroid - start.centroid) @ np.array(DIRECTIONS[goal.argument])
        case "cluster":
            return -dispersion(goal, now)
        case "spread":
            return now.spread
        case "heat":
            return now.temperature
        case "cool":
            return -now.temperature
        case "vibrate":
            return now.speed
        case "move_to" if not goal.ids:
            return -np.linalg.norm(now.centroid - np.array(REGIONS[goal.argument]) * size, axis=-1)
        case "move_to" | "move_toward":
            return -np.linalg.norm(offset_to_target(goal, now), axis=-1)
        case "align":
            return -now.extent[:, 1 - AXES[goal.argument]]


def target(goal, start, size):
    """The progress at which the goal's main condition holds, [B] or a number."""
    width = min(size)
    match goal.kind, goal.argument:
        case "push", _:
            return goal.amount or 0.22 * width
        case "cluster", _:
            return -(0.36 if goal.ids else 0.6) * dispersion(goal, start)
        case "spread", _:
            return 0.42 * width
        case "heat", "to":
            return goal.amount
        case "heat", _:
            return start.temperature + (goal.amount or 3)
        case "cool", "to":
            return -goal.amount
        case "cool", "by":
            return goal.amount - start.temperature
        case "cool", _:
            return -0.2 * start.temperature
        case "vibrate", _:
            return 2.5
        case "move_to", _:
            return 0 if goal.ids else -(0.06 if goal.argument == "center" else 0.1) * width
        case "move_toward", _:
            return -0.12 * width
        case "align", _:
            return -0.07 * width


def is_success(goal, now, start, size):
    """Whether the goal is reached, bool [B]."""
    done, width = progress(goal, now, start, size), min(size)
    main = done >= target(goal, start, size)
    moved = now.centroid - start.centroid
    match goal.kind:
        case "push":     # as asked, not slantwise
            sideways = np.abs(moved @ np.array(DIRECTIONS[goal.argument])[::-1])
            return main & (sideways <= 0.2 * target(goal, start, size))
        case "vibrate":  # on the spot
            return main & (np.linalg.norm(moved, axis=-1) <= 0.08 * width) & (now.spread <= 1.5 * start.spread)
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


GOAL_GROUPS = ("simple", "quantified", "per_object", "conjunction", "sequence")      # of plans, each with the next thing added


def goal_group(plan):
    """Which of the SETS a Plan belongs to."""
    if len(plan.goals) > 1:
        return "sequence" if len(plan.phases) > 1 else "conjunction"
    goal = plan.goals[0]
    return "per_object" if goal.ids else "quantified" if goal.amount is not None else "simple"


def goal_slots(plan):
    """What a plan says as a set of words, each with the number of its goal among `plan.goals`, as
    {"THEN", "1 push", "1 left", "2 heat", "2 by=3"} of "push(direction=left) THEN heat(by=3)"."""
    slots = {"THEN"} if len(plan.phases) > 1 else set()
    slots |= {"AND"} if any(len(phase) > 1 for phase in plan.phases) else set()
    for number, goal in enumerate(plan.goals, start=1):
        tokens = [goal.kind, *("xy"[axis] + side + f"{at:g}" for axis, side, at in goal.bounds)]
        if goal.amount is not None:
            tokens.append(f"{'distance' if goal.kind == 'push' else goal.argument}={goal.amount:g}")
        if goal.kind not in ("heat", "cool") and goal.argument:
            tokens.append(goal.argument)
        roles = ("particle", "to") if goal.kind == "move_toward" else ("particle",) * len(goal.ids)
        tokens += [f"{role} {i}" for role, i in zip(roles, goal.ids, strict=True)]
        slots |= {f"{number} {word}" for word in tokens}
    return slots


def is_feasible_start(plan, at, size):
    """Whether a state, a Summary of one world, is a fair start for a plan: its first goals neither met nor out of
    reach."""
    return all(_is_feasible_start(goal, at, size) for goal in plan.phases[0])


def _is_feasible_start(goal, at, size):
    """The same for a goal."""
    width = min(size)
    if goal.ids and max(goal.ids) >= at.position.shape[1] or is_success(goal, at, at, size)[0]:
        return False
    if goal.kind in ("push", "move_to", "align") and not goal.ids and at.spread[0] > 0.35 * width:
        return False        # all over the place: gathering it first takes longer than an episode
    match goal.kind:
        case "push":
            way = np.array(DIRECTIONS[goal.argument])
            room = np.where(way > 0, size - at.centroid[0], at.centroid[0]) @ np.abs(way)
            return room > (goal.amount or 0.22 * width) + 0.1 * width
        case "cluster":
            return dispersion(goal, at)[0] > (0.26 if goal.ids else 0.18) * width
        case "spread":
            return at.spread[0] < 0.16 * width
        case "align":
            along, across = at.extent[0, AXES[goal.argument]], at.extent[0, 1 - AXES[goal.argument]]
            return along > across > 0.12 * width
        case "move_to" if not goal.ids:
            to_go = np.linalg.norm(at.centroid[0] - np.array(REGIONS[goal.argument]) * size)
            return to_go > (0.33 if goal.argument == "center" else 0.3) * width
        case "move_to":
            inside = all(bound + MAX_RADIUS < size[axis] if side == ">" else bound > MAX_RADIUS
                         for axis, side, bound in goal.bounds)
            return inside and np.linalg.norm(offset_to_target(goal, at)) > 0.42 * width
        case "move_toward":
            return np.linalg.norm(offset_to_target(goal, at)) > 0.48 * width
        case "cool" if goal.argument:
            return goal.argument != "by" or at.temperature[0] > goal.amount
        case "cool":
            return at.temperature[0] > 1
        case "heat" if goal.argument != "to":
            return at.temperature[0] + (goal.amount or 3) < 0.9 * MAX_TEMPERATURE
        case _:
            return True


def sample_start_state(plan, rng, size, n):
    """A start for one world in which the plan's first goals are neither met nor out of reach.

    -> position [n,2], velocity [n,2], radius, mass, charge, temperature, conductivity [n]. Particles are at rest and
    do not overlap; most starts are a loose group somewhere in the world.
    """
    if (last := max((i for goal in plan.goals for i in goal.ids), default=0)) >= n:
        raise GoalError(f"{plan} means particle {last}, and the world has {n}, from 0 to {n - 1}: give more particles, "
                        "or a goal for these")
    first = {goal.kind: goal for goal in plan.phases[0]}
    pushes = [DIRECTIONS[goal.argument] for goal in plan.goals if goal.kind == "push"]
    radius = np.clip(rng.uniform(1.5, 3.0, n) * min(size) / 64, MIN_RADIUS, MAX_RADIUS)
    temperature = rng.uniform(3.0, 6.0, n) if "cool" in first else rng.uniform(0.0, 1.0, n)
    # share of the world; where some are meant and others not they are told apart more easily in a wide group
    wide = any(goal.ids for goal in plan.goals)
    extent = rng.uniform(*((0.07, 0.09) if "spread" in first else (0.16, 0.26) if wide else (0.12, 0.2)))
    margin = 0.08
    crowded = np.pi * (radius**2).sum() > 0.4 * size.prod()
    for _ in range(0 if crowded else max(TRIES * 8 // max(n, 8), 50)):
        middle = rng.uniform(0.2, 0.8, 2)
        if pushes:            # leave room to go, and do not start at the wall
            middle = np.clip(middle - 0.5 * np.array(pushes[0]) * rng.uniform(0.3, 0.6), 0.2, 0.8)
        position = np.clip(rng.normal(middle, extent, (n, 2)), margin, 1 - margin) * size
        position = _separate(position, radius, rng, size)
        extents = position.std(0)
        at = StateSummary(position.mean(0)[None], extents[None], np.sqrt((extents**2).sum())[None], np.zeros(1),
                     temperature.mean()[None], position[None])
        if at.spread[0] > 0.06 * min(size) and is_feasible_start(plan, at, size):
            break
    else:
        raise GoalError(f"no start for {plan} found in a world of {size[0]:.0f}x{size[1]:.0f} with {n} particles: "
                        "give fewer particles, at least two, a squarer world, or a goal that fits into it")
    # most particles carry some charge, a few none
    charge = rng.uniform(-0.6, 0.6, n) * (rng.random(n) < 0.75)
    return position, np.zeros((n, 2)), radius, (radius * 64 / min(size) / 2) ** 2, charge, temperature, np.full(n, 0.1)


def _separate(position, radius, rng, size):
    """Moves overlapping particles to free places near by; gives up after a while (the physics separates the rest)."""
    for i in range(len(position)):
        for _ in range(50):
            gap = np.linalg.norm(position[:i] - position[i], axis=1) - radius[:i] - radius[i]
            if (gap > 0.5).all():
                break
            position[i] = np.clip(position[i] + rng.normal(0, 0.06 * min(size), 2), radius[i] + 1, size - radius[i] - 1)
    return position
