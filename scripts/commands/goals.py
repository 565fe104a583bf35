"""Draw random goals of the particle environment, and the requests to make for them."""
import random
from dataclasses import dataclass

from build_corpus import is_held_out

from simulator.particles.goals import AXES, DIRECTIONS, REGIONS, parse
from simulator.particles.physics import PALETTE

LANGUAGES = {"ko": "Korean", "en": "English"}
# half planes (axis, comparison, pixels) and their English names
SIDES = {(0, "<", 16): "the far left", (0, ">", 48): "the far right", (1, "<", 16): "the very top",
         (1, ">", 48): "the very bottom", (0, "<", 32): "the left half", (0, ">", 32): "the right half",
         (1, "<", 32): "the upper half", (1, ">", 32): "the lower half"}
# The aspects that a goal changes. Goals that share an aspect conflict, or make an odd pair.
ASPECTS = {"push": "place", "move_to(region": "place", "vibrate": "place size", "spread": "shape size",
           "cluster": "shape", "align": "shape", "cluster(ids": "shape one", "move_to(id": "one", "move_toward": "one",
           "heat": "temperature", "cool": "temperature"}


@dataclass(frozen=True)
class Task:
    """One request: `variations` instructions in one language for goal `number` of a seed."""
    seed: int
    number: int
    language: str
    goal: str
    variations: int
    model: str


def make_tasks(seed: int, n_goals: int, n_variations: int, languages: list[str], model: str) -> list[Task]:
    """Return the requests for goals 0 to n_goals - 1 of a seed, in each language."""
    goals = [draw_goal(seed, number) for number in range(n_goals)]
    return [Task(seed, number, language, goal, n_variations, model)
            for number, goal in enumerate(goals) for language in languages]


def draw_goal(seed: int, number: int) -> str:
    """Return goal `number` of a seed: one goal, two at once, or two or three in order."""
    rng = random.Random(f"{seed}/{number}")
    goal = _draw_plan(rng)
    while any(is_held_out(goal, language) for language in LANGUAGES):
        goal = _draw_plan(rng)
    return goal


def conflicts(a: str, b: str) -> bool:
    """Return whether two goals change the same aspect."""
    return not _aspects(a).isdisjoint(_aspects(b))


def _aspects(goal: str) -> set[str]:
    prefixes = [prefix for prefix in ASPECTS if goal.startswith(prefix)]
    return set(ASPECTS[max(prefixes, key=len)].split())


def _kind(goal: str) -> str:
    return goal.partition("(")[0]


def _draw_plan(rng: random.Random) -> str:
    plan = [rng.choice(FORMS)(rng)]
    for word in rng.choices(("", "AND", "THEN", "AND THEN", "THEN THEN"), (65, 15, 15, 2, 3))[0].split():
        plan += [word, _draw_next(rng, plan, word)]
    return str(parse(" ".join(plan)))


def _draw_next(rng: random.Random, plan: list[str], word: str) -> str:
    """Return a goal that may follow `plan` after AND or THEN. Only push and move goals may repeat their kind."""
    while True:
        goal = rng.choice(FORMS)(rng)
        repeats_kind = not goal.startswith(("push", "move")) and _kind(goal) in map(_kind, plan)
        if goal not in plan and not repeats_kind and not (word == "AND" and conflicts(plan[-1], goal)):
            return goal


def _draw_ids(rng: random.Random, count: int) -> list[int]:
    return rng.sample(range(len(PALETTE)), count)


def _draw_bounds(rng: random.Random) -> str:
    axes = rng.choice(((0,), (1,), (0, 1)))
    bounds = [rng.choice([bound for bound in SIDES if bound[0] == axis]) for axis in axes]
    return ", ".join(f"{'xy'[axis]}{comparison}{pixels}" for axis, comparison, pixels in bounds)


# the forms of one goal; each is drawn equally often
FORMS = (
    lambda rng: f"push(direction={rng.choice(list(DIRECTIONS))})",
    lambda rng: f"push(direction={rng.choice(list(DIRECTIONS))}, distance={rng.randint(5, 30)})",
    lambda rng: "cluster()",
    lambda rng: f"cluster(ids={sorted(_draw_ids(rng, rng.randint(2, 4)))})",
    lambda rng: "spread()",
    lambda rng: "vibrate()",
    lambda rng: "heat()",
    lambda rng: rng.choice((f"heat(by={rng.randint(1, 6)})", f"heat(to={rng.randint(4, 9)})")),
    lambda rng: "cool()",
    lambda rng: rng.choice((f"cool(by={rng.randint(1, 3)})", f"cool(to={rng.randint(0, 2)})")),
    lambda rng: f"align(axis={rng.choice(list(AXES))})",
    lambda rng: f"move_to(region={rng.choice(list(REGIONS))})",
    lambda rng: f"move_to(id={_draw_ids(rng, 1)[0]}, {_draw_bounds(rng)})",
    lambda rng: "move_toward({}, {})".format(*_draw_ids(rng, 2)),
)
