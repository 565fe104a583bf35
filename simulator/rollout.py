"""collect(env, policy, obs, steps) -> Rollout. Environment and policy are known by their protocols only.

Environment: Gymnasium's VectorEnv with autoreset mode SAME_STEP: a step that ends an episode returns the next
episode's first observation, and the last one of the ended episode in `infos["final_obs"]`.
Policy: `act(obs) -> actions [E,...], log_probs [E], values [E]` (tensors).

Legend: T steps, E environments.
"""
from dataclasses import dataclass, field

import numpy as np
import torch


def stack_obs(observations):
    """A list of equal observations (arrays, dicts of them, tuples of strings) as one with a leading axis."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: stack_obs([obs[key] for obs in observations]) for key in first}
    if isinstance(first, np.ndarray):
        return np.stack(observations)
    return np.array(observations, dtype=object)


def concat_obs(observations):
    """Observations of several batches as one: leaves [B,...] joined along the first axis."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: concat_obs([obs[key] for obs in observations]) for key in first}
    return np.concatenate([np.asarray(obs, dtype=None if isinstance(obs, np.ndarray) else object)
                           for obs in observations])


def concat_states(states):
    """What the `state()` of several environments gave, one after the other: that of all their worlds."""
    return {key: np.concatenate([state[key] for state in states]) if isinstance(value, np.ndarray) else
            [item for state in states for item in state[key]] for key, value in states[0].items()}


def slice_states(state, env_slice):
    """Of `join_states` the `worlds`, a slice."""
    return {key: value[env_slice] for key, value in state.items()}


def tree_map(function, obs):
    """`function` of every array in an observation."""
    return {key: tree_map(function, value) for key, value in obs.items()} if isinstance(obs, dict) else function(obs)


@dataclass
class Rollout:
    """T steps of E environments. `obs` leaves [T,E,...]; the tensors float32 (or bool) [T,E], actions [T,E,...].

    `next_values` is V of the observation that followed within the same episode. `episodes` lists the finished ones:
    their `return`, `length`, and whatever the environment reports in `infos["episode"]` (such as `success`).
    """
    obs: object
    actions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    next_values: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    episodes: list = field(default_factory=list)

    def flat_obs(self):
        """The observations with T and E merged: leaves [T*E,...]."""
        return tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.obs)


@torch.no_grad()
def collect(env, policy, obs, steps, episode_stats=None):
    """Runs `steps` steps from `obs` and returns (Rollout, next obs).

    `tally` (float [2,E]: return and length so far) carries unfinished episodes over from one rollout to the next;
    it is updated in place.
    """
    episode_stats = np.zeros((2, env.num_envs)) if episode_stats is None else episode_stats
    observations_seen, columns, episodes = [], {name: [] for name in
                                   ("actions", "log_probs", "values", "rewards", "terminated", "truncated")}, []
    final = []       # the last observation of episodes that were cut off
    for _ in range(steps):
        actions, log_probs, values = policy.act(obs)
        observations_seen.append(obs)
        obs, rewards, terminated, truncated, infos = env.step(actions.cpu().numpy())
        episode_stats += np.stack([rewards, np.ones(env.num_envs)])
        final += [infos["final_obs"][e] for e in np.flatnonzero(truncated & ~terminated)]
        for e in np.flatnonzero(terminated | truncated):
            extra = {key: value[e] for key, value in infos.get("episode", {}).items() if not key.startswith("_")}
            episodes.append({"return": episode_stats[0, e], "length": int(episode_stats[1, e])} | extra)
            episode_stats[:, e] = 0
        for name, value in (("actions", actions), ("log_probs", log_probs), ("values", values),
                            ("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            columns[name].append(torch.as_tensor(value).cpu())
    columns = {name: torch.stack(values) for name, values in columns.items()}
    columns |= {name: columns[name].float() for name in ("log_probs", "values", "rewards")}
    # all that is still to be judged, at once: every rollout of T steps asks the policy T + 1 times, for processes that
    # share a model have to ask it equally often
    values = policy.act(concat_obs([obs, stack_obs(final)]) if final else obs)[2].float().cpu()
    next_values = torch.cat([columns["values"][1:], values[None, :env.num_envs]])
    next_values[columns["truncated"] & ~columns["terminated"]] = values[env.num_envs:]
    return Rollout(stack_obs(observations_seen), next_values=next_values, episodes=episodes, **columns), obs
