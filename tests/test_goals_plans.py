"""Goals at once and in phases, goals that do not fit the environment, and feasible starts."""
import numpy as np
import pytest
from goals_helpers import GOALS, drifting, ids

from simulator.evaluation import run_episodes
from simulator.particles import goals as G
from simulator.particles import starts
from simulator.particles.actions import Action, ActionType
from simulator.particles.env import ParticleVectorEnv
from simulator.particles.goals import GoalError, StateSummary, parse
from simulator.particles.kernels import MAX_RADIUS, MIN_RADIUS
from simulator.particles.task import ParticleTask


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
