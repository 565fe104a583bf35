"""Model and optimiser in training, whatever accelerate makes of them: one process or many, DDP, FSDP or DeepSpeed."""
import contextlib
import math

import torch
from torch import nn

from models.training.losses import bc_loss, parser_loss, ppo_loss
from models.vlm_policy import distribute_like, full_tensor


class NonFiniteError(Exception):
    """The loss or a gradient is NaN or infinite."""


class TrainingModule(nn.Module):
    """Everything that is done with the policy in training, as forward passes: what accelerate wraps."""

    def __init__(self, policy, config):
        super().__init__()
        self.policy, self.rl = policy, config.rl

    def forward(self, task, *arguments):
        return getattr(self, task)(*arguments)

    def act(self, obs, deterministic=False):
        return self.policy.act(obs, deterministic)

    def sample_action(self, *arguments):
        return self.policy.sample_action(*arguments)

    def parser(self, goals, goal_slots):
        loss = parser_loss(self.policy.parse_goal(goals), goal_slots.to(self.policy.device))
        return loss, {"train/parser_loss": loss.detach()}

    def bc(self, obs, expert):
        expert, output = expert.to(self.policy.device), self.policy.forward_obs(obs)
        goal_slots, active_goal, object_xy = (torch.from_numpy(obs[name]).to(expert.device) for name in ("goal_slots", "active_goal", "object_xy"))
        pi = output.distribution
        pi.detach_std()
        return bc_loss(pi.log_prob(expert), pi.attention_log_prob(expert, object_xy, active_goal), output.slot_logits, goal_slots)

    @torch.no_grad()
    def value_features(self, obs):
        return self.policy.value_features(obs)

    def value(self, features, returns):
        """The critic alone."""
        loss = (self.policy.value_head(features) - returns.to(features.device)).square().mean()
        return loss, {"train/value_loss": loss.detach()}

    def ppo(self, obs, actions, old_log_probs, advantages, returns):
        log_probs, entropy, values = self.policy.evaluate_actions(obs, actions)
        old_log_probs, advantages, returns = (t.to(values.device) for t in (old_log_probs, advantages, returns))
        return ppo_loss(log_probs, old_log_probs, advantages, values, returns, entropy, clip_ratio=self.rl.clip_ratio,
                        value_coef=self.rl.value_coef, entropy_coef=self.rl.entropy_coef)


class PolicyWrapper:
    """The policy as it is asked outside of updates: through the wrapped module too."""

    def __init__(self, model, policy):
        self.model, self.parsed_goal = model, policy.parsed_goal

    def act(self, obs, deterministic=False):
        return self.model("act", obs, deterministic)

    def sample_action(self, images, goals, deterministic=False, proprio=None):
        return self.model("sample_action", images, goals, deterministic, proprio)


class Learner:
    """One optimiser step at a time. `actor` is the policy for rollouts and evaluations."""

    def __init__(self, accelerator, policy, config):
        groups = [{"params": group, "name": name} for name, group in policy.parameter_groups().items() if group]
        optimizer = torch.optim.AdamW(groups, lr=config.train.lr, weight_decay=config.train.weight_decay, eps=1e-5,
                                      fused=True)
        self.accelerator, self.policy, self.config = accelerator, policy, config
        self.model, self.optimizer = accelerator.prepare(TrainingModule(policy, config), optimizer)
        self.actor = PolicyWrapper(self.model, policy)

    def run_updates(self, task, arguments, batches, target_kl=math.inf):
        """An optimiser step for each of `batches`, this process's parts of the minibatches as index tensors;
        `arguments(index)` are those of the task -> a dict of metrics for each. They end early where the KL estimate
        passes `target_kl`; `kl_at_stop` says how far it was then."""
        rows, self.early_stop_kl = [], None
        for batch in batches:
            row = self.step(task, arguments, batch, target_kl)
            if row is None:
                break
            rows.append(row)
        return rows

    def step(self, task, arguments, batch, target_kl):
        """One update -> its metrics, or None where it was not made because it would go too far."""
        rows, parts = [], batch.tensor_split(min(self.config.train.grad_accum_steps, len(batch)))
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, metrics = self.model(task, *arguments(part))
                share = len(part) / len(batch)
                self.accelerator.backward(loss * share)
            rows.append({name: value * share for name, value in metrics.items()})
        row = {name: sum(part[name] for part in rows) for name in rows[0]}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if target_kl < math.inf and (kl := float(self.mean(row["train/approx_kl"]))) > target_kl:
            self.early_stop_kl = kl
            self.optimizer.zero_grad()
            return None
        norm = self.accelerator.clip_grad_norm_(parameters, self.config.train.max_grad_norm)
        norm = full_tensor(torch.as_tensor(0.0 if norm is None else norm))        # DeepSpeed tells it later
        if not torch.isfinite(norm) and self.accelerator.scaler is None:
            where = [name for name, p in self.policy.named_parameters()
                     if p.grad is not None and not torch.isfinite(p.grad).all()]
            raise NonFiniteError(f"loss {loss.item():.3g}, gradient norm {float(norm):.3g}, not finite in {len(where)} "
                            f"weights, as {where[:1]}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return row | {"train/grad_norm": norm}

    def mean(self, value):
        """Over the processes."""
        value = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(value, "mean")

    def reduce_metrics(self, rows):
        """Rows of metrics -> their means, over all updates and processes."""
        if not rows:
            return {}
        names = list(rows[0])
        table = torch.stack([torch.stack([torch.as_tensor(row[name]).float().cpu() for name in names]) for row in rows])
        return dict(zip(names, self.mean(table.mean(0)).tolist(), strict=True))

    def set_learning_rates(self, throughput):
        """{"backbone", "action", "value"}: the learning rates from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = throughput[group["name"]]

    def reset_optimizer(self):
        """The optimiser as new."""
        self.optimizer.optimizer.state.clear()

    def state(self):
        """The optimiser's, whole and on the CPU. Every process has to ask."""
        state = self.optimizer.state_dict()
        return state | {"state": {key: {name: full_tensor(value) for name, value in one.items()}
                                  for key, one in state["state"].items()}}

    def restore(self, state):
        flat = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.optimizer.load_state_dict(state | {"state": {
            key: {name: distribute_like(value, flat[key]) if getattr(value, "shape", ()) == flat[key].shape else value
                  for name, value in one.items()} for key, one in state["state"].items()}})
