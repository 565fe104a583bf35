"""The environments: Gymnasium's rules, autoreset, determinism, independence, any action, and reset options."""
import warnings

import gymnasium
import numpy as np
import pytest
from env_helpers import NOOP
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from simulator.particles.actions import ActionStatus
from simulator.particles.commands import instructions_by_goal
from simulator.particles.env import ParticleEnv, ParticleVectorEnv


def snapshot(obs, rewards, terminated, truncated, infos):
    """What a step says of each environment, as comparable values: a list of E tuples."""
    final = infos.get("final_obs", [None] * len(rewards))
    return [(obs["image"][b].tobytes(), obs["goal"][b], float(rewards[b]), bool(terminated[b]), bool(truncated[b]),
             int(infos["action_status"][b]), final[b] and (final[b]["image"].tobytes(), final[b]["goal"]))
            for b in range(len(rewards))]


def actions_of(seed, steps):
    """Random actions [steps,7] that belong to one environment, wherever it is."""
    space, rng = ParticleVectorEnv(1).single_action_space, np.random.default_rng(seed)
    actions = rng.uniform(space.low, space.high, (steps, 7)).astype(np.float32)
    actions[:, [0, 1, 6]] = actions[:, [0, 1, 6]].round()
    return actions


def trajectories(seeds, steps=11, **settings):
    """{seed: its first observation and snapshots}, the environments side by side in the order of `seeds`."""
    env = ParticleVectorEnv(len(seeds), **{"max_steps": 4} | settings)
    obs, _ = env.reset(seed=list(seeds))
    rows = [[(image.tobytes(), text)] for image, text in zip(obs["image"], obs["goal"], strict=True)]
    actions = np.stack([actions_of(seed, steps) for seed in seeds], 1)
    for t in range(steps):
        for row, seen in zip(rows, snapshot(*env.step(actions[t])), strict=True):
            row.append(seen)
    return dict(zip(seeds, rows, strict=True))


# --- Gymnasium's rules ------------------------------------------------------------------------------------------
def test_gymnasium_accepts_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*recommend using a symmetric and normalized space.*")
        check_env(gymnasium.make("FlexibleWorld/Particles-v0", render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_shapes_and_dtypes(size):
    width, height = size
    env = ParticleVectorEnv(5, width=width, height=height, max_steps=3)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    obs, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(8):
        assert obs["image"].shape == (5, height, width, 3) and obs["image"].dtype == np.uint8
        assert env.observation_space.contains(obs)
        obs, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
        assert rewards.shape == (5,) and rewards.dtype == np.float32
        assert terminated.shape == truncated.shape == infos["success"].shape == (5,)
        assert terminated.dtype == truncated.dtype == infos["success"].dtype == bool
        assert not (terminated & truncated).any() and (infos["success"] == terminated).all()


def test_images_differ_and_change():
    env = ParticleVectorEnv(4)
    obs, _ = env.reset(seed=0)
    later = env.step(env.expert_actions())[0]
    assert len({image.tobytes() for image in obs["image"]}) == 4 and obs["image"].std() > 0
    assert all((a != b).any() for a, b in zip(obs["image"], later["image"], strict=True))


# --- the end of an episode --------------------------------------------------------------------------------------
def test_time_limit_truncates_and_the_next_episode_begins_in_the_same_step():
    """The same environment, once with a limit of 3 and once without: final_obs is what the unlimited one shows."""
    goals, texts = ["push(direction=left)", "cluster()"], ["go left", "gather"]
    short, long = ParticleVectorEnv(2, max_steps=3), ParticleVectorEnv(2, max_steps=99)
    for env in (short, long):
        env.reset(seed=5, options={"goals": goals, "instructions": texts})
    for t in range(1, 4):
        obs, _, terminated, truncated, infos = short.step(np.tile(NOOP, (2, 1)))
        shown, _, _, never, _ = long.step(np.tile(NOOP, (2, 1)))
        assert not terminated.any() and not never.any() and truncated.tolist() == [t == 3] * 2
        assert ("final_obs" in infos) == ("episode_metrics" in infos) == (t == 3)
    assert infos["_final_obs"].all() and infos["_episode_metrics"].all()
    assert infos["episode_metrics"]["goal"].tolist() == goals and not infos["episode_metrics"]["success"].any()
    for b in range(2):
        np.testing.assert_array_equal(infos["final_obs"][b]["image"], shown["image"][b])
        assert infos["final_obs"][b]["goal"] == texts[b]
        assert (obs["image"][b] != shown["image"][b]).any()
    # what came back is where the next episode goes on from
    np.testing.assert_array_equal(obs["image"], short.task.sim.render())
    assert obs["goal"] == tuple(short.task.texts) and (short.task.steps == 0).all()


def test_success_terminates_also_at_the_time_limit():
    """However many steps the expert needs: with exactly that limit it still is a success, not a truncation."""
    goal = {"goals": ["heat()"]}
    env = ParticleVectorEnv(1, max_steps=32)
    env.reset(seed=1, options=goal)
    needed, done = 0, False
    while not done:
        _, rewards, terminated, truncated, infos = env.step(env.expert_actions())
        needed, done = needed + 1, terminated[0] or truncated[0]
    assert terminated[0] and not truncated[0] and rewards[0] > 0.9
    assert infos["episode_metrics"]["success"][0] and infos["episode_metrics"]["goal"][0] == "heat()"
    for limit, success in ((needed, True), (needed - 1, False)):
        env = ParticleVectorEnv(1, max_steps=limit)
        env.reset(seed=1, options=goal)
        for _ in range(limit):
            _, _, terminated, truncated, _ = env.step(env.expert_actions())
        assert (bool(terminated[0]), bool(truncated[0])) == (success, not success)


def test_no_world_waits_for_another():
    """An environment that ends early goes on at once; the masks name those that ended and no others."""
    env = ParticleVectorEnv(16, max_steps=32)
    env.reset(seed=0)
    steps, ends = np.zeros(16, int), 0
    for _ in range(40):
        _, _, terminated, truncated, infos = env.step(env.expert_actions())
        ended, steps = terminated | truncated, steps + 1
        assert (infos.get("_final_obs", np.zeros(16, bool)) == ended).all()
        assert [final is not None for final in infos.get("final_obs", [None] * 16)] == ended.tolist()
        assert (truncated <= (steps == 32)).all()
        steps[ended], ends = 0, ends + ended.sum()
        assert (env.task.steps == steps).all()
    assert ends >= 16


# --- determinism and independence -------------------------------------------------------------------------------
def test_same_seed_same_trajectory_and_another_another():
    a, b = trajectories([3, 4]), trajectories([3, 4])
    assert a == b and a[3] != a[4]


@pytest.mark.parametrize("others", [[7], [9, 7], [1, 2, 7, 3, 4, 5, 6, 8]])
def test_a_world_depends_on_neither_its_place_nor_the_others(others):
    run_local = trajectories([7])[7]
    assert any(row[4] or row[3] for row in run_local[1:])            # goes through an autoreset
    assert trajectories(others)[7] == run_local


def test_seed_as_a_number_counts_up():
    env, listed = ParticleVectorEnv(3), ParticleVectorEnv(3)
    a, b = env.reset(seed=10)[0], listed.reset(seed=[10, 11, 12])[0]
    np.testing.assert_array_equal(a["image"], b["image"])
    assert a["goal"] == b["goal"]


def test_observations_share_no_memory():
    env = ParticleVectorEnv(3, max_steps=3)
    obs, _ = env.reset(seed=0)
    images, copies = [obs["image"]], [obs["image"].copy()]
    for t in range(7):
        obs, *_, infos = env.step(np.stack([actions_of(b, 7)[t] for b in range(3)]))
        new = [obs["image"]] + [final["image"] for final in infos.get("final_obs", []) if final is not None]
        assert not any(np.shares_memory(x, y) for i, x in enumerate(new) for y in images + new[:i])
        images, copies = images + new, copies + [image.copy() for image in new]
    assert all((a == b).all() for a, b in zip(images, copies, strict=True))


def test_state_goes_on_bit_for_bit():
    """In another environment that has been elsewhere; through an autoreset, added particles and heat."""
    settings = {"max_steps": 5}
    env, other = (ParticleVectorEnv(4, **settings) for _ in range(2))
    actions = np.stack([actions_of(seed, 14) for seed in range(4)], 1)
    env.reset(seed=0)
    for t in range(3):
        seen = env.step(actions[t])[0]
    kept = env.state()
    assert all(isinstance(value, np.ndarray) or all(isinstance(v, str) for v in value) for value in kept.values())
    first = [snapshot(*env.step(actions[t])) for t in range(3, 14)]
    other.reset(seed=99)
    for t in range(7):
        other.step(actions[t])
    obs = other.restore(kept)
    np.testing.assert_array_equal(obs["image"], seen["image"])
    assert obs["goal"] == seen["goal"]
    for name, value in other.state().items():
        np.testing.assert_array_equal(value, kept[name], err_msg=name)
    assert [snapshot(*other.step(actions[t])) for t in range(3, 14)] == first


def test_single_world_is_the_vectorised_one():
    env, vector = ParticleEnv(max_steps=8), ParticleVectorEnv(1, max_steps=8)
    obs, _ = env.reset(seed=3)
    many, _ = vector.reset(seed=3)
    for action in actions_of(0, 7):
        np.testing.assert_array_equal(obs["image"], many["image"][0])
        assert obs["goal"] == many["goal"][0]
        obs, reward, terminated, truncated, info = env.step(action)
        many, rewards, *_ = vector.step(action[None])
        assert reward == rewards[0] and not truncated
        if terminated:
            break


# --- any action -------------------------------------------------------------------------------------------------
def test_no_action_breaks_it():
    env, rng = ParticleVectorEnv(10, max_steps=16), np.random.default_rng(0)
    env.reset(seed=0)
    odd = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-38, 0, -0.5, 7.5, 1e9], np.float32)
    seen = set()
    for _ in range(50):
        actions = rng.normal(0, 100, (10, 7)).astype(np.float32)
        actions[rng.random((10, 7)) < 0.15] = rng.choice(odd)
        actions[:5, 0] = rng.integers(0, 8, 5)
        obs, rewards, _, _, infos = env.step(actions)
        seen |= set(infos["action_status"].tolist())
        assert np.isfinite(rewards).all() and (np.abs(rewards) <= 1.5).all()
        sim = env.task.sim
        assert np.isfinite(sim.position).all() and np.isfinite(sim.velocity).all()
        assert env.observation_space.contains(obs)
        bad = ~np.isfinite(actions).all(1)
        assert (infos["action_status"][bad] == ActionStatus.NOT_FINITE).all()
    assert {ActionStatus.CLIPPED, ActionStatus.NOT_FINITE} <= seen


def test_actions_of_a_wrong_shape_are_refused():
    env = ParticleVectorEnv(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\[2,7\]"):
        env.step(np.zeros((3, 7), np.float32))


# --- Gymnasium's wrappers, options of a reset -------------------------------------------------------------------
def test_record_episode_statistics():
    """Two episodes each, of 3 steps: our metrics and Gymnasium's statistics share the infos."""
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(ParticleVectorEnv(2, max_steps=3))
    single = gymnasium.wrappers.RecordEpisodeStatistics(ParticleEnv(max_steps=3))
    env.reset(seed=0)
    for t in range(1, 7):
        *_, infos = env.step(np.tile(NOOP, (2, 1)))
        if t % 3 == 0:
            assert infos["episode"]["l"].tolist() == [3, 3]
            assert infos["episode_metrics"]["success"].tolist() == [False, False]
    for _ in range(2):
        single.reset(seed=0)
        for _ in range(3):
            *_, info = single.step(NOOP)
        assert info["episode"]["l"] == 3


def test_a_single_episode_does_not_begin_another():
    env = ParticleVectorEnv(2, max_steps=2)
    env.reset(seed=0, options={"goals": ["heat()", "heat() THEN cluster()"], "single_episode": True})
    ends = []
    for _ in range(6):
        _, rewards, terminated, truncated, infos = env.step(np.tile(NOOP, (2, 1)))
        ends.append(truncated.tolist())
        assert ("episode_metrics" in infos) == (terminated | truncated).any()
    assert ends == [[False] * 2, [True, False], [False] * 2, [False, True], [False] * 2, [False] * 2]
    assert not rewards.any() and env.finished.all()
    env.set_goals([0], [env.sample_goal(np.random.default_rng(0))], ["go on"])
    assert [env.step(np.tile(NOOP, (2, 1)))[3].tolist() for _ in range(2)] == [[False] * 2, [True, False]]
    obs, _ = env.reset(seed=0)
    assert not env.finished.any() and env.observation_space.contains(obs)


def test_a_monitored_goal_is_recorded_and_gives_the_start():
    plain, env = ParticleVectorEnv(2), ParticleVectorEnv(2, max_steps=4)
    start = plain.reset(seed=3, options={"goals": ["heat()", "cool()"]})[0]
    obs = env.reset(seed=3, options={"goals": ["cluster()", "spread()"], "monitor_goals": ["heat()", "cool()"]})[0]
    np.testing.assert_array_equal(obs["image"], start["image"])
    assert [str(goal) for goal in env.current_goals] == ["cluster()", "spread()"]
    assert obs["goal"][0] in instructions_by_goal()["cluster()"]
    for _ in range(4):
        *_, infos = env.step(np.tile(np.array([3, -1, 32, 32, 5, 64, 0], np.float32), (2, 1)))
    assert infos["episode_metrics"]["monitor_success"].tolist() == [True, False]
    assert not infos["episode_metrics"]["success"].any()
