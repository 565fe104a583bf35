"""PPO (Schulman et al. 2017, arXiv:1707.06347): advantages of a rollout, then the updates of policy and critic.

Three points differ from the textbook. The first iterations train only the value head, because a cloned policy has no
critic yet. The value head sends no gradients into the backbone. An update ends early when the KL estimate is too large.

Legend: T rollout steps, E environments, N = T * E samples.
"""
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from models.training.learner import Learner, Obs, minibatch_indices, select_obs
from models.training.losses import compute_gae, explained_variance, normalize_advantages
from models.training.run_state import Run

CRITIC_WARMUP_PASSES = 4        # times rl.update_epochs
KL_STOP_FACTOR = 1.5            # an update ends above this multiple of rl.target_kl
FEATURE_BATCH = 64


@dataclass
class PPOBatch:
    """The samples of a rollout with T and E merged: obs leaves [N,...], actions [N,...], all others float32 [N]."""
    obs: Obs
    actions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def lr_at(peak: float, schedule: str, done: float) -> float:
    """Return the learning rate after the fraction `done` of the work, for constant, linear or cosine schedules."""
    factors = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return peak * factors[schedule]


def ppo_learning_rates(train_config: Any, done: float) -> dict[str, float]:
    """Return the learning rate of each parameter group after the fraction `done` of the PPO iterations."""
    peaks = {"backbone": train_config.lr, "action": train_config.head_lr, "value": train_config.value_lr}
    return {name: lr_at(peak, train_config.lr_schedule, done) for name, peak in peaks.items()}


def collect_rollout(run: Run, collect: Callable) -> Any:
    """Return a rollout of the sampled policy. `collect` is that of simulator.rollout.

    `run.rollout_metrics` gets the means of the episodes that ended in it, and the environment steps per second.
    """
    config, started = run.config, time.perf_counter()
    run.policy.use_dropout(False).eval()
    if run.obs is None:
        seeds = np.random.default_rng([config.seed, 1]).integers(2**31, size=config.env.num_envs)
        run.obs, _ = run.env.reset(seed=seeds[run.env_slice])
    rollout, run.obs = collect(run.env, run.learner.actor, run.obs, config.rl.rollout_steps, run.episode_stats)
    seconds = time.perf_counter() - started
    run.state.samples += run.samples
    run.state.env_steps += run.samples
    episodes = gather_object(rollout.episodes)
    run.rollout_metrics = mean_episode_stats(episodes) | {
        "rollout/episodes": len(episodes), "time/env_steps_per_s": round(run.samples / seconds, 1)}
    return rollout


def mean_episode_stats(episodes: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each statistic of finished episodes as {"rollout/...": float}; NaN is left out."""
    names = {name for episode in episodes for name in episode if name != "goal"}
    stats = {name: np.array([episode[name] for episode in episodes], float) for name in names}
    return {f"rollout/{'success_rate' if name == 'success' else name}": float(np.nanmean(values))
            for name, values in sorted(stats.items()) if not np.isnan(values).all()}


def estimate_advantages(learner: Learner, rollout: Any, rl_config: Any) -> PPOBatch:
    """Return the samples of a `simulator.rollout.Rollout` with GAE returns and normalised advantages.

    The mean and standard deviation are those of all processes. Every process must call it.
    """
    advantages, returns = compute_gae(rollout.rewards, rollout.values, rollout.next_values, rollout.terminated,
                                      rollout.truncated, rl_config.gamma, rl_config.gae_lambda)     # [T,E]
    advantages = advantages.flatten()       # [N]
    return PPOBatch(rollout.flat_obs(), rollout.actions.flatten(0, 1), rollout.log_probs.flatten(),
                    rollout.values.flatten(), normalize_advantages(advantages, learner.gather(advantages)),
                    returns.flatten())


def update_policy(learner: Learner, batch: PPOBatch, generator: torch.Generator) -> dict[str, float]:
    """Make `rl.update_epochs` passes of PPO over the samples and return the mean metrics."""
    def arguments(index: torch.Tensor) -> tuple:
        return (select_obs(batch.obs, index), batch.actions[index], batch.log_probs[index], batch.advantages[index],
                batch.returns[index])

    rl = learner.config.rl
    indices = minibatch_indices(learner, len(batch.actions), generator, rl.update_epochs)
    rows = learner.run_updates("ppo", arguments, indices, KL_STOP_FACTOR * rl.target_kl)
    stopped = {} if learner.early_stop_kl is None else {"train/kl_early_stop": learner.early_stop_kl}
    return learner.reduce_metrics(rows) | stopped | update_metrics(learner, batch, len(rows))


def update_critic(learner: Learner, batch: PPOBatch, generator: torch.Generator) -> dict[str, float]:
    """Train only the value head, with four times the passes, and return the mean metrics.

    Its input features are computed once, because nothing else changes.
    """
    every_index = torch.arange(len(batch.actions))
    features = torch.cat([learner.model("value_features", select_obs(batch.obs, index))
                          for index in every_index.split(FEATURE_BATCH)])       # [N,D]

    def arguments(index: torch.Tensor) -> tuple:
        return features[index], batch.returns[index]

    passes = CRITIC_WARMUP_PASSES * learner.config.rl.update_epochs
    rows = learner.run_updates("value", arguments, minibatch_indices(learner, len(batch.actions), generator, passes))
    return learner.reduce_metrics(rows) | update_metrics(learner, batch, len(rows))


def update_metrics(learner: Learner, batch: PPOBatch, num_updates: int) -> dict[str, float]:
    """Return the number of updates and the explained variance of the critic that acted, over all processes."""
    variance = explained_variance(learner.gather(batch.values), learner.gather(batch.returns))
    return {"train/num_updates": num_updates, "train/explained_variance": float(variance)}


def update_stage(run: Run, batch: PPOBatch, generator: torch.Generator) -> dict[str, float]:
    """Update the policy, in the first `rl.critic_warmup` iterations only the critic; return the metrics."""
    run.learner.set_learning_rates(ppo_learning_rates(run.config.train, run.done()))
    run.policy.train()
    is_warmup = run.state.iteration < run.config.rl.critic_warmup
    update = update_critic if is_warmup else update_policy
    return run.rollout_metrics | update(run.learner, batch, generator)


def update_ppo(learner: Learner, rollout: Any, config: Any, generator: torch.Generator,
               critic_only: bool = False) -> dict[str, float]:
    """Estimate the advantages of a rollout, update the policy or only the critic, and return the mean metrics."""
    batch = estimate_advantages(learner, rollout, config.rl)
    update = update_critic if critic_only else update_policy
    return update(learner, batch, generator)
