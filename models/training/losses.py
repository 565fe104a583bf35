"""Advantage estimation and losses: pure functions of tensors that return tensors and a dict of metrics.

Legend: B samples, T rollout steps, E environments, V goal slots.
"""
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

Metrics = dict[str, torch.Tensor]


def _same_shape(**tensors: torch.Tensor) -> None:
    """Raise ValueError if the shapes differ, because broadcasting would mix samples."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes must be equal, or broadcasting would mix samples: {shapes}")


def compute_gae(rewards: torch.Tensor, values: torch.Tensor, next_values: torch.Tensor, terminated: torch.Tensor,
                truncated: torch.Tensor, gamma: float, gae_lambda: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the advantages and returns of generalised advantage estimation, float32 [T,E] each.

    Schulman et al. 2016, arXiv:1506.02438, eq. 16. All inputs are [T,E]. `values` is V(s_t). `next_values` is
    V(s_{t+1}); if the episode ended at t, s_{t+1} is its last observation, not the first one of the next episode.
    `terminated` and `truncated` are bool. A terminated step does not bootstrap, a truncated one bootstraps from
    `next_values`, and no credit crosses either. Raises ValueError for unequal shapes.
    """
    _same_shape(rewards=rewards, values=values, next_values=next_values, terminated=terminated, truncated=truncated)
    deltas = rewards + gamma * next_values * (~terminated) - values
    same_episode = ~(terminated | truncated)
    advantages = torch.zeros_like(deltas)
    last = torch.zeros_like(deltas[0])      # [E]
    for t in reversed(range(len(deltas))):
        last = deltas[t] + gamma * gae_lambda * same_episode[t] * last
        advantages[t] = last
    return advantages, advantages + values


def normalize_advantages(advantages: torch.Tensor, stats_from: torch.Tensor | None = None) -> torch.Tensor:
    """Return the advantages with zero mean and unit standard deviation, both of `stats_from` (default: `advantages`).

    One sample, or equal ones, become zeros.
    """
    stats_from = advantages if stats_from is None else stats_from
    return (advantages - stats_from.mean()) / (stats_from.std(unbiased=False) + 1e-8)


def ppo_loss(log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, values: torch.Tensor,
             returns: torch.Tensor, entropy: torch.Tensor, *, clip_ratio: float, value_coef: float,
             entropy_coef: float) -> tuple[torch.Tensor, Metrics]:
    """Return the loss of the clipped surrogate objective, a scalar, and its metrics.

    Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9. All tensors are [B]; the caller normalises `advantages`.
    `train/approx_kl` is the estimator (r - 1) - log r, which is never negative (Schulman 2020, "Approximating KL
    Divergence"). Raises ValueError for unequal shapes.
    """
    _same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages, values=values,
                returns=returns, entropy=entropy)
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    policy_loss = -torch.min(ratio * advantages, clipped * advantages).mean()
    value_loss = (values - returns).square().mean()
    loss = policy_loss + value_coef * value_loss - entropy_coef * entropy.mean()
    with torch.no_grad():
        metrics = {
            "train/policy_loss": policy_loss.detach(),
            "train/value_loss": value_loss.detach(),
            "train/entropy": entropy.mean(),
            "train/approx_kl": (ratio - 1 - log_ratio).mean(),
            "train/clip_fraction": ((ratio - 1).abs() > clip_ratio).float().mean(),
        }
    return loss, metrics


def parser_loss(slot_logits: torch.Tensor, goal_slots: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of the parsed slots, summed over the slots and averaged over the batch.

    `slot_logits` is [B,V]. `goal_slots` is [B,V] in {0, 1}: the slots of the goal that the instruction names.
    """
    return binary_cross_entropy_with_logits(slot_logits, goal_slots, reduction="none").sum(-1).mean()


def bc_loss(log_probs: torch.Tensor, attention_log_probs: torch.Tensor, slot_logits: torch.Tensor,
            goal_slots: torch.Tensor, *, attention_coef: float, parser_coef: float) -> tuple[torch.Tensor, Metrics]:
    """Return the loss of behaviour cloning, a scalar, and its metrics.

    The loss is the mean negative log-probability [B] of the expert's actions, plus `attention_coef` times that of
    attention to the objects of the goal and to the active goal [B], plus `parser_coef` times `parser_loss`.
    The attention term is needed because the likelihood of a point is flat where several objects are near it.
    """
    action_loss = -log_probs.mean()
    attention_loss = -attention_log_probs.mean()
    slot_loss = parser_loss(slot_logits, goal_slots)
    metrics = {"train/bc_loss": action_loss, "train/attention_loss": attention_loss, "train/parser_loss": slot_loss}
    loss = action_loss + attention_coef * attention_loss + parser_coef * slot_loss
    return loss, {name: value.detach() for name, value in metrics.items()}


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """Return 1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant one."""
    variance = returns.var(unbiased=False)
    if not variance > 0:        # also for NaN
        return torch.tensor(0.0)
    return 1 - (returns - values).var(unbiased=False) / variance
