"""The PPO core on a problem whose answer is known: CartPole-v1 (`make test-slow`).

The same collect, compute_gae and ppo_loss as the VLM's trainer, with a small MLP policy; the hyper-parameters are
those of the RL Baselines3 Zoo for CartPole.
"""
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from dataset import minibatches
from models.training.losses import compute_gae, normalize, ppo_loss
from simulator.rollout import collect


class MLPPolicy(nn.Module):
    def __init__(self):
        super().__init__()
        net = lambda out: nn.Sequential(  # noqa: E731
            nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))
        self.actor, self.critic = net(2), net(1)

    def parts(self, obs):
        obs = torch.as_tensor(obs, dtype=torch.float32)
        return torch.distributions.Categorical(logits=self.actor(obs)), self.critic(obs).squeeze(-1)

    def act(self, obs, deterministic=False):
        distribution, values = self.parts(obs)
        actions = distribution.probs.argmax(-1) if deterministic else distribution.sample()
        return actions, distribution.log_prob(actions), values


def cartpole(count):
    return SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def train_cartpole(seed, total=100_000, envs=8, steps=32):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    env, policy = cartpole(envs), MLPPolicy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    obs, _ = env.reset(seed=seed)
    episode_stats = np.zeros((2, envs))
    for done in range(0, total, envs * steps):
        left = 1 - done / total
        optimizer.param_groups[0]["lr"] = 1e-3 * left
        rollout, obs = collect(env, policy, obs, steps, episode_stats)
        advantages, returns = compute_gae(rollout.rewards, rollout.values, rollout.next_values, rollout.terminated,
                                          rollout.truncated, gamma=0.98, gae_lambda=0.8)
        flat = torch.as_tensor(rollout.flat_obs())
        for _ in range(20):
            for b in minibatches(envs * steps, 256, generator):
                distribution, values = policy.parts(flat[b])
                actions = rollout.actions.flatten()[b]
                loss, _ = ppo_loss(distribution.log_prob(actions), rollout.log_probs.flatten()[b],
                                   normalize(advantages.flatten()[b]), values, returns.flatten()[b],
                                   distribution.entropy(), clip_ratio=max(0.2 * left, 1e-3), value_coef=0.5,
                                   entropy_coef=0.0)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
                optimizer.step()
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
