"""Record demonstrations of a RobosuiteVectorEnv as episodes that simulator.formats.robomimic writes."""
from collections.abc import Callable, Iterator

import numpy as np

from simulator.formats import DatasetError
from simulator.robosuite.env import ACTION_VECTORS
from simulator.rollout import stack_obs, tree_map

MAX_FAILURES = 50       # consecutive failed episodes of one environment


class _Recording:
    """The current episode of environment `env_index`, the recorded steps and the random numbers."""

    def __init__(self, seed: int, env_index: int, number: int, policy_fraction: float):
        self.number = number
        self.rng = np.random.default_rng([seed, env_index, number])
        self.by_policy = bool(self.rng.random() < policy_fraction)
        self.steps: list[dict] = []

    def choose_action(self, expert: np.ndarray, policy: np.ndarray | None, noise: float, discrete: bool):
        """Return the action to take: the policy's in its episodes, else a random or the expert's one."""
        if policy is not None and self.by_policy:
            return policy if discrete else np.clip(policy, -1, 1)
        if self.rng.random() < noise:
            return self.rng.integers(8) if discrete else self.rng.uniform(-1, 1, 7)
        return expert

    def arrays(self) -> dict:
        """Return the steps stacked along time: leaves [T,...]."""
        return stack_obs([tree_map(np.asarray, step) for step in self.steps])


def record_demos(env, count: int, seed: int, action_noise: float, act: Callable | None = None,
                 policy_fraction: float = 0.0, progress: Callable[[int, int], object] | None = None,
                 only_success: bool = False) -> Iterator[dict]:
    """Yield `count` finished episodes of a RobosuiteVectorEnv, failed ones too unless `only_success`.

    With probability `action_noise` a step takes a random action, else the expert's (the idea of DART, Laskey et al.
    2017, arXiv:1703.09327). In a fraction `policy_fraction` of the episodes it takes `act(obs)`, actions [E,...]
    (DAgger, Ross et al. 2011, arXiv:1011.0686). The labels are always the expert's.

    Each environment records an equal part of `count`, because the episodes that end first are the easy ones. Without
    `act`, episode k of environment e is a function of (seed, e, k). `progress(finished, successful)` is called after
    each episode. Raises DatasetError after MAX_FAILURES failures in a row with `only_success`.
    """
    discrete, envs = env.settings.discrete, range(env.num_envs)
    remaining = [len(range(e, count, env.num_envs)) for e in envs]
    seeds = [int(np.random.SeedSequence([seed, e]).generate_state(1)[0]) for e in envs]
    obs, infos = env.reset(seed=seeds)
    model = env.call("model_file")[0]
    finished = successes = 0
    consecutive_failures = [0] * env.num_envs
    recordings = [_Recording(seed, e, 0, policy_fraction) for e in envs]
    while any(remaining):
        goals, texts, snapshots = infos["goal"], obs["goal"], env.call("snapshot")
        active = [e for e in envs if remaining[e]]
        ask_policy = act is not None and any(recordings[e].by_policy for e in active)
        policy_actions = act(obs) if ask_policy else [None] * env.num_envs
        actions = env.noop_actions()
        for e in active:
            expert = snapshots[e]["labels"][goals[e]]["actions"]
            actions[e] = recordings[e].choose_action(expert, policy_actions[e], action_noise, discrete)
        obs, rewards, terminated, truncated, infos = env.step(actions)
        dones = terminated | truncated
        for e in active:
            recording = recordings[e]
            recording.steps.append(_step(snapshots[e], actions[e], rewards[e], dones[e], discrete))
            if not dones[e]:
                continue
            success = bool(infos["episode_metrics"]["success"][e])
            finished += 1
            successes += success
            consecutive_failures[e] = 0 if success else consecutive_failures[e] + 1
            if progress:
                progress(finished, successes)
            if success or not only_success:
                remaining[e] -= 1
                yield {"goal": goals[e], "text": texts[e], "seed": seeds[e], "episode": recording.number,
                       "success": success, "model_file": model, **recording.arrays()}
            elif consecutive_failures[e] == MAX_FAILURES:
                raise DatasetError(f"{MAX_FAILURES} episodes in a row failed: give less action noise than "
                                   f"{action_noise}, or more steps (env.max_steps)")
            recordings[e] = _Recording(seed, e, recording.number + 1, policy_fraction)


def _step(snapshot: dict, action: np.ndarray, reward: np.float32, done: np.bool_, discrete: bool) -> dict:
    """Return a row of an episode: the snapshot before an action, the action, and what followed."""
    row = {"index": np.asarray(action)} if discrete else {}
    return row | {"states": snapshot["state"], "actions": ACTION_VECTORS[action] if discrete else action.copy(),
                  "rewards": reward, "dones": done, "obs": snapshot["obs"], "labels": snapshot["labels"]}
