"""Action heads for named actions and for bounded vectors, and proprioception."""
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from config import UserError
from models.backbones.hub_loading import read_config_files
from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.features import ProprioEncoder
from models.heads import HEADS, BoxSpec, DiscreteSpec, make_head, spec_from_dict, spec_from_space
from models.heads.attention import BoxHead
from models.heads.distributions import BoxDistribution, HybridDistribution
from models.vlm_policy import VLMPolicy
from tests.conftest import LORA

PROPRIO = ([-1.0, 0.0, -0.05], [1.0, 2.0, 0.05])


@pytest.fixture(params=["discrete", "box"])
def acting(request, model_folder):
    """A policy with proprioception, LoRA dropout configured, in each kind of space."""
    space = spaces.Discrete(8) if request.param == "discrete" else spaces.Box(-1, 1, (7,), np.float32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Qwen2VLBackbone.from_pretrained(model_folder, lora=LORA)
        backbone.name, backbone.config_files = "vlm_tiny", read_config_files(model_folder)
        policy = VLMPolicy(backbone, spec_from_space(space), hidden=(32,), goal_vocab=("1 lift", "1 push"),
                           proprio=PROPRIO)
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
            "proprio": rng.uniform(*PROPRIO, (n, 3)).astype(np.float32)}


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


def test_a_hybrid_space_without_a_range_is_refused():
    space = spaces.Box(np.array([0, 0, 0, 1, 0], np.float32), np.array([1, 8, 8, 1, 2], np.float32))
    space.used_params, space.continuous = ((True,) * 5,) * 2, (1, 2, 3)
    space.xy_params, space.categorical = (1, 2), 4
    with pytest.raises(TypeError, match="a range above 0"):
        spec_from_space(space)


def test_proprio_features_by_hand():
    """0.5 in [-1, 1] stays 0.5; its waves are at pi/4, pi/2, pi, 2 pi, 4 pi."""
    features = ProprioEncoder([-1.0], [1.0])(torch.tensor([[0.5]]))[0]
    angles = [math.pi * 0.5 * k for k in (0.5, 1, 2, 4, 8)]
    assert torch.allclose(features, torch.tensor([0.5, *map(math.sin, angles), *map(math.cos, angles)]), atol=1e-6)


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
        # by numbers: each density integrates to one over [-1, 1], where a fraction of the range is half as wide
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
        fraction = torch.bincount(drawn, minlength=8) / len(drawn)
        assert torch.allclose(fraction, pi.logits.softmax(-1)[0], atol=0.03)
    else:
        assert torch.equal(pi.sample(True), -1 + 2 * pi.mean)
        grid = torch.linspace(0, 1, 2001)[:, None].expand(-1, 7)
        density = type(pi.unit)(pi.mean, pi.std).log_prob(grid).exp()
        mean = torch.trapezoid(density * grid, grid, dim=0)
        assert torch.allclose(drawn.mean(0), 2 * mean - 1, atol=0.02)


def test_a_batch_is_its_samples_and_proprioception_matters(acting):
    obs = some_obs()
    with torch.no_grad():
        batch = acting.forward_obs(obs)
        for i in range(6):
            one = acting.forward_obs({key: value[i:i + 1] for key, value in obs.items()})
            assert torch.allclose(one.value, batch.value[i:i + 1], atol=1e-5)
            assert torch.allclose(one.distribution.entropy(), batch.distribution.entropy()[i:i + 1], atol=1e-4)
        moved = acting.forward_obs(obs | {"proprio": obs["proprio"] * 0.5})
        actions = batch.distribution.sample()
    assert ((moved.distribution.log_prob(actions) - batch.distribution.log_prob(actions)).abs() > 1e-4).all()


def test_the_ratio_is_one_on_fresh_data_dropout_or_not(acting):
    obs = some_obs()
    actions, log_probs, values = acting.act(obs)
    acting.train()
    again, entropy, new_values = acting.evaluate_actions(obs, actions)
    assert torch.allclose((again - log_probs).exp(), torch.ones(6), atol=1e-5)
    assert torch.allclose(values, new_values, atol=1e-5) and entropy.shape == (6,)
    new_values.sum().backward()         # the value loss must not train the backbone
    assert all(p.grad is None or not p.grad.any() for p in acting.backbone.parameters())


def test_it_survives_a_checkpoint_and_requires_proprioception(acting, tmp_path):
    obs = some_obs()
    acting.save(tmp_path / "policy.pt")
    loaded = VLMPolicy.from_checkpoint(tmp_path / "policy.pt")
    assert torch.equal(loaded.act(obs, True)[0], acting.act(obs, True)[0])
    for wrong in (None, obs["proprio"][:, :2], obs["proprio"][:1]):
        with pytest.raises(ValueError, match=r"give proprio, floats of shape \(6, 3\)"):
            loaded.sample_action(obs["image"], obs["goal"], proprio=wrong)


def test_cloning_trains_attention_and_actions(acting):
    """A few updates on eight samples: the loss falls, with the attention on the objects in it."""
    obs = some_obs(8)
    object_xy = torch.rand(8, 2, 2)
    expert = torch.arange(8) if isinstance(acting.spec, DiscreteSpec) else torch.rand(8, 7) * 2 - 1
    optimizer = torch.optim.Adam([p for p in acting.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(60):
        pi = acting.forward_obs(obs).distribution
        pi.detach_std()
        attention = pi.attention_log_prob(expert, object_xy, torch.zeros(8, dtype=torch.int64))
        loss = -(pi.log_prob(expert) + attention).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    if isinstance(acting.spec, BoxSpec):
        assert acting.action_head.log_std.grad is None


# --- bounds of a Box --------------------------------------------------------------------------------------------
def box_distribution(space, mean):
    """A BoxDistribution for the space, with this mean for every number."""
    spec = spec_from_space(space)
    return BoxDistribution(spec, torch.full((1000, len(spec.low)), mean), torch.full((len(spec.low),), 0.3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0])
def test_samples_lie_in_the_space(mean, dtype):
    """Bounds as 0.1 and 0.7, which float32 cannot represent: -1 + 1.0 * 1.1 would be 0.10000002."""
    torch.manual_seed(0)
    low = np.array([-1.0, -0.7, -0.2, 0.1, 0.7], dtype)
    high = np.array([0.1, 0.1, 0.1, 0.7, 0.9], dtype)
    space = spaces.Box(low, high, dtype=dtype)
    pi = box_distribution(space, mean)
    for deterministic in (False, True):
        actions = pi.sample(deterministic)
        assert actions.dtype == torch.float32
        assert all(space.contains(action) for action in actions.numpy())
        assert torch.isfinite(pi.log_prob(actions)).all()


def test_hybrid_samples_lie_in_the_space():
    """The same for the continuous columns of a hybrid space: type, x, y, value, class."""
    low = np.array([0, -1, -1, -1, 0], np.float32)
    high = np.array([0, 0.1, 0.1, 0.1, 1], np.float32)
    spec = spec_from_dict({"kind": "hybrid", "low": low, "high": high, "used_params": [[True] * 5],
                           "continuous": [1, 2, 3], "xy_params": [1, 2], "categorical": 4})
    ones = torch.ones
    pi = HybridDistribution(spec, ones(3, 1), ones(3, 1, 2), ones(3, 1, 2, 2), ones(3, 1, 1), ones(1, 3), ones(3, 2))
    assert all(spaces.Box(low, high).contains(action) for action in pi.sample(deterministic=True).numpy())


def test_a_number_with_equal_bounds_is_a_constant():
    """It is sampled as its bound; log_prob, entropy and gradients are those of the other numbers."""
    torch.manual_seed(0)
    pi = box_distribution(spaces.Box(np.float32([-1, 0.3, 0]), np.float32([1, 0.3, 4])), 0.5)
    others = box_distribution(spaces.Box(np.float32([-1, 0]), np.float32([1, 4])), 0.5)
    for deterministic in (False, True):
        actions = pi.sample(deterministic)
        assert (actions[:, 1] == np.float32(0.3)).all()
        torch.testing.assert_close(pi.log_prob(actions), others.log_prob(actions[:, [0, 2]]))
    torch.testing.assert_close(pi.entropy(), others.entropy())
    pi.mean.requires_grad_(True)
    (pi.log_prob(actions) + pi.entropy()).sum().backward()
    assert torch.isfinite(pi.mean.grad).all() and (pi.mean.grad[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float16])
def test_a_box_of_another_dtype_is_refused(dtype):
    with pytest.raises(TypeError, match=f"{np.dtype(dtype)}: give a Box of float32 or float64"):
        spec_from_space(spaces.Box(0, 5, (2,), dtype))


# --- the registry -----------------------------------------------------------------------------------------------
def test_specs_saved_without_a_kind_still_load():
    for spec in (BoxSpec((0.0,), (1.0,)), DiscreteSpec(3)):
        data = dict(vars(spec))
        assert data.pop("kind") in HEADS
        assert spec_from_dict(data) == spec


def test_heads_are_made_by_kind():
    head = make_head(BoxSpec((0.0,), (1.0,)), goal_width=5, patch_width=8, hidden=[16], init_std=0.1)
    assert isinstance(head, BoxHead)
    with pytest.raises(UserError, match="unknown action head 'mine'.*register_head"):
        spec_from_dict({"kind": "mine", "low": [0], "high": [1]})
