"""The benchmark compares the same numbers, and its commands run."""
import json

import numpy as np
import pytest
import torch

from models.backbones import tiny
from scripts import benchmark
from scripts.benchmark_baselines import BaselinePolicy

PARTS = ("type_logits", "mode_logits", "point", "param_mean", "class_logits", "point_attention", "subgoal_logits")
SMALL = ["vlm_fast", "model.vlm.name:=small", "model.vlm.init:=random", "model.heads.hidden=[32]"]


@pytest.fixture
def small(monkeypatch):
    """A model of real proportions: patches of 14 pixels, a system prompt; adapters with an effect."""
    monkeypatch.setitem(tiny.MODEL_CONFIGS, "small",
                        tiny.qwen2_vl_config(64, 2, 4, 2, 128, None, (64, 1, 4, 2), 14, "float32"))

    def make(*words):
        _, policy, _, env = benchmark.build_run([*SMALL, *words], threads=1)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return policy, env
    return make


def check(policy, env, count=5):
    """A batch equals what both baselines make of its samples, in outputs and gradients."""
    obs, _ = env.reset(seed=0)
    images, goals = obs["image"][:count], obs["goal"][:count]
    actions = torch.from_numpy(env.random_actions(np.random.default_rng(0))[:count]).float()
    parameters = [p for p in policy.parameters() if p.requires_grad]

    def gradients(outputs, actions):
        loss = sum((output.distribution.log_prob(action) + output.value + output.slot_logits.sum(-1)).sum()
                   for output, action in zip(outputs, actions, strict=True))
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(
            loss, parameters, allow_unused=True, materialize_grads=True)])

    ours, baseline = policy(images, goals), BaselinePolicy(policy)
    expected = gradients([ours], [actions])
    single = [baseline.forward_single(images[i], goals[i]) for i in range(count)]
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    for outputs, parts in ((single, actions[:, None]), ([baseline.forward_batched(images, goals)], [actions])):
        for name in PARTS:
            close(getattr(ours.distribution, name), torch.cat([getattr(one.distribution, name) for one in outputs]))
        close(ours.value, torch.cat([one.value for one in outputs]))
        close(ours.slot_logits, torch.cat([one.slot_logits for one in outputs]))
        assert (expected - gradients(outputs, parts)).norm() < 1e-4 * expected.norm()


def test_the_benchmark_compares_with_the_same_policy():
    _, policy, _, env = benchmark.build_run(["vlm_tiny"])
    check(policy, env)


@pytest.mark.parametrize("words", [
    [], ["model.vlm.min_pixels=12544", "model.vlm.gradient_checkpointing=True"], ["model.vlm.attention:=eager"]])
def test_with_adapters_too_where_prompts_share_their_beginning(small, words):
    policy, env = small(*words)
    backbone = policy.eval().backbone
    assert backbone._prefix_kv_cache(backbone.prompt("heat")[0], 2) is not None
    check(policy.train(), env)
    goals = ["heat", "push everything to the very top, please", "모아줘"]           # without an image
    one_by_one = torch.cat([policy.parse_goal([goal]) for goal in goals])
    torch.testing.assert_close(policy.parse_goal(goals), one_by_one, rtol=0, atol=1e-4)


@pytest.mark.parametrize("command", ["policy", "ppo"])
def test_commands(command, small, tmp_path, capsys):
    path = tmp_path / "out.json"
    options = ["--device", "cpu", "--threads", "1", "--repeats", "1", "--json", str(path)]
    assert benchmark.main([command, *options, "--preset", *SMALL, "rl.update_epochs=1"]) == 0
    result = json.loads(path.read_text())
    assert result["speedup_vs_single"] > 0 and result["speedup_vs_batched"] > 0
    assert result["threads"] == 1 and result["overrides"] == [*SMALL, "rl.update_epochs=1"]
    assert 0 < result["trainable_parameters"] < result["parameters"] and result["peak_process_mib"] > 0
    assert "speedup" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["vlm_tinny"], ["vlm_tiny", "rl.gamma=2"], ["vlm_fast", "model.vlm.name:=nowhere",
                                                                               "model.vlm.init:=random"]])
def test_wrong_words_get_one_line(words, capsys):
    assert benchmark.main(["ppo", "--preset", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("words", [["policy", "--repeats", "0"], ["ppo", "--json", "nowhere/a.json"]])
def test_wrong_arguments_get_one_line(words, capsys):
    assert benchmark.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words[1] in error and error.count("\n") == 1


def test_simulator_and_its_reference(capsys):
    result = benchmark.benchmark_simulator(1, batch=8, steps=2)
    assert result["steps_per_s"] > 0 and result["reference_steps_per_s"] > 0 and result["num_envs"] == 8
