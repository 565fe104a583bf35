"""PPO on a problem with a known solution: CartPole-v1 (`make test-slow`).

The collect, the learner and the PPO updates are those of the trainer, with a small MLP policy. The hyper-parameters are
those of the RL Baselines3 Zoo for CartPole: a minibatch is a whole rollout, learning rate and clip ratio fall linearly.
"""
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from models.training.learner import Learner
from models.training.ppo import update_ppo
from simulator.rollout import collect


class MLPPolicy(nn.Module):
    parsed_goal, device = None, torch.device("cpu")

    def __init__(self):
        super().__init__()
        net = lambda out: nn.Sequential(
            nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))
        self.actor, self.critic = net(2), net(1)

    def parameter_groups(self):
        return {"action": list(self.actor.parameters()), "value": list(self.critic.parameters())}

    def forward_obs(self, obs):
        obs = torch.as_tensor(obs, dtype=torch.float32)
        return torch.distributions.Categorical(logits=self.actor(obs)), self.critic(obs).squeeze(-1)

    def act(self, obs, deterministic=False):
        distribution, values = self.forward_obs(obs)
        actions = distribution.probs.argmax(-1) if deterministic else distribution.sample()
        return actions, distribution.log_prob(actions), values

    def evaluate_actions(self, obs, actions):
        distribution, values = self.forward_obs(obs)
        return distribution.log_prob(actions), distribution.entropy(), values


def cartpole(count):
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def train_cartpole(seed, total=100_000, envs=8, steps=32):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rl = SimpleNamespace(gamma=0.98, gae_lambda=0.8, clip_ratio=0.2, value_coef=0.5, entropy_coef=0.0, update_epochs=20,
                         target_kl=float("inf"))
    train = SimpleNamespace(lr=1e-3, weight_decay=0.0, batch_size=envs * steps, grad_accum_steps=1, max_grad_norm=0.5)
    settings = SimpleNamespace(rl=rl, train=train, bc=None)
    env, policy = cartpole(envs), MLPPolicy()
    learner = Learner(Accelerator(cpu=True), policy, settings)
    obs, _ = env.reset(seed=seed)
    episode_stats = np.zeros((2, envs))
    for done in range(0, total, envs * steps):
        left = 1 - done / total
        rl.clip_ratio = max(0.2 * left, 1e-3)
        learner.set_learning_rates({"action": 1e-3 * left, "value": 1e-3 * left})
        rollout, obs = collect(env, learner.actor, obs, steps, episode_stats)
        update_ppo(learner, rollout, settings, generator)
    return policy


def mean_return(policy, episodes=100):
    """Of the first `episodes` finished ones, one per environment."""
    env = cartpole(episodes)
    obs, _ = env.reset(seed=123)
    total, running = np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        with torch.no_grad():
            actions = policy.act(obs, deterministic=True)[0].numpy()
        obs, rewards, terminated, truncated, _ = env.step(actions)
        total += rewards * running
        running &= ~(terminated | truncated)
    return total.mean()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_solves_cartpole(seed):
    assert mean_return(train_cartpole(seed)) >= 475
