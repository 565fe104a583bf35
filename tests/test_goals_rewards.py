"""Goals: states just inside and outside of success, and rewards worked by hand."""
import numpy as np
import pytest
from goals_helpers import GOALS, drifting, ids

from simulator.particles import goals as G
from simulator.particles.actions import Action, ActionType
from simulator.particles.goals import Goal, StateSummary
from simulator.particles.physics import ParticleSimulator

SIZE = np.array([64.0, 64.0])


def state(centroid=(32, 32), extent=(6, 8), speed=0.0, temperature=4.0, positions=((10, 10), (40, 50), (20, 20))):
    """Return the StateSummary of one environment; with the defaults the spread is 10."""
    extent = np.array([extent], float)
    return StateSummary(np.array([centroid], float), extent, np.sqrt((extent**2).sum(-1)), np.array([float(speed)]),
                        np.array([float(temperature)]), np.array([positions], float))


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
