"""The policy: the PPO ratio, dropout, which weights train, its inputs, seeds, and learning."""
import numpy as np
import pytest
import torch
from conftest import LORA
from PIL import Image
from policy_helpers import SPACE
from qwen2_vl_helpers import random_images
from torch.nn import functional as F

from models.vlm_policy import VLMPolicy
from simulator.particles.env import ParticleVectorEnv
from simulator.particles.task import action_space


@pytest.fixture(scope="module")
def obs():
    return ParticleVectorEnv(8).reset(seed=0)[0]


@pytest.fixture(scope="module")
def adapted(make_policy):
    return make_policy(lora=LORA)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("which", ["policy", "adapted"])
def test_ratio_is_one_on_fresh_data(which, mode, obs, request):
    """The PPO ratio of unchanged weights, with LoRA's dropout of 0.05 configured, and in other batches."""
    policy = request.getfixturevalue(which)
    torch.manual_seed(0)
    actions, before, output = policy.eval().sample_action(obs["image"], obs["goal"])
    policy.train(mode)
    for index in (np.arange(8), np.array([5, 0, 3])):
        part = {"image": obs["image"][index], "goal": [obs["goal"][i] for i in index]}
        after, entropy, values = policy.evaluate_actions(part, actions[index])
        assert after.shape == entropy.shape == values.shape == (len(index),)
        ratio = (after - before[index]).exp()
        torch.testing.assert_close(ratio, torch.ones(len(index)), rtol=0, atol=1e-5 if len(index) == 8 else 1e-4)
        torch.testing.assert_close(values, output.value[index], rtol=0, atol=1e-5)
    policy.eval()


def test_dropout_is_off_until_it_is_asked_for(adapted, obs):
    run = lambda: adapted(obs["image"], obs["goal"]).distribution.type_logits.detach()
    fresh = VLMPolicy(adapted.backbone, adapted.spec, goal_vocab=adapted.goal_vocab)
    assert not any(module.training for module in fresh.modules() if isinstance(module, torch.nn.Dropout))
    adapted.train()
    assert torch.equal(run(), run())
    adapted.use_dropout(True)
    assert not torch.equal(run(), run())
    adapted.eval()
    assert torch.equal(run(), run())
    adapted.train()
    adapted.use_dropout(False)
    assert torch.equal(run(), run())
    adapted.eval()


def test_with_adapters_only_they_and_the_heads_train(adapted, policy, make_policy):
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if "lora_" in name}
    assert trained - adapters == {name for name, _ in adapted.named_parameters() if "_head." in name}
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in adapters} == set(LORA["targets"])
    assert all("language_model" in name for name in adapters) and len(adapters) == 2 * 4 * 2   # layer, target, A and B
    assert set(adapted.trainable_state_dict()) == {name for name, _ in adapted.named_parameters()}  # no base elsewhere
    assert set(make_policy(lora=LORA, own_base=False).trainable_state_dict()) == trained
    assert all(parameter.requires_grad for parameter in policy.parameters())
    groups = adapted.parameter_groups()
    assert set(groups) == {"backbone", "action", "value"}
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in adapted.parameters() if parameter.requires_grad}


def test_no_weight_is_left_out_of_training(make_policy, obs):
    """Every parameter receives a gradient from the log-probability, the entropy or the value."""
    policy, space = make_policy().train(), action_space(64, 64, 50)
    space.seed(0)
    actions = torch.from_numpy(np.stack([space.sample() for _ in range(8)]))
    actions[:, 0], actions[:, 6] = torch.arange(8), actions[:, 6].round()
    torch.nn.init.normal_(policy.value_head.out.weight)
    log_probs, entropy, values = policy.evaluate_actions(obs, actions)
    (log_probs.sum() + entropy.sum() + values.sum()).backward()
    without = [name for name, parameter in policy.named_parameters()
               if parameter.grad is None or not parameter.grad.abs().any()]
    assert without == []


def test_value_loss_does_not_pull_at_the_backbone(make_policy, obs):
    policy = make_policy().train()
    torch.nn.init.normal_(policy.value_head.out.weight)
    F.mse_loss(policy(obs["image"], obs["goal"]).value, torch.ones(8)).backward()
    with_gradient = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in policy.named_parameters() if name.startswith("value_head.")}


def test_pil_images_are_arrays(policy, obs):
    torch.manual_seed(0)
    a = policy.sample_action(obs["image"], list(obs["goal"]), deterministic=True)
    pil = [Image.fromarray(image) for image in obs["image"]]
    for images in (pil, [image.convert("RGBA") for image in pil], list(obs["image"]), torch.from_numpy(obs["image"])):
        b = policy.sample_action(images, obs["goal"], deterministic=True)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("images", [
    np.zeros((2, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8), np.zeros((2, 64, 64, 4), np.uint8),
    np.zeros((2, 3, 64, 64), np.uint8), [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)],
    torch.zeros(2, 64, 64, 3, dtype=torch.int64), [None, None], ["a.png", "b.png"], [],
    np.zeros((2, 0, 0, 3), np.uint8)])
def test_wrong_images_are_refused(policy, images):
    with pytest.raises(ValueError, match="^images must be uint8"):
        policy(images, ["heat", "cool"])


@pytest.mark.parametrize("goals", [["heat"], [], "heat up", ["heat", 5], ["heat", " "], ["heat", None]])
def test_wrong_goals_are_refused(policy, goals):
    with pytest.raises(ValueError, match="^goals must be one instruction for each of the 2 images, not "):
        policy(random_images(2), goals)


def test_a_long_instruction_and_needless_proprioception_are_refused(policy):
    with pytest.raises(ValueError, match="501 characters: at most 500"):
        policy.sample_action(random_images(1), ["a" * 501])
    with pytest.raises(ValueError, match="reads no proprioception"):
        policy.sample_action(random_images(1), ["heat"], proprio=[[0.0]])


def test_sampling_follows_the_seed(policy, obs):
    def draw(seed):
        torch.manual_seed(seed)
        return policy.sample_action(obs["image"], obs["goal"])[0]
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_act_is_what_a_rollout_asks_for(policy, obs):
    actions, log_probs, values = policy.act(obs)
    assert actions.shape == (8, 7) and log_probs.shape == values.shape == (8,)
    assert all(SPACE.contains(action) for action in actions.numpy())
    assert not actions.requires_grad and not log_probs.requires_grad


def test_a_policy_learns_an_action(make_policy, obs):
    """A few steps towards one action each make these actions likelier: gradients flow and point the right way."""
    policy = make_policy().train()
    actions = torch.tensor([[4, -1, 8.0 * b, 32, 2, 30, 0] for b in range(8)])
    optimiser = torch.optim.AdamW(policy.parameters(), 3e-3)
    history = []
    for _ in range(12):
        loss = -policy.evaluate_actions(obs, actions)[0].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < history[0] - 1
