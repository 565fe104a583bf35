"""Goals: the public functions on goals and plans. All other modules of the project import goals from here.

The goal kinds are in goal_kinds.py, the goal language in grammar.py, start states in starts.py. README.md in this
folder describes all goals, and how to add one.

Everything is measured on the particles that exist at the start of the episode. Success is measured against that
start; in a later phase, against the state in which the phase before was reached. Particle ids count from 0, and
particle `id` has the colour `physics.PALETTE[id % 8]`.
"""
import re
from collections.abc import Iterable

import numpy as np

from simulator.particles.goal_kind import (  # noqa: F401  (public here)
    GOAL_KINDS,
    GoalKind,
    dispersion,
    kind_of,
    register_goal,
)
from simulator.particles.goal_kinds import AXES, DIRECTIONS, REGIONS
from simulator.particles.grammar import Goal, GoalError, Plan, parse  # noqa: F401  (public here)
from simulator.particles.starts import is_feasible_start, sample_start_state  # noqa: F401  (public here)
from simulator.particles.state_summary import StateSummary

KINDS = tuple(GOAL_KINDS)       # of this package
SUCCESS_REWARD = 1.0            # of a plan, in equal parts for its phases
GOALS = tuple(map(parse, [
    *(f"push(direction={direction})" for direction in DIRECTIONS),
    "cluster()", "spread()", "heat()", "cool()", "vibrate()",
    *(f"move_to(region={region})" for region in REGIONS),
    *(f"align(axis={axis})" for axis in AXES),
]))
NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"      # as the format :g writes it
GOAL_GROUPS = ("simple", "quantified", "per_object", "conjunction", "sequence")


def progress(goal: Goal, now: StateSummary, start: StateSummary, size: np.ndarray) -> np.ndarray:
    """Return the progress [B] in the goal's own unit (px, temperature, px/step)."""
    return kind_of(goal).progress(goal, now, start, size)


def target(goal: Goal, start: StateSummary, size: np.ndarray) -> np.ndarray | float:
    """Return the progress at which the goal's main condition holds, [B] or a number."""
    return kind_of(goal).target(goal, start, size)


def is_success(goal: Goal, now: StateSummary, start: StateSummary, size: np.ndarray) -> np.ndarray:
    """Return whether the goal is reached, bool [B]."""
    return kind_of(goal).is_success(goal, now, start, size)


def reward(goal: Goal, now: StateSummary, before: StateSummary, start: StateSummary, size: np.ndarray) -> np.ndarray:
    """Return the dense reward [B] of one step, without SUCCESS_REWARD."""
    return kind_of(goal).reward(goal, now, before, start, size)


def offset_to_target(goal: Goal, at: StateSummary) -> np.ndarray:
    """Return the way [B,2], px, of the particle of move_to(id=...) or move_toward(...) to its target."""
    return kind_of(goal).offset_to_target(goal, at)


def goal_group(plan: Plan) -> str:
    """Return the group of GOAL_GROUPS that a plan belongs to."""
    if len(plan.goals) > 1:
        return "sequence" if len(plan.phases) > 1 else "conjunction"
    goal = plan.goals[0]
    if goal.ids:
        return "per_object"
    return "simple" if goal.amount is None else "quantified"


def goal_slots(plan: Plan) -> set[str]:
    """Return a plan as a set of slots, each with the number of its goal among `plan.goals`.

    "push(direction=left) THEN heat(by=3)" has the slots {"THEN", "1 push", "1 left", "2 heat", "2 by=3"}.
    """
    slots = {"THEN"} if len(plan.phases) > 1 else set()
    if any(len(phase) > 1 for phase in plan.phases):
        slots.add("AND")
    for number, goal in enumerate(plan.goals, start=1):
        slots |= {f"{number} {slot}" for slot in _slots_of(goal)}
    return slots


def plan_from_slots(slots: Iterable[str]) -> Plan | None:
    """Return the one plan whose `goal_slots` are `slots`, or None if no plan or several have them.

    The ids of a cluster are sorted: their order has no meaning.
    """
    slots = set(slots)
    by_number: dict[str, set[str]] = {}
    for slot in slots - {"AND", "THEN"}:
        number, _, name = slot.partition(" ")
        by_number.setdefault(number, set()).add(name)
    numbers = [str(number) for number in range(1, len(by_number) + 1)]
    if set(numbers) != set(by_number):
        return None
    goals = [_goal_from_slots(by_number[number]) for number in numbers]
    if not goals or None in goals:
        return None
    phases = _phases(goals, slots & {"AND", "THEN"})
    return Plan(phases) if phases else None


def _slots_of(goal: Goal) -> set[str]:
    return {goal.kind, *kind_of(goal).slots(goal)}


def _phases(goals: list[Goal], joins: set[str]) -> tuple[tuple[Goal, ...], ...] | None:
    """Return the goals in phases; None where "AND" and "THEN" leave none or several ways."""
    if joins == {"AND", "THEN"} or bool(joins) != (len(goals) > 1):
        return None
    return tuple((goal,) for goal in goals) if "THEN" in joins else (tuple(goals),)


def _goal_from_slots(slots: set[str]) -> Goal | None:
    """Return the goal that has exactly these slots, or None."""
    fields = {"kind": [], "argument": [], "amount": [], "bounds": [], "particle": [], "to": []}
    for slot in sorted(slots):
        for field, value in _read_slot(slot):
            fields[field].append(value)
    if len(fields["kind"]) != 1 or len(fields["argument"]) > 1 or len(fields["amount"]) > 1:
        return None
    goal = Goal(fields["kind"][0], *fields["argument"] or [None], *fields["amount"] or [None],
                ids=(*sorted(fields["particle"]), *fields["to"]), bounds=tuple(sorted(fields["bounds"])))
    try:        # the text of an incoherent goal does not read back
        return goal if Goal.parse(str(goal)) == goal and _slots_of(goal) == slots else None
    except (GoalError, TypeError):
        return None


def _read_slot(slot: str) -> list[tuple[str, object]]:
    """Return the fields that a slot sets, with their values."""
    if slot in GOAL_KINDS:
        return [("kind", slot)]
    if found := re.fullmatch(r"(particle|to) (\d+)", slot):
        return [(found[1], int(found[2]))]
    if found := re.fullmatch(rf"([xy])([<>]){NUMBER}", slot):
        return [("bounds", ("xy".index(found[1]), found[2], float(found[3])))]
    if found := re.fullmatch(rf"(\w+)={NUMBER}", slot):
        argument = [("argument", found[1])] if found[1] in ("to", "by") else []
        return [*argument, ("amount", float(found[2]))]
    return [("argument", slot)]
