"""What only a GPU can show: `pytest -m cuda`. Elsewhere these tests are skipped."""
import pytest
import torch

import config
from models.training.learner import Learner
from models.training.ppo import update_ppo
from simulator.registry import make_env
from simulator.rollout import collect
from train_vlm import build_policy, make_accelerator

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]
LORA = ["vlm_fast", "model.vlm.init=random", "model.vlm.name=qwen2_vl_50m"]


def make(*words):
    """Return the config, the environments and the policy on the GPU."""
    settings = config.load([*words, "env.num_envs=8", "train.batch_size=8", "rl.rollout_steps=4"])
    env = make_env(settings, 8)
    return settings, env, build_policy(settings, env).cuda().eval()


@pytest.mark.parametrize("words", [["vlm_tiny"], LORA])
def test_the_gpu_decides_as_the_cpu(words):
    _, env, policy = make(*words)
    obs, _ = env.reset(seed=0)
    with torch.no_grad():
        actions, log_probs, values = policy.act(obs, deterministic=True)
        there = policy.evaluate_actions(obs, actions)
        here = policy.cpu().evaluate_actions(obs, actions)
    for ours, expected in zip(there, here, strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("words", [["vlm_tiny"], LORA, [*LORA, "model.vlm.dtype=bfloat16"]])
def test_a_ppo_update_on_the_gpu_starts_at_ratio_one(words):
    settings, env, policy = make(*words, "rl.update_epochs=1", "rl.target_kl=1e9")
    learner = Learner(make_accelerator(settings), policy, settings)
    learner.set_learning_rates({"backbone": 0.0, "action": 0.0, "value": 1e-3})
    rollout, _ = collect(env, learner.actor, env.reset(seed=0)[0], 4)
    metrics = update_ppo(learner, rollout, settings, torch.Generator().manual_seed(0))
    assert metrics["train/num_updates"] == 4
    assert abs(metrics["train/approx_kl"]) < (1e-2 if "model.vlm.dtype=bfloat16" in words else 1e-4)
