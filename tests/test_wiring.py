"""What the trainer passes on: each test fails if one connection between config, rollout, optimizer and files is cut.

A stub policy, a stub environment and a stub rollout; the loop, the learner and PPO are the real ones.
"""
import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

import config as configuration
import train_vlm
from models import checkpoint
from models.training import learner as learner_module
from models.training.learner import Learner
from models.training.ppo import estimate_advantages, lr_at, update_ppo
from models.training.run_state import BEST_FILE, Run
from simulator.rollout import Rollout

T, E, D = 8, 4, 3
WORDS = ["vlm_tiny", "device=cpu", "parser.samples=0", "bc.epochs=0", "train.batch_size=8", f"env.num_envs={E}",
         f"rl.rollout_steps={T}", "rl.iterations=4", "rl.update_epochs=2", "rl.target_kl=1e9", "train.lr=0.01",
         "train.head_lr=0.02", "train.value_lr=0.03"]


class StubPolicy(nn.Module):
    """Two actions and a value, all linear in the observation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.reader, self.action_head, self.value_head = nn.Linear(D, D), nn.Linear(D, 2), nn.Linear(D, 1)
        self.value_head = nn.Sequential(self.value_head, nn.Flatten(0))
        self.backbone = SimpleNamespace(cache_vision_features=contextlib.nullcontext)
        self.parsed_goal, self.device, self.rows_seen = None, torch.device("cpu"), []

    def parameter_groups(self):
        return {"backbone": list(self.reader.parameters()), "action": list(self.action_head.parameters()),
                "value": list(self.value_head.parameters())}

    def value_features(self, obs):
        return self.reader(torch.from_numpy(obs["x"])).detach()

    def evaluate_actions(self, obs, actions):
        self.rows_seen += obs["row"].tolist()
        distribution = torch.distributions.Categorical(logits=self.action_head(self.reader(torch.from_numpy(obs["x"]))))
        return distribution.log_prob(actions), distribution.entropy(), self.value_head(self.value_features(obs))

    def use_dropout(self, on, bpe_dropout=0.0):
        return self

    def trainable_state_dict(self):
        return {name: value.clone() for name, value in self.state_dict().items()}

    def model_config(self):
        return {}


def make_learner(*words):
    settings = configuration.load([*WORDS, *words])
    return Learner(Accelerator(cpu=True), StubPolicy(), settings), settings


def make_rollout(policy):
    rng = np.random.default_rng(0)
    obs = {"x": rng.normal(size=(T, E, D)).astype(np.float32), "row": np.arange(T * E).reshape(T, E)}
    flat = {key: leaf.reshape(T * E, *leaf.shape[2:]) for key, leaf in obs.items()}
    actions = torch.from_numpy(rng.integers(2, size=T * E))
    with torch.no_grad():
        log_probs, _, values = policy.evaluate_actions(flat, actions)
    policy.rows_seen.clear()
    rewards = torch.from_numpy(rng.normal(3, 2, size=(T, E)).astype(np.float32))
    ended = torch.zeros(T, E, dtype=torch.bool)
    return Rollout(obs, actions.view(T, E), log_probs.view(T, E), values.view(T, E), values.view(T, E), rewards, ended,
                   ended)


def update(learner, settings, rates=0.05):
    learner.set_learning_rates(dict.fromkeys(("backbone", "action", "value"), rates))
    return update_ppo(learner, make_rollout(learner.policy), settings, torch.Generator().manual_seed(0))


def run_loop(monkeypatch, tmp_path, *words):
    """Run the real loop -> the learning rates and the weights after each PPO iteration, beginning with iteration 0."""
    learner, settings = make_learner(*words)
    monkeypatch.setattr(train_vlm, "collect_steps", lambda env, policy, obs, *_: (make_rollout(learner.policy), obs))
    monkeypatch.setattr(train_vlm, "evaluate_if_due", lambda run: {})
    monkeypatch.setattr(train_vlm, "save_state", lambda run: None)
    env = SimpleNamespace(num_envs=E, reset=lambda seed: ({}, {}))
    run = Run(settings, env, learner, tmp_path, "")
    run.interrupt, run.logger = False, SimpleNamespace(rows=[{"stage": "bc"}], write=lambda row: None)
    history = [({}, learner.policy.trainable_state_dict())]

    def log(run, metrics, bar):
        run.state.iteration += 1
        rates = {group["name"]: group["lr"] for group in learner.optimizer.param_groups}
        history.append((rates, learner.policy.trainable_state_dict()))

    monkeypatch.setattr(train_vlm, "log", log)
    train_vlm.run_stages(run)
    return history


def test_normalised_advantages_reach_the_loss(monkeypatch):
    seen, real_loss = [], learner_module.ppo_loss
    monkeypatch.setattr(learner_module, "ppo_loss", lambda log_probs, old, advantages, *rest, **options: (
        seen.append(advantages) or real_loss(log_probs, old, advantages, *rest, **options)))
    learner, settings = make_learner("rl.update_epochs=1")
    raw = make_rollout(learner.policy)
    assert abs(raw.rewards.mean()) > 1
    update(learner, settings)
    advantages = torch.cat(seen)
    assert len(advantages) == T * E
    assert advantages.mean().abs() < 1e-5 and (advantages.std(unbiased=False) - 1).abs() < 1e-4
    assert torch.equal(estimate_advantages(learner, raw, settings.rl).log_probs, raw.log_probs.flatten())


def test_minibatches_are_shuffled_anew_in_every_pass():
    learner, settings = make_learner()
    update(learner, settings)
    rows = learner.policy.rows_seen
    first, second = rows[:T * E], rows[T * E:]
    assert sorted(first) == sorted(second) == list(range(T * E))
    assert first != second and first != sorted(first) and second != sorted(second)


@pytest.mark.parametrize(("schedule", "factors"), [
    ("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]),
    ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])])
def test_learning_rates_follow_their_schedule(monkeypatch, tmp_path, schedule, factors):
    assert [lr_at(2.0, schedule, i / 4) for i in range(4)] == pytest.approx([2.0 * factor for factor in factors])
    history = run_loop(monkeypatch, tmp_path, f"train.lr_schedule={schedule}")
    for factor, (rates, _) in zip(factors, history[1:], strict=True):
        assert rates == pytest.approx({"backbone": 0.01 * factor, "action": 0.02 * factor, "value": 0.03 * factor})


def test_the_first_iterations_train_the_critic_alone(monkeypatch, tmp_path):
    weights = [weights for _, weights in run_loop(monkeypatch, tmp_path, "rl.critic_warmup=2")]
    def moved(i, part):
        return any(not torch.equal(weights[i][name], weights[i + 1][name]) for name in weights[i] if part in name)
    assert [moved(i, "action_head") for i in range(4)] == [False, False, True, True]
    assert [moved(i, "reader") for i in range(4)] == [False, False, True, True]
    assert [moved(i, "value_head") for i in range(4)] == [True] * 4


def test_gradients_are_clipped(monkeypatch):
    real_loss, applied = learner_module.ppo_loss, []

    def huge(*arguments, **options):
        loss, metrics = real_loss(*arguments, **options)
        return loss * 1e6, metrics

    monkeypatch.setattr(learner_module, "ppo_loss", huge)
    learner, settings = make_learner("train.max_grad_norm=0.5")
    step = learner.optimizer.step

    def record():
        applied.append(math.sqrt(sum(float(p.grad.square().sum()) for p in learner.policy.parameters())))
        step()

    monkeypatch.setattr(learner.optimizer, "step", record)
    assert update(learner, settings)["train/grad_norm"] > 1000
    assert applied == pytest.approx([0.5] * len(applied), rel=1e-3) and len(applied) == 8


@pytest.mark.parametrize(("target_kl", "most"), [("1e-12", 1), ("1e9", 8)])
def test_the_target_kl_ends_an_update(target_kl, most):
    learner, settings = make_learner(f"rl.target_kl={target_kl}")
    row = update(learner, settings)
    assert row["train/num_updates"] == most and ("train/kl_early_stop" in row) == (most == 1)


def test_the_best_checkpoint_is_the_best(monkeypatch, tmp_path):
    learner, settings = make_learner("eval.episodes=10")
    env = SimpleNamespace(num_envs=E, round_robin_goals=lambda n: ["a"] * n)
    run, successes = Run(settings, env, learner, tmp_path, ""), [0.2, 0.9, 0.5]
    for success in successes:
        with torch.no_grad():
            learner.policy.action_head.bias.fill_(success)
        result = {"success": np.arange(10) < 10 * success, "length": np.ones(10), "goal": np.full(10, "a", object)}
        monkeypatch.setattr(train_vlm, "run_episodes", lambda *_, result=result: result)
        assert train_vlm.evaluate(run)["eval/success_rate"] == success
    meta, weights, _ = checkpoint.load(tmp_path / BEST_FILE)
    assert meta["success"] == 0.9 and torch.equal(weights["action_head.bias"], torch.full((2,), 0.9))


def test_the_weights_of_the_cloning_terms_reach_the_loss(monkeypatch):
    seen = []
    monkeypatch.setattr(learner_module, "bc_loss", lambda *_, **options: seen.append(options))
    learner, _ = make_learner("bc.attention_coef=2", "bc.parser_coef=0.5")
    distribution = SimpleNamespace(detach_std=lambda: None, log_prob=lambda actions: actions,
                                   attention_log_prob=lambda *_: None)
    learner.policy.forward_obs = lambda obs: SimpleNamespace(distribution=distribution, slot_logits=None)
    obs = {name: np.zeros(2, np.float32) for name in ("goal_slots", "active_goal", "object_xy")}
    learner.model("bc", obs, torch.zeros(2))
    assert seen == [{"attention_coef": 2.0, "parser_coef": 0.5}]


def test_a_resumed_optimizer_takes_the_new_weight_decay():
    learner, settings = make_learner("train.weight_decay=0.1")
    update(learner, settings)
    other, _ = make_learner("train.weight_decay=0.2")
    other.restore(learner.state())
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [0.2] * 3
    assert other.optimizer.state_dict()["state"].keys() == learner.optimizer.state_dict()["state"].keys()
