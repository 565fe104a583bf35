"""The policy and its optimizer in training, in one process or in several (DDP, FSDP)."""
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from models.training.losses import Metrics, bc_loss, parser_loss, ppo_loss
from models.vlm_policy import distribute_like, full_tensor

Obs = dict[str, Any]    # leaves [B,...]: np.ndarray, of strings too
PARAMETER_GROUPS = ("backbone", "action", "value")


class NonFiniteError(Exception):
    """The loss or a gradient is NaN or infinite."""


class TrainingModule(nn.Module):
    """The module that accelerate wraps: `forward(task, ...)` calls the method named `task`.

    DDP and FSDP require that every use of the model is a forward pass of the wrapped module.
    """

    def __init__(self, policy: nn.Module, config: Any):
        super().__init__()
        self.policy = policy
        self.bc_config = config.bc
        self.rl_config = config.rl

    def forward(self, task: str, *arguments: Any) -> Any:
        return getattr(self, task)(*arguments)

    def act(self, obs: Obs, deterministic: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.policy.act(obs, deterministic)

    def sample_action(self, *arguments: Any) -> tuple:
        return self.policy.sample_action(*arguments)

    def parser(self, instructions: list[str], goal_slots: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Return the parser loss of B instructions with `goal_slots` float32 [B,V], and its metrics."""
        loss = parser_loss(self.policy.parse_goal(instructions), goal_slots.to(self.policy.device))
        return loss, {"train/parser_loss": loss.detach()}

    def bc(self, obs: Obs, expert_actions: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Return the behaviour-cloning loss of B samples and its metrics."""
        output = self.policy.forward_obs(obs)
        device = self.policy.device
        expert_actions = expert_actions.to(device)
        goal_slots = torch.from_numpy(obs["goal_slots"]).to(device)         # [B,V]
        active_goal = torch.from_numpy(obs["active_goal"]).to(device)       # [B]
        object_xy = torch.from_numpy(obs["object_xy"]).to(device)           # [B,2,2]
        distribution = output.distribution
        distribution.detach_std()
        log_probs = distribution.log_prob(expert_actions)
        attention_log_probs = distribution.attention_log_prob(expert_actions, object_xy, active_goal)
        return bc_loss(log_probs, attention_log_probs, output.slot_logits, goal_slots,
                       attention_coef=self.bc_config.attention_coef, parser_coef=self.bc_config.parser_coef)

    @torch.no_grad()
    def value_features(self, obs: Obs) -> torch.Tensor:
        return self.policy.value_features(obs)

    def value(self, features: torch.Tensor, returns: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Return the loss of the value head alone, for features [B,D] and returns [B], and its metrics."""
        loss = (self.policy.value_head(features) - returns.to(features.device)).square().mean()
        return loss, {"train/value_loss": loss.detach()}

    def ppo(self, obs: Obs, actions: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor,
            returns: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """Return the PPO loss of B samples and its metrics."""
        log_probs, entropy, values = self.policy.evaluate_actions(obs, actions)
        old_log_probs, advantages, returns = (t.to(values.device) for t in (old_log_probs, advantages, returns))
        rl = self.rl_config
        return ppo_loss(log_probs, old_log_probs, advantages, values, returns, entropy, clip_ratio=rl.clip_ratio,
                        value_coef=rl.value_coef, entropy_coef=rl.entropy_coef)


class PolicyWrapper:
    """The policy for rollouts and evaluations; it calls the wrapped module too."""

    def __init__(self, model: nn.Module, policy: nn.Module):
        self.model = model
        self.parsed_goal = policy.parsed_goal

    def act(self, obs: Obs, deterministic: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.model("act", obs, deterministic)

    def sample_action(self, images: Any, goals: list[str], deterministic: bool = False, proprio: Any = None) -> tuple:
        return self.model("sample_action", images, goals, deterministic, proprio)


class Learner:
    """A policy, its optimizer and the updates. `actor` is the policy for rollouts and evaluations.

    `early_stop_kl` is the KL estimate that ended the last `run_updates` early, or None.
    """

    def __init__(self, accelerator: Accelerator, policy: nn.Module, config: Any):
        groups = [{"params": group, "name": name} for name, group in policy.parameter_groups().items() if group]
        optimizer = torch.optim.AdamW(groups, lr=config.train.lr, weight_decay=config.train.weight_decay, eps=1e-5,
                                      fused=True)
        self.accelerator, self.policy, self.config = accelerator, policy, config
        self.model, self.optimizer = accelerator.prepare(TrainingModule(policy, config), optimizer)
        self.actor = PolicyWrapper(self.model, policy)
        self.early_stop_kl = None

    def run_updates(self, task: str, arguments: Callable[[torch.Tensor], tuple], batches: Iterable[torch.Tensor],
                    target_kl: float = math.inf) -> list[Metrics]:
        """Make one optimizer step per batch and return the metrics of each.

        `batches` holds index tensors, this process's part of each minibatch. `arguments(index)` returns those of the
        task. The updates end before a step whose KL estimate is above `target_kl`.
        """
        rows, self.early_stop_kl = [], None
        for batch in batches:
            row = self.step(task, arguments, batch, target_kl)
            if row is None:
                break
            rows.append(row)
        return rows

    def step(self, task: str, arguments: Callable[[torch.Tensor], tuple], batch: torch.Tensor,
             target_kl: float) -> Metrics | None:
        """Make one optimizer step and return its metrics; return None, without a step, if the KL is too large."""
        row, loss = self.accumulate_gradients(task, arguments, batch)
        if target_kl < math.inf and (kl := float(self.mean(row["train/approx_kl"]))) > target_kl:
            self.early_stop_kl = kl
            self.optimizer.zero_grad()
            return None
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = full_tensor(self.accelerator.clip_grad_norm_(parameters, self.config.train.max_grad_norm))
        if not torch.isfinite(norm) and self.accelerator.scaler is None:
            where = [name for name, p in self.policy.named_parameters()
                     if p.grad is not None and not torch.isfinite(p.grad).all()]
            raise NonFiniteError(f"loss {loss.item():.3g}, gradient norm {float(norm):.3g}, not finite in "
                                 f"{len(where)} parameters, such as {where[:1]}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return row | {"train/grad_norm": norm}

    def accumulate_gradients(self, task: str, arguments: Callable[[torch.Tensor], tuple],
                             batch: torch.Tensor) -> tuple[Metrics, torch.Tensor]:
        """Add the gradients of a batch in `train.grad_accum_steps` parts; return the mean metrics and the last loss."""
        parts = batch.tensor_split(min(self.config.train.grad_accum_steps, len(batch)))
        rows = []
        for i, part in enumerate(parts):
            is_last = i == len(parts) - 1       # gradients are averaged over the processes once
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss, metrics = self.model(task, *arguments(part))
                fraction = len(part) / len(batch)
                self.accelerator.backward(loss * fraction)
            rows.append({name: value * fraction for name, value in metrics.items()})
        return {name: sum(row[name] for row in rows) for name in rows[0]}, loss

    def mean(self, value: float | torch.Tensor) -> torch.Tensor:
        """Return the mean over the processes."""
        value = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(value, "mean")

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensors [N,...] of all processes joined along the first axis, on the CPU."""
        return self.accelerator.gather(tensor.to(self.accelerator.device)).cpu()

    def reduce_metrics(self, rows: list[Metrics]) -> dict[str, float]:
        """Return the means over all updates and processes."""
        if not rows:
            return {}
        names = list(rows[0])
        table = torch.stack([torch.stack([torch.as_tensor(row[name]).float().cpu() for name in names]) for row in rows])
        return dict(zip(names, self.mean(table.mean(0)).tolist(), strict=True))     # [U,M] -> [M]

    def set_learning_rates(self, rates: dict[str, float]) -> None:
        """Set the learning rates of the parameter groups "backbone", "action" and "value"."""
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]]

    def reset_optimizer(self) -> None:
        """Clear the optimizer's moments and step counts."""
        self.optimizer.optimizer.state.clear()

    def state(self) -> dict:
        """Return the optimizer's whole state on the CPU. Every process must call it."""
        state = self.optimizer.state_dict()
        return state | {"state": {key: {name: full_tensor(value) for name, value in one.items()}
                                  for key, one in state["state"].items()}}

    def restore(self, state: dict) -> None:
        """Restore what `state` returned; the weight decay is the config's, which a resumed run may change."""
        flat = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.load_state_dict(state | {"state": {
            key: {name: distribute_like(value, flat[key]) if getattr(value, "shape", ()) == flat[key].shape else value
                  for name, value in one.items()} for key, one in state["state"].items()}})
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.train.weight_decay


def minibatches(count: int, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Return index tensors of shuffled minibatches over `count` samples; a last one below half the size is dropped."""
    order = torch.randperm(count, generator=generator)
    return [batch for batch in order.split(size) if len(batch) * 2 >= min(size, count)]


def minibatch_indices(learner: Learner, count: int, generator: torch.Generator,
                      passes: int = 1) -> Iterator[torch.Tensor]:
    """Yield this process's part of each minibatch, as indices of its `count` samples, for a number of passes."""
    size = learner.config.train.batch_size // learner.accelerator.num_processes
    for _ in range(passes):
        yield from minibatches(count, size, generator)


def select_obs(obs: Obs | np.ndarray, index: torch.Tensor) -> Obs | np.ndarray:
    """Return the samples `index` of an observation with leaves [N,...]."""
    if isinstance(obs, dict):
        return {key: select_obs(leaf, index) for key, leaf in obs.items()}
    return obs[index.numpy()]
