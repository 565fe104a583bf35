"""Goals: their notation, the states just inside and outside of `reached`, rewards worked by hand, fair starts."""
import signal

import numpy as np
import pytest

from simulator import goals as G
from simulator.action_operator import Action, ActionType
from simulator.core import ParticleSimulator
from simulator.goal_env import Worlds
from simulator.goals import GOALS, Goal, GoalError, Summary
from simulator.kernels import MAX_RADIUS, MIN_RADIUS

SIZE = np.array([64.0, 64.0])
NO_NOISE = {"em_force_strength": 0, "thermal_radiation_rate": 0, "heat_dissipation": 0, "vibration_scale": 0}
ids = [str(goal) for goal in GOALS]


def state(centroid=(32, 32), extent=(6, 8), speed=0.0, temperature=4.0):
    """One world's Summary; with the defaults the spread is 10."""
    extent = np.array([extent], float)
    return Summary(np.array([centroid], float), extent, np.sqrt((extent**2).sum(-1)), np.array([float(speed)]),
                   np.array([float(temperature)]))


# --- notation ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("goal", GOALS, ids=ids)
def test_parse_reads_what_str_writes(goal):
    assert Goal.parse(str(goal)) == goal
    assert Goal.parse(f"  {str(goal).replace('=', ' = ')} ") == goal


def test_all_goals():
    assert len(GOALS) == len(set(GOALS)) == 4 + 1 + 1 + 1 + 1 + 1 + 5 + 2


@pytest.mark.parametrize(("text", "message"), [
    ("fly()", "unknown goal 'fly': goals are push, cluster"), ("", "cannot read the goal ''"),
    ("cluster", "write it like push"), ("cluster(", "cannot read"),
    ("push()", "direction= one of left, right, up, down"),
    ("push(direction=north)", "not 'north'"), ("push(region=left)", "no argument 'region'"),
    ("push(left)", "no argument 'left'"), ("cluster(axis=1)", "no argument 'axis'"),
    ("align(axis=diagonal)", "horizontal, vertical"), ("move_to(region=)", "region= one of center"),
    ("push(direction=left", "cannot read"), ("fly(a=b)", "unknown goal")])
def test_a_goal_that_is_none_is_told_what_would_be_right(text, message):
    with pytest.raises(GoalError) as caught:
        Goal.parse(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- measures ---------------------------------------------------------------------------------------------------
def test_summary_by_hand():
    """Three particles at (10,20), (20,20), (30,20): centroid (20,20), mean square of -10,0,10 is 200/3 along x.
    Velocities (1,0), (1,3), (1,-3): the drift (1,0) is no speed; 0,3,-3 have mean square 6. A fourth is not counted."""
    sim = ParticleSimulator(1, 5)
    sim.count[0] = 4
    sim.position[0, :4] = (10, 20), (20, 20), (30, 20), (60, 60)
    sim.velocity[0, :4] = (1, 0), (1, 3), (1, -3), (9, 9)
    sim.temperature[0, :4] = 1, 2, 6, 10
    s = Summary.of(sim, np.array([3]))
    np.testing.assert_allclose(s.centroid, [[20, 20]])
    np.testing.assert_allclose(s.extent, [[np.sqrt(200 / 3), 0]], atol=1e-12)
    np.testing.assert_allclose([s.spread[0], s.speed[0], s.temperature[0]], [np.sqrt(200 / 3), np.sqrt(6), 3])


# W = 64 and the start is state(): centroid (32,32), extent (6,8), spread 10, temperature 4. Each row: inside, outside.
CORNERS = {"top_left": (14.08, 14.08), "top_right": (49.92, 14.08), "bottom_left": (14.08, 49.92),
           "bottom_right": (49.92, 49.92)}
EDGES = [
    # 0.22 W = 14.08 along, 0.08 W = 5.12 aside
    ("push(direction=left)", {"centroid": (17.91, 32)}, {"centroid": (17.93, 32)}),
    ("push(direction=right)", {"centroid": (46.09, 32)}, {"centroid": (46.07, 32)}),
    ("push(direction=up)", {"centroid": (32, 17.91)}, {"centroid": (32, 17.93)}),
    ("push(direction=down)", {"centroid": (32, 46.09)}, {"centroid": (32, 46.07)}),
    ("push(direction=left)", {"centroid": (10, 37.11)}, {"centroid": (10, 37.13)}),
    ("push(direction=right)", {"centroid": (50, 26.89)}, {"centroid": (50, 26.87)}),
    ("push(direction=up)", {"centroid": (26.89, 10)}, {"centroid": (26.87, 10)}),
    ("push(direction=down)", {"centroid": (37.11, 50)}, {"centroid": (37.13, 50)}),
    ("push(direction=left)", {"centroid": (17, 32)}, {"centroid": (47, 32)}),          # not the other way
    # spread 0.6 * 10 = 6 = |(3.6, 4.8)|, and 2 * 10 = 20 = |(12, 16)|
    ("cluster()", {"extent": (3.599, 4.799)}, {"extent": (3.601, 4.801)}),
    ("spread()", {"extent": (12.001, 16.001)}, {"extent": (11.999, 15.999)}),
    ("heat()", {"temperature": 7.001}, {"temperature": 6.999}),                        # 4 + 3
    ("cool()", {"temperature": 0.999}, {"temperature": 1.001}),                        # 4 / 4
    ("vibrate()", {"speed": 2.001}, {"speed": 1.999}),
    ("vibrate()", {"speed": 3, "centroid": (38.39, 32)}, {"speed": 3, "centroid": (38.41, 32)}),       # 0.1 W = 6.4
    ("vibrate()", {"speed": 3, "extent": (8.99, 11.99)}, {"speed": 3, "extent": (9.01, 12.01)}),       # 15 = |(9,12)|
    ("move_to(region=center)", {"centroid": (32, 35.83)}, {"centroid": (32, 35.85)}),                  # 0.06 W = 3.84
    *((f"move_to(region={name})", {"centroid": (x + 6.39, y)}, {"centroid": (x + 6.41, y)})            # 0.1 W = 6.4
      for name, (x, y) in CORNERS.items()),
    ("align(axis=horizontal)", {"extent": (9, 4.479)}, {"extent": (9, 4.481)}),                        # 0.07 W = 4.48
    ("align(axis=horizontal)", {"extent": (6.01, 3)}, {"extent": (5.99, 3)}),                          # twice as long
    ("align(axis=vertical)", {"extent": (4.479, 9)}, {"extent": (4.481, 9)}),
    ("align(axis=vertical)", {"extent": (3, 6.01)}, {"extent": (3, 5.99)}),
]


@pytest.mark.parametrize(("goal", "inside", "outside"), EDGES)
def test_reached_just_inside_and_not_just_outside(goal, inside, outside):
    goal = Goal.parse(goal)
    assert G.reached(goal, state(**inside), state(), SIZE)[0]
    assert not G.reached(goal, state(**outside), state(), SIZE)[0]


def test_every_goal_has_an_edge_above():
    assert {goal for goal, *_ in EDGES} == set(ids)


# --- rewards ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("goal", "before", "now", "wanted"), [
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
    ("align(axis=horizontal)", {}, {"extent": (6, 6)}, 0.1), ("align(axis=vertical)", {}, {"extent": (9, 8)}, -0.15)])
def test_reward_by_hand(goal, before, now, wanted):
    given = G.reward(Goal.parse(goal), state(**now), state(**before), state(), SIZE)
    np.testing.assert_allclose(given, [wanted], atol=1e-9)


@pytest.mark.parametrize(("goal", "at", "beyond"), [
    ("push(direction=left)", {"centroid": (17.92, 50)}, {"centroid": (8, 50)}),     # slantwise: not reached, nor paid
    ("cluster()", {"extent": (3.6, 4.8)}, {"extent": (1, 1)}), ("spread()", {"extent": (12, 16)}, {"extent": (20, 20)}),
    ("heat()", {"temperature": 7}, {"temperature": 9}), ("cool()", {"temperature": 1}, {"temperature": 0}),
    ("move_to(region=center)", {"centroid": (32, 35.84)}, {"centroid": (32, 32)}),
    ("align(axis=horizontal)", {"extent": (3, 4.48)}, {"extent": (3, 2)})])
def test_going_on_beyond_the_target_pays_nothing(goal, at, beyond):
    goal = Goal.parse(goal)
    np.testing.assert_allclose(G.reward(goal, state(**beyond), state(**at), state(), SIZE), [0], atol=1e-9)


def test_faster_than_needed_pays_no_more():
    np.testing.assert_allclose(G.reward(Goal("vibrate"), state(speed=9), state(), state(), SIZE), [0.02])


@pytest.mark.parametrize("goal", GOALS, ids=ids)
def test_reward_is_bounded(goal):
    rng, bound = np.random.default_rng(0), G.REWARD[goal.kind][1]
    def anything():
        extent = rng.uniform(0, 30, (500, 2))
        return Summary(rng.uniform(0, 64, (500, 2)), extent, np.sqrt((extent**2).sum(-1)), rng.uniform(0, 10, 500),
                       rng.uniform(0, 10, 500))
    rewards = G.reward(goal, anything(), anything(), anything(), SIZE)
    assert np.isfinite(rewards).all() and (np.abs(rewards) <= bound).all()
    assert rewards.max() > 0 and (rewards.min() >= 0) == (goal.kind == "vibrate")


def drifting(goal, velocity):
    """A world whose eight cold, neutral particles all move with `velocity`, from the middle."""
    worlds = Worlds(1, goals=[goal], physics=NO_NOISE)
    worlds.begin(np.array([0]))
    x, y = np.meshgrid([26, 30, 34, 38], [29, 35])
    worlds.sim.position[0, :8] = np.stack([x, y], -1).reshape(-1, 2)
    worlds.sim.velocity[0, :8] = velocity
    worlds.sim.radius[0, :8], worlds.sim.charge[0, :8], worlds.sim.temperature[0, :8] = 1.5, 0, 0
    worlds.now, worlds.start = (Summary.of(worlds.sim, worlds.initial) for _ in range(2))
    return worlds


def test_progress_counts_from_the_start_of_the_episode():
    """2 px/step to the left: 14.08 px are reached at step 8. Seven times 0.05 * 2; then 0.05 * 0.08, capped, plus 1."""
    worlds, noop = drifting("push(direction=left)", (-2, 0)), Action(ActionType.NOOP).to_vector()[None]
    steps = [worlds.step(noop) for _ in range(8)]
    np.testing.assert_allclose([rewards[0] for rewards, *_ in steps], [0.1] * 7 + [1.004], atol=1e-6)
    assert [bool(success[0]) for _, success, *_ in steps] == [False] * 7 + [True]


@pytest.mark.parametrize("goal", ["push(direction=left)", "cluster()", "heat()", "move_to(region=bottom_right)"])
def test_added_particles_do_not_count(goal):
    noop, add = Action(ActionType.NOOP), Action(ActionType.ADD_PARTICLE, x=60, y=60, radius=2)
    one, other = drifting(goal, (0, 0)), drifting(goal, (0, 0))
    results = [(one.step(noop.to_vector()[None]), other.step(add.to_vector()[None])) for _ in range(3)]
    assert one.sim.count[0] == 8 and other.sim.count[0] > 8
    for name in Summary.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one.now, name), getattr(other.now, name))
    assert all(a[0] == b[0] and not b[1] for a, b in results)


# --- starts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", [32, 64, 128])
@pytest.mark.parametrize("goal", GOALS, ids=ids)
def test_starts_are_fair(goal, side):
    """50 of each: finite, within the walls, at rest, not reached already, and not twice the same."""
    size, centroids = np.array([side, side], float), []
    for seed in range(50):
        start = G.start_state(goal, np.random.default_rng(seed), size, 8)
        position, velocity, radius, mass, charge, temperature, _ = start
        assert all(np.isfinite(values).all() for values in start)
        assert (position >= radius[:, None]).all() and (position <= size - radius[:, None]).all()
        assert (velocity == 0).all() and (mass > 0).all() and (temperature >= 0).all() and (np.abs(charge) <= 5).all()
        offset = position - position.mean(0)
        extent = offset.std(0)[None]
        now = Summary(position.mean(0)[None], extent, np.sqrt((extent**2).sum(-1)), np.zeros(1),
                      temperature.mean()[None])
        assert not G.reached(goal, now, now, size)[0]
        centroids.append(tuple(position.mean(0)))
    assert len(set(centroids)) == 50


@pytest.mark.parametrize("side", [32, 64, 128])
def test_start_radii_are_those_of_the_simulator(side):
    radii = [G.start_state(GOALS[0], np.random.default_rng(seed), np.array([side, side], float), 8)[2]
             for seed in range(20)]
    assert np.min(radii) >= MIN_RADIUS and np.max(radii) <= MAX_RADIUS


@pytest.mark.parametrize(("goal", "size", "n"), [
    ("heat()", (64, 64), 1), ("align(axis=vertical)", (128, 32), 8)])     # no spread; no extent of 0.12 W along 32 px
def test_impossible_starts_end(goal, size, n):
    def stop(*_):
        raise TimeoutError
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        G.start_state(Goal.parse(goal), np.random.default_rng(0), np.array(size, float), n)
    except ValueError:
        pass                                                              # a refusal would do
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
