"""Goals: their language, states just inside and outside of success, rewards worked by hand, slots, feasible starts."""
import numpy as np
import pytest

from simulator.evaluation import run_episodes
from simulator.particles import goals as G
from simulator.particles import starts
from simulator.particles.actions import Action, ActionType
from simulator.particles.commands import load_instructions
from simulator.particles.env import ParticleVectorEnv
from simulator.particles.goals import Goal, GoalError, StateSummary, parse
from simulator.particles.kernels import MAX_RADIUS, MIN_RADIUS
from simulator.particles.physics import ParticleSimulator
from simulator.particles.task import ParticleTask

SIZE = np.array([64.0, 64.0])
NO_NOISE = {"em_force_strength": 0, "thermal_radiation_rate": 0, "heat_dissipation": 0, "vibration_scale": 0}
GOALS = [plan.goals[0] for plan in G.GOALS]
ids = [str(goal) for goal in GOALS]


def state(centroid=(32, 32), extent=(6, 8), speed=0.0, temperature=4.0, positions=((10, 10), (40, 50), (20, 20))):
    """Return the StateSummary of one environment; with the defaults the spread is 10."""
    extent = np.array([extent], float)
    return StateSummary(np.array([centroid], float), extent, np.sqrt((extent**2).sum(-1)), np.array([float(speed)]),
                        np.array([float(temperature)]), np.array([positions], float))


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


# --- measures ---------------------------------------------------------------------------------------------------
def test_summary_by_hand():
    """Three particles at (10,20), (20,20), (30,20): centroid (20,20), mean square of -10,0,10 is 200/3 along x.
    Velocities (1,0), (1,3), (1,-3): the drift (1,0) is no speed; 0,3,-3 have mean square 6. A fourth is not counted."""
    sim = ParticleSimulator(1, 5)
    sim.count[0] = 4
    sim.position[0, :4] = (10, 20), (20, 20), (30, 20), (60, 60)
    sim.velocity[0, :4] = (1, 0), (1, 3), (1, -3), (9, 9)
    sim.temperature[0, :4] = 1, 2, 6, 10
    s = StateSummary.from_sim(sim, np.array([3]))
    np.testing.assert_allclose(s.centroid, [[20, 20]])
    np.testing.assert_allclose(s.extent, [[np.sqrt(200 / 3), 0]], atol=1e-12)
    np.testing.assert_allclose([s.spread[0], s.speed[0], s.temperature[0]], [np.sqrt(200 / 3), np.sqrt(6), 3])


# W = 64 and the start is state(): centroid (32,32), extent (6,8), spread 10, temperature 4. Each row: inside, outside.
CORNERS = {"top_left": (14.08, 14.08), "top_right": (49.92, 14.08), "bottom_left": (14.08, 49.92),
           "bottom_right": (49.92, 49.92)}
EDGES = [
    # 0.22 W = 14.08 along, a fifth of that, 2.816, aside
    ("push(direction=left)", {"centroid": (17.91, 32)}, {"centroid": (17.93, 32)}),
    ("push(direction=right)", {"centroid": (46.09, 32)}, {"centroid": (46.07, 32)}),
    ("push(direction=up)", {"centroid": (32, 17.91)}, {"centroid": (32, 17.93)}),
    ("push(direction=down)", {"centroid": (32, 46.09)}, {"centroid": (32, 46.07)}),
    ("push(direction=left)", {"centroid": (10, 34.81)}, {"centroid": (10, 34.82)}),
    ("push(direction=right)", {"centroid": (50, 29.19)}, {"centroid": (50, 29.18)}),
    ("push(direction=up)", {"centroid": (29.19, 10)}, {"centroid": (29.18, 10)}),
    ("push(direction=down)", {"centroid": (34.81, 50)}, {"centroid": (34.82, 50)}),
    ("push(direction=left)", {"centroid": (17, 32)}, {"centroid": (47, 32)}),          # not the other way
    # spread 0.6 * 10 = 6 = |(3.6, 4.8)|, and 0.42 W = 26.88 = |(16.128, 21.504)|
    ("cluster()", {"extent": (3.599, 4.799)}, {"extent": (3.601, 4.801)}),
    ("spread()", {"extent": (16.129, 21.505)}, {"extent": (16.127, 21.503)}),
    ("heat()", {"temperature": 7.001}, {"temperature": 6.999}),                        # 4 + 3
    ("cool()", {"temperature": 0.799}, {"temperature": 0.801}),                        # 0.2 * 4
    ("vibrate()", {"speed": 2.501}, {"speed": 2.499}),
    ("vibrate()", {"speed": 3, "centroid": (37.11, 32)}, {"speed": 3, "centroid": (37.13, 32)}),       # 0.08 W = 5.12
    ("vibrate()", {"speed": 3, "extent": (8.99, 11.99)}, {"speed": 3, "extent": (9.01, 12.01)}),       # 15 = |(9,12)|
    ("move_to(region=center)", {"centroid": (32, 35.83)}, {"centroid": (32, 35.85)}),                  # 0.06 W = 3.84
    *((f"move_to(region={name})", {"centroid": (x + 6.39, y)}, {"centroid": (x + 6.41, y)})            # 0.1 W = 6.4
      for name, (x, y) in CORNERS.items()),
    ("align(axis=horizontal)", {"extent": (9, 4.479)}, {"extent": (9, 4.481)}),                        # 0.07 W = 4.48
    ("align(axis=horizontal)", {"extent": (6.01, 3)}, {"extent": (5.99, 3)}),                          # twice as long
    ("align(axis=vertical)", {"extent": (4.479, 9)}, {"extent": (4.481, 9)}),
    ("align(axis=vertical)", {"extent": (3, 6.01)}, {"extent": (3, 5.99)}),
    ("push(direction=left, distance=5)", {"centroid": (26.99, 32)}, {"centroid": (27.01, 32)}),
    ("heat(to=6)", {"temperature": 6.001}, {"temperature": 5.999}), ("heat(by=1)", {"temperature": 5},
     {"temperature": 4.99}),
    ("cool(to=3)", {"temperature": 2.999}, {"temperature": 3.001}), ("cool(by=1)", {"temperature": 3},
     {"temperature": 3.01}),
    # the particles of the start lie at (10,10), (40,50), (20,20); 0.12 W = 7.68
    ("move_to(id=0, x>48)", {"positions": [(48.01, 3), (0, 0), (0, 0)]}, {"positions": [(47.99, 3), (60, 0), (60, 0)]}),
    ("move_to(id=2, x<16, y>48)", {"positions": [(0, 0), (0, 0), (15.9, 48.1)]},
     {"positions": [(0, 0), (0, 0), (15.9, 47.9)]}),
    ("move_toward(0, 2)", {"positions": [(10, 10), (0, 0), (10, 17.6)]}, {"positions": [(10, 10), (0, 0), (10, 17.7)]}),
    # particles 0 and 2 are 10 sqrt(2) apart, their spread is half of that: 0.36 of it is reached 3.6 sqrt(2) apart
    ("cluster(ids=[0,2])", {"positions": [(10, 10), (64, 64), (13.59, 13.59)]},
     {"positions": [(10, 10), (10, 10), (13.61, 13.61)]}),
]


@pytest.mark.parametrize(("goal", "inside", "outside"), EDGES)
def test_reached_just_inside_and_not_just_outside(goal, inside, outside):
    goal = Goal.parse(goal)
    assert G.is_success(goal, state(**inside), state(), SIZE)[0]
    assert not G.is_success(goal, state(**outside), state(), SIZE)[0]


def test_every_goal_has_an_edge_above():
    assert {goal for goal, *_ in EDGES} > set(ids)
    assert {goal.partition("(")[0] for goal, *_ in EDGES} == set(G.KINDS)


# --- rewards ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("goal", "before", "now", "expected"), [
    ("push(direction=left)", {}, {"centroid": (30, 32)}, 0.05 * 2),
    ("push(direction=left)", {}, {"centroid": (34, 32)}, -0.1),
    ("push(direction=up)", {}, {"centroid": (32, 31)}, 0.05), ("push(direction=left)", {}, {"centroid": (21, 32)}, 0.5),
    ("push(direction=down)", {"centroid": (32, 40)}, {"centroid": (32, 44)}, 0.05 * 4),
    ("cluster()", {}, {"extent": (4.8, 6.4)}, 0.05 * 2), ("cluster()", {}, {"extent": (6.6, 8.8)}, -0.05),
    ("spread()", {}, {"extent": (7.2, 9.6)}, 0.1), ("spread()", {}, {"extent": (3, 4)}, -0.25),
    ("heat()", {}, {"temperature": 5}, 0.1), ("heat()", {}, {"temperature": 2}, -0.2),
    ("cool()", {}, {"temperature": 2}, 0.2), ("cool()", {}, {"temperature": 8}, -0.3),
    ("vibrate()", {}, {"speed": 1.5}, 0.015), ("vibrate()", {"speed": 1.5}, {"speed": 1.5}, 0.015),
    ("move_to(region=center)", {"centroid": (32, 50)}, {"centroid": (32, 46)}, 0.2),
    ("move_to(region=top_left)", {"centroid": (14.08, 40)}, {"centroid": (14.08, 42)}, -0.1),
    # 20 px left and 30 px up of the bounds: 5 px nearer along y; then beyond the bound, which pays no more
    ("move_to(id=0, x>30, y>40)", {},
     {"positions": [(10, 15), (0, 0), (0, 0)]}, 0.05 * (np.hypot(20, 30) - np.hypot(20, 25))),
    ("move_to(id=0, x>12)", {}, {"positions": [(30, 10), (0, 0), (0, 0)]}, 0.05 * 2),
    ("move_toward(0, 2)", {}, {"positions": [(13, 14), (0, 0), (19, 22)]}, 0.05 * (np.sqrt(200) - 10)),
    ("cluster(ids=[0,2])", {}, {"positions": [(12, 10), (0, 0), (18, 18)]}, 0.05 * (np.sqrt(50) - 5)),
    ("align(axis=horizontal)", {}, {"extent": (6, 6)}, 0.1), ("align(axis=vertical)", {}, {"extent": (9, 8)}, -0.15)])
def test_reward_by_hand(goal, before, now, expected):
    given = G.reward(Goal.parse(goal), state(**now), state(**before), state(), SIZE)
    np.testing.assert_allclose(given, [expected], atol=1e-9)


@pytest.mark.parametrize(("goal", "at", "beyond"), [
    ("push(direction=left)", {"centroid": (17.92, 50)}, {"centroid": (8, 50)}),     # slantwise: not reached, nor paid
    ("cluster()", {"extent": (3.6, 4.8)}, {"extent": (1, 1)}),
    ("spread()", {"extent": (16.128, 21.504)}, {"extent": (24, 24)}),
    ("heat()", {"temperature": 7}, {"temperature": 9}), ("cool()", {"temperature": 0.8}, {"temperature": 0}),
    ("move_to(region=center)", {"centroid": (32, 35.84)}, {"centroid": (32, 32)}),
    ("align(axis=horizontal)", {"extent": (3, 4.48)}, {"extent": (3, 2)})])
def test_going_on_beyond_the_target_pays_nothing(goal, at, beyond):
    goal = Goal.parse(goal)
    np.testing.assert_allclose(G.reward(goal, state(**beyond), state(**at), state(), SIZE), [0], atol=1e-9)


def test_faster_than_needed_pays_no_more():
    np.testing.assert_allclose(G.reward(Goal("vibrate"), state(speed=9), state(), state(), SIZE), [0.025])


@pytest.mark.parametrize("goal", GOALS, ids=ids)
def test_reward_is_bounded(goal):
    rng, bound = np.random.default_rng(0), G.kind_of(goal).reward_bound
    def anything():
        extent = rng.uniform(0, 30, (500, 2))
        return StateSummary(rng.uniform(0, 64, (500, 2)), extent, np.sqrt((extent**2).sum(-1)), rng.uniform(0, 10, 500),
                       rng.uniform(0, 10, 500), rng.uniform(0, 64, (500, 8, 2)))
    rewards = G.reward(goal, anything(), anything(), anything(), SIZE)
    assert np.isfinite(rewards).all() and (np.abs(rewards) <= bound).all()
    assert rewards.max() > 0 and (rewards.min() >= 0) == (goal.kind == "vibrate")


def drifting(goal, velocity):
    """Return a task of one environment whose eight cold, neutral particles move with `velocity` from the middle."""
    task = ParticleTask(1, goals=[goal], physics=NO_NOISE)
    task.start_episode(np.array([0]))
    x, y = np.meshgrid([26, 30, 34, 38], [29, 35])
    task.sim.position[0, :8] = np.stack([x, y], -1).reshape(-1, 2)
    task.sim.velocity[0, :8] = velocity
    task.sim.radius[0, :8], task.sim.charge[0, :8], task.sim.temperature[0, :8] = 1.5, 0, 0
    task.current, task.initial = (StateSummary.from_sim(task.sim, task.num_scored) for _ in range(2))
    return task


def test_progress_counts_from_the_start_of_the_episode():
    """2 px/step to the left: 14.08 px are reached at step 8. Seven times 0.05 * 2; then 0.05 * 0.08, capped, plus 1."""
    task, noop = drifting("push(direction=left)", (-2, 0)), Action(ActionType.NOOP).to_vector()[None]
    steps = [task.step(noop) for _ in range(8)]
    np.testing.assert_allclose([rewards[0] for rewards, *_ in steps], [0.1] * 7 + [1.004], atol=1e-6)
    assert [bool(success[0]) for _, success, *_ in steps] == [False] * 7 + [True]


@pytest.mark.parametrize("goal", ["push(direction=left)", "cluster()", "heat()", "move_to(region=bottom_right)"])
def test_added_particles_do_not_count(goal):
    noop, add = Action(ActionType.NOOP), Action(ActionType.ADD_PARTICLE, x=60, y=60, radius=2)
    one, other = drifting(goal, (0, 0)), drifting(goal, (0, 0))
    results = [(one.step(noop.to_vector()[None]), other.step(add.to_vector()[None])) for _ in range(3)]
    assert one.sim.count[0] == 8 and other.sim.count[0] > 8
    for name in StateSummary.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one.current, name), getattr(other.current, name))
    assert all(a[0] == b[0] and not b[1] for a, b in results)


# --- plans ------------------------------------------------------------------------------------------------------
def test_goals_at_once_share_the_reward_and_both_must_hold():
    """2 px/step to the left pay 0.1 for the push; half of it with a second goal, which is never reached."""
    noop = Action(ActionType.NOOP).to_vector()[None]
    task = drifting("push(direction=left) AND heat()", (-2, 0))
    steps = [task.step(noop) for _ in range(8)]
    np.testing.assert_allclose([rewards[0] for rewards, *_ in steps], [0.05] * 7 + [0.002], atol=1e-6)
    assert not any(success[0] for _, success, *_ in steps)
    task.sim.temperature[:] = 5       # 0.1 * 3, the most there is to gain, and 1
    rewards, success, truncated, _ = task.step(noop)
    assert success[0] and not truncated[0]
    np.testing.assert_allclose(rewards, [0.15 + 1], atol=1e-6)


def test_the_next_phase_is_measured_from_where_the_first_was_reached():
    """2 px/step: 8 px are reached at step 4, where half of the success is paid; 5 more px take 3 steps more."""
    noop = Action(ActionType.NOOP).to_vector()[None]
    task = drifting("push(direction=left, distance=8) THEN push(direction=left, distance=5)", (-2, 0))
    steps = [task.step(noop) for _ in range(7)]
    np.testing.assert_allclose([rewards[0] for rewards, *_ in steps], [0.1] * 3 + [0.6, 0.1, 0.1, 0.55], atol=1e-6)
    assert [bool(success[0]) for _, success, *_ in steps] == [False] * 6 + [True]


def test_a_plan_goes_on_after_a_restore():
    plan = "push(direction=left, distance=8) THEN push(direction=left, distance=5)"
    noop, task, other = Action(ActionType.NOOP).to_vector()[None], drifting(plan, (-2, 0)), drifting("heat()", (0, 0))
    for _ in range(5):
        task.step(noop)
    other.restore(task.state())
    assert other.stage[0] == 1
    for _ in range(2):
        one, two = task.step(noop), other.step(noop)
        assert one[0] == two[0] and one[1] == two[1]


@pytest.mark.parametrize(("plan", "wrong"), [
    ("move_to(id=8, x>48)", "means particle 8, and the environment has 8"), ("move_to(id=0, x>63)", "a goal that fits"),
    ("push(direction=left, distance=60)", "a goal that fits"), ("cool(to=9)", "a goal that fits")])
def test_a_goal_that_does_not_fit_into_the_environment_is_refused(plan, wrong):
    task = ParticleTask(1, goals=[plan])
    with pytest.raises(GoalError, match=wrong):
        task.start_episode(np.array([0]))


@pytest.mark.parametrize("plan", [
    "move_to(id=1, x>48)", "move_to(id=7, x<16, y<16)", "move_toward(1, 2)", "cluster(ids=[1,2,3])", "heat(by=5)",
    "cool(to=1)", "push(direction=up, distance=20)", "push(direction=left) AND heat()", "cluster() AND cool()",
    "move_to(id=1, x>48) AND heat()", "heat() THEN push(direction=up)", "cluster() THEN spread() THEN heat()"])
def test_the_expert_reaches_every_kind_of_plan(plan):
    env = ParticleVectorEnv(32, max_steps=64)
    seeds, plans = 1000 + np.arange(32), [parse(plan)] * 32
    result = run_episodes(env, lambda obs, envs: env.expert_actions()[envs], seeds, plans)
    assert result["success"].sum() >= 30
    nothing = run_episodes(env, lambda obs, envs: env.noop_actions()[envs], seeds, plans)
    assert nothing["success"].sum() <= 1


# --- starts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", [32, 64, 128])
@pytest.mark.parametrize("goal", GOALS, ids=ids)
def test_starts_are_fair(goal, side):
    """50 of each: finite, within the walls, at rest, not reached already, and not twice the same."""
    size, centroids = np.array([side, side], float), []
    for seed in range(50):
        start = G.sample_start_state(parse(str(goal)), np.random.default_rng(seed), size, 8)
        position, velocity, radius, mass, charge, temperature, _ = start
        assert all(np.isfinite(values).all() for values in start)
        assert (position >= radius[:, None]).all() and (position <= size - radius[:, None]).all()
        assert (velocity == 0).all() and (mass > 0).all() and (temperature >= 0).all() and (np.abs(charge) <= 5).all()
        offset = position - position.mean(0)
        extent = offset.std(0)[None]
        now = StateSummary(position.mean(0)[None], extent, np.sqrt((extent**2).sum(-1)), np.zeros(1),
                      temperature.mean()[None], position[None])
        assert not G.is_success(goal, now, now, size)[0]
        centroids.append(tuple(position.mean(0)))
    assert len(set(centroids)) == 50


@pytest.mark.parametrize("side", [32, 64, 128])
def test_start_radii_are_those_of_the_simulator(side):
    radii = [G.sample_start_state(G.GOALS[0], np.random.default_rng(seed), np.array([side, side], float), 8)[2]
             for seed in range(20)]
    assert np.min(radii) >= MIN_RADIUS and np.max(radii) <= MAX_RADIUS


@pytest.mark.parametrize(("goal", "size", "n"), [
    ("heat()", (64, 64), 1), ("align(axis=vertical)", (128, 32), 8)])     # no spread; no extent of 0.12 W along 32 px
def test_impossible_starts_end_after_a_bounded_number_of_tries(goal, size, n, monkeypatch):
    tries = []
    monkeypatch.setattr(starts, "_separate", lambda position, *_: tries.append(0) or position)
    with pytest.raises(GoalError, match="no start for"):
        G.sample_start_state(parse(goal), np.random.default_rng(0), np.array(size, float), n)
    assert 1 <= len(tries) <= starts.MAX_TRIES
