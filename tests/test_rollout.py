"""What `collect` and `run_episodes` keep count of, on a scripted environment whose every number is known."""
import numpy as np
import pytest
import torch

from simulator.evaluation import run_episodes, step_ratio, success_rate, summarize, wilson
from simulator.particles.env import ParticleVectorEnv
from simulator.rollout import collect, stack_obs


class Scripted:
    """FE: E environments with episodes of 10 steps. Environment 0 then succeeds, all others run out of time.

    The image of step t of episode k of environment e is the number 1000 e + 100 k + t. The reward of a step is
    (e + 1) t, 1 <= t <= 10.
    """

    def __init__(self, num_envs=2):
        self.num_envs, self.t, self.k, self.resets = num_envs, 0, 0, 0

    def observe(self):
        number = 1000 * np.arange(self.num_envs) + 100 * self.k + self.t
        return {"image": number[:, None].astype(np.float32), "goal": tuple(f"goal {e}" for e in range(self.num_envs))}

    def reset(self, **_):
        self.t, self.k, self.resets = 0, 0, self.resets + 1
        return self.observe(), {}

    def step(self, actions):
        assert actions.shape == (self.num_envs, 3) and isinstance(actions, np.ndarray)
        self.t += 1
        rewards, infos = (1.0 + np.arange(self.num_envs)) * self.t, {}
        ended = np.full(self.num_envs, self.t == 10)
        terminated = ended & (np.arange(self.num_envs) == 0)
        if ended.all():
            last = self.observe()
            final = np.array([dict(zip(last, pair, strict=True)) for pair in zip(*last.values(), strict=True)], object)
            infos = {"final_obs": final, "_final_obs": ended, "_episode_metrics": ended,
                     "episode_metrics": {"success": terminated.copy(), "goal": np.array(last["goal"], object)}}
            self.t, self.k = 0, self.k + 1
        return self.observe(), rewards, terminated, ended & ~terminated, infos


class Reader:
    """A policy whose value is the number it sees, its action (e, number, 0), its log-prob -number / 1000."""

    def act(self, obs):
        number = torch.as_tensor(obs["image"])[:, 0]
        assert len(obs["goal"]) == len(number)
        which = torch.tensor([float(goal.split()[1]) for goal in obs["goal"]])
        assert (which == number // 1000).all()                    # every image comes with its own instruction
        return torch.stack([which, number, 0 * number], 1), -number / 1000, number


@pytest.fixture
def two_rollouts():
    env, episode_stats = Scripted(), np.zeros((2, 2))
    obs, _ = env.reset()
    first, obs = collect(env, Reader(), obs, 16, episode_stats)
    second, obs = collect(env, Reader(), obs, 16, episode_stats)
    return env, first, second, obs, episode_stats


def test_rollouts_follow_on_without_a_reset(two_rollouts):
    """Steps 0..9 of episode 0, 0..5 of episode 1; then 6..9 of episode 1, 0..9 of episode 2, 0..1 of episode 3."""
    env, first, second, obs, _ = two_rollouts
    shown = [*range(10), *range(100, 106)], [*range(106, 110), *range(200, 210), 300, 301]
    for rollout, numbers in zip((first, second), shown, strict=True):
        assert rollout.values[:, 0].tolist() == numbers
        assert rollout.values[:, 1].tolist() == [1000 + n for n in numbers]
        assert (rollout.obs["image"][..., 0] == rollout.values.numpy()).all()
        assert (rollout.actions[..., 1] == rollout.values).all() and rollout.actions.shape == (16, 2, 3)
        np.testing.assert_allclose(rollout.log_probs, -rollout.values / 1000)
    assert env.resets == 1 and obs["image"][:, 0].tolist() == [302, 1302]


def test_shapes_dtypes_and_flat_order(two_rollouts):
    _, rollout, *_ = two_rollouts
    for name in ("log_probs", "values", "next_values", "rewards"):
        assert getattr(rollout, name).shape == (16, 2) and getattr(rollout, name).dtype == torch.float32
    assert rollout.terminated.dtype == rollout.truncated.dtype == torch.bool
    flat = rollout.flat_obs()
    assert flat["image"].shape == (32, 1) and flat["goal"].shape == (32,)
    assert (flat["image"][:, 0] == rollout.values.flatten().numpy()).all()
    assert (flat["goal"] == np.array(["goal 0", "goal 1"] * 16)).all()


def test_values_that_follow(two_rollouts):
    """An ordinary step: what is seen next, which at the rollout's end is the returned observation. Where time ran out:
    the last observation of that episode (10, 110, ...), never the first of the next one (100, 200, ...)."""
    _, first, second, *_ = two_rollouts
    assert first.next_values[:, 1].tolist() == [1000 + n for n in [*range(1, 11), *range(101, 107)]]
    assert second.next_values[:, 1].tolist() == [1000 + n for n in [*range(107, 111), *range(201, 211), 301, 302]]
    going_on = ~(first.terminated | first.truncated)[:, 0]
    assert (first.next_values[going_on, 0] == first.values[going_on, 0] + 1).all()
    assert first.terminated.nonzero().tolist() == [[9, 0]] and first.truncated.nonzero().tolist() == [[9, 1]]


def test_episodes_are_counted_across_rollouts(two_rollouts):
    """Each has 10 steps and returns 1 + ... + 10 = 55, in environment 1 twice that. The second began earlier."""
    _, first, second, _, episode_stats = two_rollouts
    expected = [{"return": 55.0 * (e + 1), "length": 10, "success": e == 0, "goal": f"goal {e}"} for e in range(2)]
    assert first.episodes == expected and second.episodes == expected * 2
    assert episode_stats.tolist() == [[1 + 2, 2 + 4], [2, 2]]


def test_nothing_is_carried_over_without_episode_stats():
    env = Scripted()
    obs, _ = env.reset()
    _, obs = collect(env, Reader(), obs, 6)
    rollout, _ = collect(env, Reader(), obs, 6)
    assert [episode["length"] for episode in rollout.episodes] == [4, 4]


def test_real_environment_and_policy(policy):
    """Truncation with the real parts: next_values are the policy's values of the observations that were final."""
    env, finals = ParticleVectorEnv(3, max_steps=4), {}
    obs, _ = env.reset(seed=0)
    step = env.step

    def recording_step(actions):
        result = step(actions)
        finals[len(finals)] = result[-1].get("final_obs")
        return result

    env.step = recording_step
    torch.manual_seed(0)
    with torch.no_grad():
        policy.value_head.out.weight.normal_()                 # zero at the start, as would be every value
        rollout, after = collect(env, policy, obs, 6)
        following = {key: np.concatenate([rollout.obs[key][1:], stack_obs([after])[key]]) for key in after}
        for t, e in rollout.truncated.nonzero().tolist():
            following["image"][t, e], following["goal"][t, e] = finals[t][e]["image"], finals[t][e]["goal"]
        flat = {key: values.reshape(18, *values.shape[2:]) for key, values in following.items()}
        values = policy(flat["image"], flat["goal"]).value.view(6, 3)
        policy.value_head.out.weight.zero_()
    going_on = ~rollout.terminated
    torch.testing.assert_close(rollout.next_values[going_on], values[going_on], rtol=0, atol=1e-4)
    assert rollout.truncated.any() and rollout.values.std() > 1e-3


# --- evaluation -------------------------------------------------------------------------------------------------
def test_wilson_by_hand():
    """8 of 10: centre (0.8 + z^2 / 20) / (1 + z^2 / 10) = 0.7168, half width 0.2266 (z = 1.96)."""
    np.testing.assert_allclose(wilson(8, 10), (0.4902, 0.9433), atol=1e-4)
    z2 = 1.959964**2
    np.testing.assert_allclose(wilson(0, 20), (0, z2 / (20 + z2)), atol=1e-9)
    np.testing.assert_allclose(wilson(20, 20), (20 / (20 + z2), 1), atol=1e-9)
    assert wilson(0, 0) == (0.0, 1.0)
    assert success_rate(3, 4) == {"k": 3, "n": 4, "rate": 0.75, "low": wilson(3, 4)[0], "high": wilson(3, 4)[1]}


class BySeed:
    """Episode of seed s: s % 5 + 1 steps, success where s is even; reward s per step. Autoreset goes on elsewhere."""

    def __init__(self, num_envs):
        self.num_envs, self.blocks = num_envs, []
        self.action_space = type("Space", (), {"shape": (num_envs, 1), "dtype": np.float32})

    def observe(self):
        return {"image": self.seeds[:, None].astype(float), "goal": tuple(f"instruction {s}" for s in self.seeds)}

    def reset(self, *, seed, options):
        assert len(seed) == self.num_envs and options.pop("single_episode") is True
        assert all(len(values) == self.num_envs for values in options.values())
        self.blocks.append(list(seed))
        self.seeds, self.t = np.array(seed), np.zeros(self.num_envs, int)
        return self.observe(), {}

    def step(self, actions):
        assert (actions[self.running, 0] == self.seeds[self.running]).all()    # each environment its own action
        self.t += 1
        rewards, ended = self.seeds.astype(float), self.t == self.seeds % 5 + 1
        success, seeds = ended & (self.seeds % 2 == 0), self.seeds.copy()
        self.seeds, self.t = np.where(ended, 900, self.seeds), np.where(ended, 0, self.t)
        infos = {"episode_metrics": {"success": success, "goal": np.array([f"goal {s % 3}" for s in seeds], object)}}
        return self.observe(), rewards, success, ended & ~success, infos if ended.any() else {}


def test_run_episodes_counts_every_seed_once():
    """11 episodes, 4 at a time: the last block has 3. One that is done is neither asked nor counted again."""
    env, seeds, asked = BySeed(4), np.arange(20, 31), []

    def act(obs, envs):
        asked.extend(obs["image"][:, 0])
        env.running = envs
        assert len(envs) == len(obs["image"]) == len(obs["goal"])
        assert obs["goal"] == tuple(f"instruction {s:.0f}" for s in obs["image"][:, 0])
        return obs["image"].astype(np.float32)

    result = run_episodes(env, act, seeds, goals=list("abcdefghijk"))
    assert env.blocks == [[20, 21, 22, 23], [24, 25, 26, 27], [28, 29, 30, 30]]
    assert result["success"].tolist() == [s % 2 == 0 for s in seeds]
    assert result["length"].tolist() == [s % 5 + 1 for s in seeds]
    assert result["return"].tolist() == [s * (s % 5 + 1) for s in seeds]
    assert result["goal"].tolist() == [f"goal {s % 3}" for s in seeds]
    assert sorted(asked) == sorted(s for s in seeds for _ in range(s % 5 + 1))


def test_summary_by_goal():
    result = {"success": np.array([True, False, True, True]), "length": np.array([4, 32, 6, 8]),
              "return": np.zeros(4), "goal": np.array(["a", "a", "b", "b"], object)}
    figures = summarize(result)
    assert (figures["k"], figures["n"], figures["rate"], figures["mean_steps"]) == (3, 4, 0.75, 6.0)
    assert {goal: (s["k"], s["n"]) for goal, s in figures["per_goal"].items()} == {"a": (1, 2), "b": (2, 2)}
    nothing = summarize(result | {"success": np.zeros(4, bool)})
    assert nothing["mean_steps"] is None and nothing["rate"] == 0


def test_step_ratio_counts_common_successes_only():
    """Both solve the first and the last: (4 + 8) / (2 + 6)."""
    a = {"success": np.array([True, True, False, True]), "length": np.array([4, 99, 32, 8])}
    b = {"success": np.array([True, False, True, True]), "length": np.array([2, 32, 1, 6])}
    assert step_ratio(a, b) == 1.5 and step_ratio(a, b | {"success": np.zeros(4, bool)}) is None


def test_same_episodes_whatever_the_number_of_worlds():
    seeds, results = np.arange(7), []
    for num_envs in (3, 7):
        env = ParticleVectorEnv(num_envs)
        results.append(run_episodes(env, lambda obs, envs, env=env: env.expert_actions()[envs], seeds,
                                    env.round_robin_goals(7)))
    for name, values in results[0].items():
        assert values.tolist() == results[1][name].tolist()
