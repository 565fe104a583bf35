"""The goal language: Goal and Plan as plain data, and `parse`, which reads them from text.

`parse(str(plan)) == plan`, and spaces do not matter:

    plan  = phase, {"THEN", phase}                  phases are reached one after the other
    phase = goal, {"AND", goal}                     goals of one phase must hold at once
    goal  = kind, "(", arguments, ")"               each kind of goal_kinds.py reads its own arguments

    push(direction=left | right | up | down [, distance=PX])
    cluster([ids=[ID, ID, ...]])                    all particles, or these
    spread()    vibrate()
    heat([to=DEGREES | by=DEGREES])    cool([to=DEGREES | by=DEGREES])
    align(axis=horizontal | vertical)
    move_to(region=center | top_left | top_right | bottom_left | bottom_right)
    move_to(id=ID, x>PX, y<PX)                      at least one bound; x to the right, y downwards
    move_toward(ID, ID)                             the first particle goes to the second
"""
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn, Self

from config import UserError
from simulator.particles import goal_kinds  # noqa: F401  (registers the kinds)
from simulator.particles.goal_kind import GOAL_KINDS, kind_of

MAX_IDS = 256      # particle ids go from 0 to MAX_IDS - 1


class GoalError(UserError):
    """A goal with a syntax error, or one that does not fit into its environment."""


@dataclass(frozen=True)
class Goal:
    """One goal. `Goal.parse` makes one and checks it.

    argument  a direction, an axis or a region; "to" or "by" of a temperature
    amount    px of a push, degrees of a temperature
    ids       the particles meant; () for all
    bounds    triples (0 for x or 1 for y, ">" or "<", px)
    """
    kind: str
    argument: str | None = None
    amount: float | None = None
    ids: tuple[int, ...] = ()
    bounds: tuple[tuple[int, str, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(kind_of(self).format_arguments(self))})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the single goal written as `text`. GoalError for a syntax error or a plan of several goals."""
        plan = parse(text)
        if len(plan.goals) > 1:
            raise GoalError(f"{text!r} is a plan of several goals; expected a single goal")
        return plan.goals[0]


@dataclass(frozen=True)
class Plan:
    """The goals of an episode: phases, tuples of goals that must hold at once, to be reached in order."""
    phases: tuple[tuple[Goal, ...], ...]

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The goals of all phases, in order."""
        return tuple(goal for phase in self.phases for goal in phase)

    @property
    def canonical(self) -> tuple[frozenset[Goal], ...]:
        """Equal for equivalent plans: the order of the goals of one phase does not matter."""
        return tuple(map(frozenset, self.phases))

    def __str__(self) -> str:
        return " THEN ".join(" AND ".join(map(str, phase)) for phase in self.phases)


def parse(text: str) -> Plan:
    """Return the Plan written as `text`. GoalError names the character of a syntax error and what is expected there."""
    reader = GoalReader(text)
    phases = [[reader.goal()]]
    while not reader.peek("$"):
        if reader.expect(r"THEN\b|AND\b", "AND, THEN or the end") == "THEN":
            phases.append([])
        phases[-1].append(reader.goal())
    return Plan(tuple(map(tuple, phases)))


class GoalReader:
    """A recursive-descent parser of the goal language. Every method reads on from `position`.

    All methods but `peek` raise GoalError where the text is not what they expect.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def peek(self, pattern: str) -> re.Match[str] | None:
        """Return the match of a regular expression with the text ahead, after spaces; read nothing."""
        return re.compile(rf"\s*(?:{pattern})").match(self.text, self.position)

    def fail(self, expected: str, start: int | None = None) -> NoReturn:
        """Raise a GoalError that points to character `start`, by default the next one."""
        start = self._next_start() if start is None else start
        found = re.match(r"\w+|.|$", self.text[start:], re.DOTALL)[0]
        raise GoalError(f"cannot read the goal {self.text!r}: at character {start + 1} expected {expected}, "
                        f"found {repr(found) if found else 'the end'}")

    def expect(self, pattern: str, expected: str) -> str:
        """Read and return what matches `pattern`; `expected` describes it in the error message."""
        found = self.peek(f"({pattern})")
        if not found:
            self.fail(expected)
        self.position = found.end()
        return found[1]

    def goal(self) -> Goal:
        """Read and return one goal."""
        name = self.choice(tuple(GOAL_KINDS))
        self.expect(r"\(", '"("')
        fields = GOAL_KINDS[name].parse_arguments(self)
        self.expect(r"\)", '")"')
        return Goal(name, **fields)

    def choice(self, values: Iterable[str]) -> str:
        """Read and return one of the words `values`."""
        values = tuple(values)
        start = self._next_start()
        expected = "one of " + ", ".join(values) if len(values) > 2 else " or ".join(values)
        word = self.expect(r"\w+", expected)
        return word if word in values else self.fail(expected, start)

    def name(self, name: str, expected: str | None = None) -> None:
        """Read `name=`."""
        self.expect(rf"{name}\b", expected or f"{name}=")
        self.expect("=", '"="')

    def keyword(self, name: str, values: Iterable[str]) -> str:
        """Read `name=value` and return the value, one of `values`."""
        self.name(name)
        return self.choice(values)

    def number(self, low: float, high: float) -> float:
        """Read and return a number from `low` to `high`."""
        start = self._next_start()
        expected = f"a number from {low:g} to {high:g}"
        value = float(self.expect(r"\d+(\.\d*)?(e-?\d+)?|\.\d+", expected))
        return value if low <= value <= high else self.fail(expected, start)

    def particle_id(self, others: Iterable[int] = ()) -> int:
        """Read and return the id of a particle that is not among `others`."""
        start = self._next_start()
        expected = f"a particle's number from 0 to {MAX_IDS - 1}"
        value = int(self.expect(r"\d+(?!\.)", expected)[:9])
        if value >= MAX_IDS:
            self.fail(expected, start)
        return value if value not in others else self.fail("another particle than before", start)

    def id_list(self) -> tuple[int, ...]:
        """Read `ids=[ID, ID, ...]` and return the ids, two or more."""
        for token in (r"ids\b", "=", r"\["):
            self.expect(token, "ids=[")
        ids = [self.particle_id()]
        for expected in self._separators(r"\]"):
            self.expect(",", expected)
            ids.append(self.particle_id(ids))
        self.expect(r"\]", '"]"')
        return tuple(ids)

    def bounds(self) -> tuple[tuple[int, str, float], ...]:
        """Read `, x>PX, y<PX` and return the bounds, one or more, sorted."""
        bounds = {}
        for expected in self._separators(r"\)"):
            self.expect(",", expected)
            start = self._next_start()
            axis = "xy".index(self.choice(("x", "y")))
            side = self.expect("[<>]", '">" or "<"')
            if (axis, side) in bounds:
                self.fail("a bound that was not given before", start)
            bounds[axis, side] = self.number(0, 1000)
            if bounds.get((axis, ">"), -1) >= bounds.get((axis, "<"), 2000):
                self.fail("bounds with a place between them", start)
        return tuple((*key, bounds[key]) for key in sorted(bounds))

    def _separators(self, end: str) -> Iterator[str]:
        """Yield what is expected before each further item of a list: once, then until `end` follows."""
        yield '","'
        while not self.peek(end):
            yield f'"," or "{end[-1]}"'

    def _next_start(self) -> int:
        """Return the index of the next character that is no space."""
        return self.peek("").end()
