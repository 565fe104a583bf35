"""Action heads for named actions and for bounded vectors, and proprioception."""
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from models.backbones.hub_loading import read_config_files
from models.backbones.qwen2_vl import Backbone
from models.heads.attention import BoxSpec, DiscreteSpec, ProprioEncoder, spec_from_dict, spec_from_space
from models.vlm_policy import VLMPolicy
from tests.conftest import LORA

BODY = ([-1.0, 0.0, -0.05], [1.0, 2.0, 0.05])


@pytest.fixture(params=["discrete", "box"])
def acting(request, model_folder):
    """A policy with proprioception, LoRA dropout configured, in each kind of space."""
    space = spaces.Discrete(8) if request.param == "discrete" else spaces.Box(-1, 1, (7,), np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone.from_pretrained(model_folder, lora=LORA)
        backbone.name, backbone.config_files = "vlm_tiny", read_config_files(model_folder)
        policy = VLMPolicy(backbone, spec_from_space(space), hidden=(32,), goal_vocab=("1 lift", "1 push"), proprio=BODY)
        for parameter in policy.action_head.parameters():        # away from the near uniform beginning
            parameter.data += 0.05 * torch.randn_like(parameter)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return policy.eval()


def some_obs(n=6, seed=0):
    rng = np.random.default_rng(seed)
    goals = ("lift the cube", "큐브를 앞으로 밀어줘", "up")
    return {"image": rng.integers(0, 256, (n, 84, 84, 3), np.uint8), "goal": tuple(goals[i % 3] for i in range(n)),
            "proprio": rng.uniform(*BODY, (n, 3)).astype(np.float32)}


def test_specs_say_what_a_space_is_and_survive_as_plain_data():
    named = spaces.Discrete(3)
    named.names = ("a", "b", "c")
    assert spec_from_space(named) == DiscreteSpec(3, ("a", "b", "c"))
    box = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 4], np.float32))
    assert spec_from_space(box) == BoxSpec((-1.0, 0.0), (1.0, 4.0))
    for spec in (spec_from_space(named), spec_from_space(box)):
        assert spec_from_dict(dict(vars(spec))) == spec
    for space in (spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(0, 1, (2, 2)), spaces.MultiDiscrete([2, 2])):
        with pytest.raises(TypeError, match="no action head"):
            spec_from_space(space)


def test_waves_of_the_body_by_hand():
    """0.5 on [-1, 1] is a share of 0.5: waves at pi/4, pi/2, pi, 2 pi, 4 pi."""
    felt = ProprioEncoder([-1.0], [1.0])(torch.tensor([[0.5]]))[0]
    turns = [math.pi * 0.5 * k for k in (0.5, 1, 2, 4, 8)]
    assert torch.allclose(felt, torch.tensor([0.5, *map(math.sin, turns), *map(math.cos, turns)]), atol=1e-6)


def test_log_prob_and_entropy_are_torchs(acting):
    obs = some_obs()
    with torch.no_grad():
        drawn, output = acting.act(obs)[0], acting.forward_obs(obs)
    pi = output.distribution
    if isinstance(acting.spec, DiscreteSpec):
        reference = torch.distributions.Categorical(logits=pi.logits)
        assert drawn.dtype == torch.int64 and drawn.shape == (6,)
        assert torch.allclose(pi.log_prob(drawn), reference.log_prob(drawn), atol=1e-6)
        assert torch.allclose(pi.entropy(), reference.entropy(), atol=1e-6)
        with pytest.raises(ValueError, match="actions must be"):        # [B,1] against [B] would mix the samples
            pi.log_prob(drawn[:, None])
    else:
        assert drawn.dtype == torch.float32 and drawn.shape == (6, 7) and (drawn.abs() <= 1).all()
        # by numbers: each density integrates to one over [-1, 1], where a share of the range is half as wide
        grid = torch.linspace(-1, 1, 20001)
        for column in range(7):
            at = drawn[:1].repeat(len(grid), 1)
            at[:, column] = grid
            one = type(pi)(acting.spec, pi.mean[:1].expand(len(grid), -1), pi.std)
            others = pi.unit.log_prob((drawn + 1) / 2)[0].sum() - pi.unit.log_prob((drawn + 1) / 2)[0, column]
            density = (one.log_prob(at) - others).exp() / 2
            assert torch.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
        with pytest.raises(ValueError, match="actions must be"):
            pi.log_prob(drawn[:, :1])
    assert torch.isfinite(output.value).all()


def test_deterministic_is_the_mode_and_samples_follow_the_distribution(acting):
    with torch.no_grad():
        pi = acting.forward_obs({key: value[:1] for key, value in some_obs().items()}).distribution
    torch.manual_seed(0)
    drawn = torch.stack([pi.sample() for _ in range(4000)])[:, 0]
    if isinstance(acting.spec, DiscreteSpec):
        assert pi.sample(True) == pi.logits.argmax(-1)
        share = torch.bincount(drawn, minlength=8) / len(drawn)
        assert torch.allclose(share, pi.logits.softmax(-1)[0], atol=0.03)
    else:
        assert torch.equal(pi.sample(True), -1 + 2 * pi.mean)
        grid = torch.linspace(0, 1, 2001)[:, None].expand(-1, 7)
        density = type(pi.unit)(pi.mean, pi.std).log_prob(grid).exp()
        mean = torch.trapezoid(density * grid, grid, dim=0)
        assert torch.allclose(drawn.mean(0), 2 * mean - 1, atol=0.02)


def test_a_batch_is_its_samples_and_the_body_is_felt(acting):
    obs = some_obs()
    with torch.no_grad():
        full_tensor = acting.forward_obs(obs)
        for i in range(6):
            one = acting.forward_obs({key: value[i:i + 1] for key, value in obs.items()})
            assert torch.allclose(one.value, full_tensor.value[i:i + 1], atol=1e-5)
            assert torch.allclose(one.distribution.entropy(), full_tensor.distribution.entropy()[i:i + 1], atol=1e-4)
        moved = acting.forward_obs(obs | {"proprio": obs["proprio"] * 0.5})
        actions = full_tensor.distribution.sample()
    assert ((moved.distribution.log_prob(actions) - full_tensor.distribution.log_prob(actions)).abs() > 1e-4).all()


def test_the_ratio_is_one_on_fresh_data_dropout_or_not(acting):
    obs = some_obs()
    actions, log_probs, values = acting.act(obs)
    acting.train()
    again, entropy, critic_input = acting.evaluate_actions(obs, actions)
    assert torch.allclose((again - log_probs).exp(), torch.ones(6), atol=1e-5)
    assert torch.allclose(values, critic_input, atol=1e-5) and entropy.shape == (6,)
    critic_input.sum().backward()         # the critic's loss must not move the policy
    assert all(p.grad is None or not p.grad.any() for p in acting.backbone.parameters())


def test_it_survives_a_checkpoint_and_wants_its_body(acting, tmp_path):
    obs = some_obs()
    acting.save(tmp_path / "policy.pt")
    loaded = VLMPolicy.from_checkpoint(tmp_path / "policy.pt")
    assert torch.equal(loaded.act(obs, True)[0], acting.act(obs, True)[0])
    for wrong in (None, obs["proprio"][:, :2], obs["proprio"][:1]):
        with pytest.raises(ValueError, match=r"give proprio, floats of shape \(6, 3\)"):
            loaded.sample_action(obs["image"], obs["goal"], proprio=wrong)


def test_cloning_teaches_where_to_look_and_what_to_do(acting):
    """A few updates on eight samples: the loss falls, the attention goes where the thing is."""
    obs = some_obs(8)
    places = torch.rand(8, 2, 2)
    expert = torch.arange(8) if isinstance(acting.spec, DiscreteSpec) else torch.rand(8, 7) * 2 - 1
    optimizer = torch.optim.Adam([p for p in acting.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(60):
        pi = acting.forward_obs(obs).distribution
        pi.detach_std()
        loss = -(pi.log_prob(expert) + pi.attention_log_prob(expert, places, torch.zeros(8, dtype=torch.int64))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    if isinstance(acting.spec, BoxSpec):
        assert acting.action_head.log_std.grad is None
