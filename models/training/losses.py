"""Advantage estimation and losses: pure functions, tensors in, tensors and a dict of metrics out.

Legend: B samples, T rollout steps, E environments.
"""
import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def _same_shape(**tensors):
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes must be equal, or broadcasting would mix samples: {shapes}")


def compute_gae(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    All of shape [T, E]: `values` is V(s_t); `next_values` is V(s_{t+1}), where s_{t+1} is the last observation
    of the episode if it ended at t (never the first one of the next); `terminated` and `truncated` are bool.
    A terminated step bootstraps from nothing, a truncated one from `next_values`, and no credit crosses either.
    Returns (advantages, returns), float32 [T, E].
    """
    _same_shape(rewards=rewards, values=values, next_values=next_values, terminated=terminated, truncated=truncated)
    deltas = rewards + gamma * next_values * (~terminated) - values
    same_episode = ~(terminated | truncated)
    advantages = torch.zeros_like(deltas)
    last = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        last = deltas[t] + gamma * gae_lambda * same_episode[t] * last
        advantages[t] = last
    return advantages, advantages + values


def normalize_advantages(advantages, stats_from=None):
    """Zero mean, unit standard deviation `among` all of them (default: these); safe for one sample and equal ones."""
    stats_from = advantages if stats_from is None else stats_from
    return (advantages - stats_from.mean()) / (stats_from.std(unbiased=False) + 1e-8)


def ppo_loss(log_probs, old_log_probs, advantages, values, returns, entropy, *,
             clip_ratio, value_coef, entropy_coef):
    """The clipped surrogate objective (Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9).

    All tensors [B]; `advantages` as they are to be used (normalised by the caller). Returns (loss [], metrics).
    `train/approx_kl` is the estimator (r - 1) - log r, which is never negative (Schulman, "Approximating KL").
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
            "train/policy_loss": policy_loss.detach(), "train/value_loss": value_loss.detach(),
            "train/entropy": entropy.mean(), "train/approx_kl": (ratio - 1 - log_ratio).mean(),
            "train/clip_fraction": ((ratio - 1).abs() > clip_ratio).float().mean(),
        }
    return loss, metrics


def parser_loss(slot_logits, goal_slots):
    """Cross-entropy of what sentences are understood to say, logits `said` [B,V], with the `words` [B,V] in {0, 1} that
    they do say, summed over the words."""
    return binary_cross_entropy_with_logits(slot_logits, goal_slots, reduction="none").sum(-1).mean()


def bc_loss(log_probs, attention_log_probs, slot_logits, goal_slots):
    """Behaviour cloning as maximum likelihood: minus the mean log-probability [B] of the expert's actions; minus that
    of having `looked` [B] at the things that matter and at the goal that is due, 5 times, for the likelihood of a point
    read with two or three others near by is flat where that is steep; and the `reading_loss`, 4 times, for all else
    depends on it."""
    loss, attention, parser = -log_probs.mean(), -attention_log_probs.mean(), parser_loss(slot_logits, goal_slots)
    metrics = {"train/bc_loss": loss, "train/attention_loss": attention, "train/parser_loss": parser}
    return loss + 5 * attention + 4 * parser, {name: value.detach() for name, value in metrics.items()}


def explained_variance(values, returns):
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one no better than a constant."""
    variance = returns.var(unbiased=False)
    return 1 - (returns - values).var(unbiased=False) / variance if variance > 0 else torch.tensor(0.0)
