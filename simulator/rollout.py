"""Collect rollouts for PPO from a vector env and a policy: `collect`. It knows both by their interfaces only.

Env: a Gymnasium VectorEnv with autoreset mode SAME_STEP: a step that ends an episode returns the next episode's first
observation, and the last observation of the ended episode in `infos["final_obs"]`.
Policy: `act(obs) -> (actions [E,...], log_probs [E], values [E])`, tensors.

Legend: T steps, E envs. An observation is a dict of arrays [E,...] and tuples of E strings.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv


def stack_obs(observations: Sequence[Any]) -> Any:
    """Return equal observations (dicts, arrays, tuples of strings) as one with a new first axis."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: stack_obs([obs[key] for obs in observations]) for key in first}
    if isinstance(first, np.ndarray):
        return np.stack(observations)
    return np.array(observations, dtype=object)


def concat_obs(observations: Sequence[Any]) -> Any:
    """Return the observations of several batches as one batch: leaves [B,...] are joined along the first axis."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: concat_obs([obs[key] for obs in observations]) for key in first}
    arrays = [np.asarray(obs, dtype=None if isinstance(obs, np.ndarray) else object) for obs in observations]
    return np.concatenate(arrays)


def concat_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the `state()` of several vector envs as that of one, which has all of their envs."""
    return {key: np.concatenate([state[key] for state in states]) if isinstance(value, np.ndarray) else
            [item for state in states for item in state[key]] for key, value in states[0].items()}


def slice_states(state: dict[str, Any], env_slice: slice) -> dict[str, Any]:
    """Return the part of a `state()` that belongs to the envs of a slice."""
    return {key: value[env_slice] for key, value in state.items()}


def tree_map(function: Callable[[Any], Any], obs: Any) -> Any:
    """Return an observation with `function` applied to each leaf."""
    return {key: tree_map(function, value) for key, value in obs.items()} if isinstance(obs, dict) else function(obs)


@dataclass
class Rollout:
    """T steps of E envs.

    obs          leaves [T,E,...]
    actions      tensor [T,E,...]
    log_probs, values, next_values, rewards    float32 tensors [T,E]
    terminated, truncated                      bool tensors [T,E]
    episodes     the episodes that ended: a dict each with `return`, `length` and the items of
                 `infos["episode_metrics"]`, such as `success`

    `next_values` are the values of the observations that follow within the same episode: of a truncated episode that
    of its last observation (Pardo et al. 2018, arXiv:1712.00378).
    """
    obs: Any
    actions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    next_values: torch.Tensor
    rewards: torch.Tensor
    terminated: torch.Tensor
    truncated: torch.Tensor
    episodes: list[dict[str, Any]] = field(default_factory=list)

    def flat_obs(self) -> Any:
        """Return the observations with T and E merged: leaves [T*E,...]."""
        return tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.obs)


@torch.no_grad()
def collect(env: VectorEnv, policy: Any, obs: Any, steps: int,
            episode_stats: np.ndarray | None = None) -> tuple[Rollout, Any]:
    """Run `steps` steps from the observation `obs`, and return the Rollout and the next observation.

    `episode_stats` (float [2,E]: return and length of the unfinished episodes) carries them over from one rollout to
    the next. It is updated in place.
    """
    episode_stats = np.zeros((2, env.num_envs)) if episode_stats is None else episode_stats
    names = ("actions", "log_probs", "values", "rewards", "terminated", "truncated")
    columns = {name: [] for name in names}
    all_obs, final_obs, episodes = [], [], []
    for _ in range(steps):
        actions, log_probs, values = policy.act(obs)
        all_obs.append(obs)
        obs, rewards, terminated, truncated, infos = env.step(actions.cpu().numpy())
        final_obs += [infos["final_obs"][e] for e in np.flatnonzero(truncated & ~terminated)]
        episode_stats += np.stack([rewards, np.ones(env.num_envs)])
        episodes += _pop_episodes(episode_stats, terminated | truncated, infos.get("episode_metrics", {}))
        step = (actions, log_probs, values, rewards, terminated, truncated)
        for name, value in zip(names, step, strict=True):
            columns[name].append(torch.as_tensor(value).cpu())
    columns = {name: torch.stack(values) for name, values in columns.items()}
    for name in ("log_probs", "values", "rewards"):
        columns[name] = columns[name].float()
    next_values = _next_values(policy, obs, final_obs, columns)
    return Rollout(stack_obs(all_obs), next_values=next_values, episodes=episodes, **columns), obs


def _pop_episodes(episode_stats: np.ndarray, ended: np.ndarray, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the episodes that ended (bool [E]), and set their statistics to zero."""
    metrics = {key: values for key, values in metrics.items() if not key.startswith("_")}       # Gymnasium's masks
    episodes = []
    for e in np.flatnonzero(ended):
        own = {key: values[e] for key, values in metrics.items()}
        episodes.append({"return": episode_stats[0, e], "length": int(episode_stats[1, e])} | own)
    episode_stats[:, ended] = 0
    return episodes


def _next_values(policy: Any, obs: Any, final_obs: list[Any], columns: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the values of the following observations, float32 [T,E].

    The policy is called once for all of them: processes that share a model must call it equally often.
    """
    num_envs = columns["values"].shape[1]
    batch = concat_obs([obs, stack_obs(final_obs)]) if final_obs else obs
    values = policy.act(batch)[2].float().cpu()                                     # [E + number of final_obs]
    next_values = torch.cat([columns["values"][1:], values[None, :num_envs]])       # [T,E]
    next_values[columns["truncated"] & ~columns["terminated"]] = values[num_envs:]
    return next_values
