"""The goal language: parsing, syntax errors, and slots."""
import numpy as np
import pytest
from goals_helpers import GOALS

from simulator.particles import goals as G
from simulator.particles.commands import load_instructions
from simulator.particles.goals import Goal, GoalError, parse


# --- notation ---------------------------------------------------------------------------------------------------
def any_goal(rng):
    """A random goal, written with random spaces."""
    some = lambda *values: values[rng.integers(len(values))]
    ids = rng.permutation(256)[:rng.integers(2, 6)]
    low, high = sorted(rng.uniform(0, 64, 2).round(rng.integers(0, 17)).tolist())
    bounds = rng.permutation([f"{axis}{side}{at!r}" for axis in "xy" for side, at in ((">", low), ("<", high + 1))])
    text = some(f"push(direction={some(*G.DIRECTIONS)})",
                f"push(direction={some(*G.DIRECTIONS)}, distance={rng.uniform(1, 60)})", "cluster()",
                f"cluster(ids=[{','.join(map(str, ids))}])", "spread()", "heat()", "cool()", "vibrate()",
                f"{some('heat', 'cool')}({some('to', 'by')}={rng.uniform(0.1, 10)})", f"align(axis={some(*G.AXES)})",
                f"move_to(region={some(*G.REGIONS)})", f"move_toward({ids[0]}, {ids[1]})",
                f"move_to(id={ids[0]}, {', '.join(bounds[:rng.integers(1, 5)])})")
    for mark in ",()=[]":
        text = text.replace(mark, some("", " ") + mark + some("", " "))
    return text


def test_ten_thousand_random_plans_round_trip():
    rng = np.random.default_rng(0)
    for _ in range(10_000):
        phases = [[any_goal(rng) for _ in range(rng.integers(1, 4))] for _ in range(rng.integers(1, 4))]
        plan = parse("  THEN ".join(" AND ".join(phase) for phase in phases))
        assert parse(str(plan)) == plan and [len(phase) for phase in plan.phases] == [len(phase) for phase in phases]
        assert all(Goal.parse(str(goal)) == goal for goal in plan.goals)


def test_parse_by_hand():
    assert parse("push(direction=left, distance=12)").phases == ((Goal("push", "left", 12.0),),)
    assert parse("move_to(id=1, y<20, x>48)").goals == (Goal("move_to", ids=(1,), bounds=((0, ">", 48), (1, "<", 20))),)
    assert parse("move_toward(1, 2)").goals == (Goal("move_toward", ids=(1, 2)),)
    assert parse("cluster(ids=[3,1,2])").goals[0].ids == (3, 1, 2) and parse("heat(to=3)").goals[0].amount == 3
    plan = parse("cluster() AND heat() THEN spread()")
    assert plan.phases == ((Goal("cluster"), Goal("heat")), (Goal("spread"),))
    assert str(plan) == "cluster() AND heat() THEN spread()"
    assert str(parse("move_to(id=1,x>48,y<20)")) == "move_to(id=1, x>48, y<20)"
    with pytest.raises(GoalError, match="expected a single goal"):
        Goal.parse("heat() AND cool()")


def test_all_goals():
    assert len(GOALS) == len(set(GOALS)) == 4 + 1 + 1 + 1 + 1 + 1 + 5 + 2


MALFORMED = [     # text, the character at fault (from 1), what is expected there
    ("", 1, "push, cluster"), ("   ", 4, "push, cluster"), ("fly()", 1, "push, cluster"),
    ("Push(direction=up)", 1, "push"),
    ("(cluster())", 1, "push"), ("1", 1, "push"), ("AND heat()", 1, "push"), ("왼쪽으로", 1, "push"),
    ("cluster", 8, '"("'), ("cluster[]", 8, '"("'), ("cluster(", 9, "ids="), ("cluster(1)", 9, "ids="),
    ("cluster(ids)", 12, "ids="), ("cluster(ids=1)", 13, "ids="), ("cluster(ids=[])", 14, "number"),
    ("cluster(ids=[1])", 15, '","'), ("cluster(ids=[1,])", 16, "number"), ("cluster(ids=[1,2)", 17, '"]"'),
    ("cluster(ids=[1,2]", 18, '")"'), ("cluster(ids=[1,1])", 16, "another"), ("cluster(ids=[1,256])", 16, "255"),
    ("cluster(ids=[1,-2])", 16, "number"), ("cluster(ids=[1,2.5])", 16, "number"), ("cluster())", 10, "the end"),
    ("spread(2)", 8, '")"'), ("vibrate(to=3)", 9, '")"'), ("push()", 6, "direction="), ("push(left)", 6, "direction="),
    ("push(direction)", 15, '"="'), ("push(direction=)", 16, "left, right"),
    ("push(direction=north)", 16, "left, right"),
    ("push(direction=left", 20, '")"'), ("push(direction=left distance=3)", 21, '")"'),
    ("push(direction=left, far=3)", 22, "distance="), ("push(direction=left, distance=0)", 31, "from 1 to 1000"),
    ("push(direction=left, distance=-3)", 31, "a number"), ("push(direction=left, distance=inf)", 31, "a number"),
    ("heat(3)", 6, "to or by"), ("heat(to=11)", 9, "from 0 to 10"), ("cool(by=0)", 9, "from 0.1 to 10"),
    ("heat(to=1, by=2)", 10, '")"'), ("align(axis=diagonal)", 12, "horizontal"), ("move_to()", 9, "region= or id="),
    ("move_to(region=middle)", 16, "center, top_left"), ("move_to(id=1)", 13, '","'),
    ("move_to(id=1, z>3)", 15, "x or y"),
    ("move_to(id=1, x=3)", 16, '">" or "<"'), ("move_to(id=1, x>3, x>4)", 20, "not given before"),
    ("move_to(id=1, x>40, x<20)", 21, "a place between"), ("move_toward(1)", 14, '","'),
    ("move_toward(1, 1)", 16, "another particle"), ("heat() AND", 11, "push, cluster"), ("heat() THEN ", 13, "push"),
    ("heat() cool()", 8, "AND, THEN"), ("heat() and cool()", 8, "AND, THEN"), ("heat() ANDcool()", 8, "AND, THEN"),
    ("heat(); cool()", 7, "AND, THEN")]


@pytest.mark.parametrize(("text", "character", "expected"), MALFORMED)
def test_a_syntax_error_names_the_place_and_what_is_expected(text, character, expected):
    with pytest.raises(GoalError) as caught:
        parse(text)
    message = str(caught.value)
    assert f"at character {character} expected" in message and expected in message and "\n" not in message


def test_enough_malformed_goals():
    assert len({text for text, *_ in MALFORMED}) >= 50


# --- slots ---------------------------------------------------------------------------------------------------
def test_plan_from_slots_inverts_goal_slots_on_the_corpus():
    for plan in {parse(row["goal"]) for row in load_instructions()}:
        assert G.plan_from_slots(G.goal_slots(plan)) == plan


def test_plan_from_slots_by_hand():
    plan = parse("push(direction=left) AND heat(by=3)")
    assert G.plan_from_slots(["AND", "1 push", "1 left", "2 heat", "2 by=3"]) == plan
    assert G.plan_from_slots(["THEN", "1 cool", "2 vibrate"]) == parse("cool() THEN vibrate()")
    assert G.plan_from_slots(["1 move_toward", "1 to 1", "1 particle 2"]) == parse("move_toward(2, 1)")
    assert G.plan_from_slots(["1 cluster", "1 particle 11", "1 particle 2"]) == parse("cluster(ids=[2,11])")
    eleven = parse(" THEN ".join(["heat()"] * 10 + ["cool()"]))
    assert G.plan_from_slots(G.goal_slots(eleven)) == eleven


@pytest.mark.parametrize("slots", [
    [], ["THEN"], ["1 cool", "1 vibrate"], ["1 push"], ["1 left"], ["1 push", "1 left", "1 right"],
    ["1 push", "1 horizontal"], ["2 cool"], ["1 cool", "3 heat", "THEN"], ["1 cool", "2 heat"], ["1 cool", "AND"],
    ["1 cool", "1 by=3", "1 by=2"], ["1 cool", "1 to"], ["1 push", "1 left", "1 by=3"],
    ["1 push", "1 left", "1 distance=0"],
    ["1 cluster", "1 particle 1"], ["1 cluster", "1 to 1", "1 particle 2"], ["1 move_toward", "1 to 1"],
    ["1 move_to", "1 x>48"], ["1 move_to", "1 particle 1"], ["1 move_to", "1 center", "1 particle 1", "1 x>48"],
    ["1 move_to", "1 particle 1", "1 x>48", "1 x<20"], ["1 vibrate", "1 left"], ["cool"], ["x cool"], ["1 fly"],
    ["THEN", "AND", "1 heat", "2 cool", "3 spread"]])       # the last: two plans have these slots
def test_incoherent_slots_are_no_plan(slots):
    assert G.plan_from_slots(slots) is None
