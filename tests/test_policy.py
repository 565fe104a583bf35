"""The action distribution against numerical integration, the backbone against transformers, the policy's promises."""
import math

import numpy as np
import pytest
import torch
from conftest import LORA
from PIL import Image
from torch.nn import functional as F

from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.heads import spec_from_dict, spec_from_space
from models.heads.attention import HybridHead
from models.heads.distributions import HybridDistribution, UnitTruncatedNormal
from models.heads.goal_parser import GoalParserHead, last_token
from models.vlm_policy import VLMPolicy
from simulator.particles.actions import ActionType
from simulator.particles.env import ParticleVectorEnv
from simulator.particles.task import action_space

SPACE = action_space(64, 64, 50)
SPEC = spec_from_space(SPACE)
KINDS, CLASSES = len(ActionType), 8
GOALS = ["입자들을 왼쪽으로 이동시켜", "heat", "push everything up to the very top of the world, please, if you can",
         "모아줘", "align them in a horizontal line"]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def gauss_legendre(n):
    """Nodes and weights of n points on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def distribution(batch=1, modes=4, seed=0, low=0.15, high=0.5, dtype=torch.float64):
    """A random HybridDistribution with std between `low` and `high`."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64).to(dtype)
    return HybridDistribution(SPEC, 2 * rand(batch, KINDS) - 1, 2 * rand(batch, KINDS, modes) - 1,
                              rand(batch, KINDS, modes, 2), rand(batch, KINDS, 2),
                              low + (high - low) * rand(KINDS, 4), 2 * rand(batch, CLASSES) - 1)


def uses(kind):
    """What README and the operator say, written out again: the columns a type reads that the policy sets."""
    area = {"x", "y", "value", "radius"}
    return {ActionType.NOOP: set(), ActionType.STEP: set(),
            ActionType.SET_PROPERTY: {"x", "y", "value", "property_type"}}.get(kind, area)


COLUMNS = ("action_type", "target", "x", "y", "value", "radius", "property_type")


# --- the truncated normal ---------------------------------------------------------------------------------------
NORMALS = [(0.5, 0.1), (0.0, 0.1), (1.0, 0.3), (0.9, 0.5), (0.02, 0.02), (0.5, 5.0)]


@pytest.mark.parametrize(("mean", "std"), NORMALS)
def test_truncated_normal_integrates_to_one_and_entropy_is_its_own(mean, std):
    p = UnitTruncatedNormal(f64(mean), f64(std))
    x, w = gauss_legendre(400)
    log_p = p.log_prob(x)
    torch.testing.assert_close((w * log_p.exp()).sum(), f64(1.0)[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(p.entropy()[0], -(w * log_p.exp() * log_p).sum(), rtol=0, atol=1e-8)
    assert (log_p.argmax() - torch.argmin((x - mean).abs())).abs() <= 1                    # `mean` is the mode


def test_truncated_normal_by_hand():
    """Mean 0, std 1 on [0, 1]: the mass is Phi(1) - 1/2 = 0.3413447, the density at 0 is 0.3989423 / 0.3413447."""
    p = UnitTruncatedNormal(f64(0.0), f64(1.0))
    torch.testing.assert_close(p.log_prob(f64(0.0, 1.0)).exp(), f64(1.1687374, 0.7088752), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), NORMALS)
def test_truncated_normal_samples_follow_it(mean, std):
    torch.manual_seed(0)
    x, w = gauss_legendre(400)
    p = UnitTruncatedNormal(f64(mean), f64(std)).log_prob(x).exp() * w
    first, second = (p * x).sum(), (p * x * x).sum()
    drawn = UnitTruncatedNormal(torch.full((40_000,), mean), torch.full((40_000,), std)).sample().double()
    deviation = (second - first**2).sqrt()
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert (drawn.mean() - first).abs() < 4 * deviation / 200                              # 4 standard errors
    assert (drawn.std() / deviation - 1).abs() < 0.02


# --- the hybrid distribution ------------------------------------------------------------------------------------
def test_spec_says_what_each_type_uses():
    for kind in ActionType:
        used = {COLUMNS[a] for a in range(1, 7) if SPEC.used_params[kind][a]}
        assert used == uses(kind) and SPEC.used_params[kind][0]
    assert (SPEC.continuous, SPEC.xy_params, SPEC.categorical) == ((2, 3, 4, 5), (2, 3), 6)
    assert spec_from_dict(SPEC.__dict__) == SPEC


def test_noop_and_step_have_the_log_prob_of_their_type_alone():
    d, actions = distribution(), SPACE.low[None].repeat(2, 0)
    actions[:, 0] = ActionType.NOOP, ActionType.STEP
    expected = d.type_logits.log_softmax(-1)[0, [ActionType.NOOP, ActionType.STEP]]
    given = torch.cat([d.log_prob(torch.from_numpy(row)[None]) for row in actions])
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ActionType)
@pytest.mark.parametrize("column", range(1, 7))
def test_only_what_the_type_uses_counts(kind, column):
    """Every type, every column: an unused one leaves the log-probability exactly as it was, a used one does not."""
    d, rng = distribution(), np.random.default_rng(0)
    action = rng.uniform(SPACE.low, SPACE.high)
    action[[0, 1, 6]] = kind, 3, 2
    other = action.copy()
    other[column] = 5 if column in (1, 6) else SPACE.low[column] + 0.3 * (action[column] - SPACE.low[column])
    a, b = (d.log_prob(torch.from_numpy(vector)[None]).item() for vector in (action, other))
    assert (a != b) == (COLUMNS[column] in uses(kind))


@pytest.mark.parametrize("kind", ActionType)
def test_total_probability_is_that_of_the_type(kind):
    """exp(log_prob) integrated over all used parameters, as shares of their ranges, and summed over the classes."""
    d = distribution(low=0.25)
    x, w = gauss_legendre(16)
    names = [name for name in COLUMNS if name in uses(kind) and name != "property_type"]
    grid = torch.meshgrid(*[x] * len(names), indexing="ij") if names else []
    weight = torch.ones((), dtype=torch.float64)
    for _ in names:
        weight = weight[..., None] * w
    actions = torch.from_numpy(SPACE.low).double().repeat(weight.numel(), 1)
    actions[:, 0] = kind
    for name, values in zip(names, grid, strict=True):
        a = COLUMNS.index(name)
        actions[:, a] = float(SPACE.low[a]) + values.flatten() * float(SPACE.high[a] - SPACE.low[a])
    total = 0.0
    for value in range(CLASSES) if "property_type" in uses(kind) else [0]:
        actions[:, 6] = value
        total += (one_for_all(d, len(actions)).log_prob(actions).exp() * weight.flatten()).sum()
    torch.testing.assert_close(total, d.type_logits.softmax(-1)[0, kind], rtol=0, atol=1e-7)


def one_for_all(d, count):
    """The distribution of one sample for `count` actions."""
    wide = lambda values: values.expand(count, *values.shape[1:])
    return HybridDistribution(SPEC, wide(d.type_logits), wide(d.mode_logits), wide(d.point), wide(d.param_mean), d.std,
                              wide(d.class_logits))


def test_point_is_a_mixture():
    """Two modes with weights 3/4 and 1/4, far apart: a peak at each, three times as high at the first."""
    d = distribution(modes=2, low=0.05, high=0.06)
    d.mode_logits = torch.log(f64(3.0, 1.0)).expand(1, KINDS, 2)
    d.point = f64([0.25, 0.5], [0.75, 0.5]).expand(1, KINDS, 2, 2)
    def at(x):
        return d.log_prob(f64([float(ActionType.APPLY_HEAT), -1, 64 * x, 32, 0, 1, 0]))
    assert abs((at(0.25) - at(0.75)).item() - math.log(3)) < 1e-6 and at(0.5) < at(0.75) - 5


def test_sampled_frequencies_of_types_and_classes():
    torch.manual_seed(0)
    d, n = distribution(dtype=torch.float32), 20_000
    actions = one_for_all(d, n).sample()
    for column, logits, rows in ((0, d.type_logits, slice(None)),
                                 (6, d.class_logits, actions[:, 0] == ActionType.SET_PROPERTY)):
        drawn, p = actions[rows, column].long(), logits.softmax(-1)[0]
        fraction = torch.bincount(drawn, minlength=8) / len(drawn)
        assert ((fraction - p).abs() < 4 * (p * (1 - p) / len(drawn)).sqrt()).all()


def test_samples_have_the_moments_of_the_density():
    """Mean of x for one type: the mixture's, by integration over both coordinates."""
    torch.manual_seed(0)
    d, kind, n = distribution(dtype=torch.float32), ActionType.APPLY_FORCE, 20_000
    d.type_logits = torch.full((1, KINDS), -50.0).index_fill(1, torch.tensor([int(kind)]), 50.0)
    drawn = one_for_all(d, n).sample()
    x, w = gauss_legendre(100)
    for axis, column in ((0, 2), (1, 3)):
        parts = UnitTruncatedNormal(d.point[0, kind, :, axis, None].double(), d.std[kind, axis].double())
        p = (d.mode_logits[0, kind].double().softmax(-1)[:, None] * parts.log_prob(x).exp()).sum(0) * w
        mean = (p * x).sum()
        deviation = ((p * x * x).sum() - mean**2).sqrt()
        assert (drawn[:, column].double().mean() / 64 - mean).abs() < 4 * deviation / math.sqrt(n)
        assert (drawn[:, column].double().std() / 64 / deviation - 1).abs() < 0.03


def test_deterministic_actions_are_the_modes():
    d = distribution(batch=6, seed=3)
    actions = d.sample(deterministic=True).double()
    assert torch.equal(actions, d.sample(deterministic=True).double())
    for b, action in enumerate(actions):
        kind = d.type_logits[b].argmax()
        point = d.point[b, kind, d.mode_logits[b, kind].argmax()]
        unit = dict(zip(("x", "y", "value", "radius"), [*point, *d.param_mean[b, kind]], strict=True))
        for a, name in enumerate(COLUMNS[1:], 1):
            low, span = float(SPACE.low[a]), float(SPACE.high[a] - SPACE.low[a])
            expected = low if name not in uses(int(kind)) else (
                float(d.class_logits[b].argmax()) if name == "property_type" else low + float(unit[name]) * span)
            assert abs(float(action[a]) - expected) < 1e-4
        assert action[0] == kind


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_sampled_actions_lie_in_the_action_space(std):
    torch.manual_seed(0)
    d = distribution(batch=3000, low=std, high=std, dtype=torch.float32)
    d.point, d.param_mean = d.point.round(), d.param_mean.round()            # modes at the very edges
    for deterministic in (False, True):
        actions = d.sample(deterministic)
        assert actions.dtype == torch.float32 and actions.shape == (3000, 7)
        assert all(SPACE.contains(action) for action in actions.numpy())
        assert torch.isfinite(d.log_prob(actions)).all()
    assert torch.isfinite(d.entropy()).all()


def test_entropy_is_minus_the_mean_log_prob():
    """With one mode it is exact: H(type) + sum of p(type) times the integrals over what the type uses."""
    d = distribution(modes=1)
    x, w = gauss_legendre(200)
    def h(mean, std):
        log_p = UnitTruncatedNormal(mean[None], std[None]).log_prob(x)
        return -(w * log_p.exp() * log_p).sum()
    discrete = lambda logits: -(logits.softmax(-1) * logits.log_softmax(-1)).sum()
    expected, p = discrete(d.type_logits[0]), d.type_logits[0].softmax(-1)
    for kind in ActionType:
        means = [*d.point[0, kind, 0], *d.param_mean[0, kind]]
        for name, mean, std in zip(("x", "y", "value", "radius"), means, d.std[kind], strict=True):
            expected += p[kind] * h(mean, std) * (name in uses(kind))
        expected += p[kind] * discrete(d.class_logits[0]) * ("property_type" in uses(kind))
    torch.testing.assert_close(d.entropy()[0], expected, rtol=0, atol=1e-8)


def test_entropy_of_several_modes_bounds_that_of_the_samples():
    """The point's mode is not seen in an action: mode and point together know at most log 4 more."""
    torch.manual_seed(0)
    d = distribution(modes=4)
    many = one_for_all(d, 20_000)
    sampled = -many.log_prob(many.sample().double()).mean()
    assert sampled - 0.05 < d.entropy()[0] < sampled + math.log(4)


def test_entropy_of_the_type_alone():
    """All on NOOP: 0. NOOP and STEP in equal shares: log 2. Neither has parameters."""
    d = distribution()
    for kinds, expected in (([ActionType.NOOP], 0.0), ([ActionType.NOOP, ActionType.STEP], math.log(2))):
        d.type_logits = torch.full((1, KINDS), -200.0, dtype=torch.float64).index_fill(1, torch.tensor(kinds), 0.0)
        assert abs(d.entropy().item() - expected) < 1e-9


# --- the backbone -----------------------------------------------------------------------------------------------
def random_images(count, height=64, width=64, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def processor(model_folder):
    from transformers import AutoImageProcessor
    return AutoImageProcessor.from_pretrained(model_folder)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (128, 128), (56, 90)])
def test_pixels_are_those_of_the_official_image_processor(policy, processor, size):
    """It repeats a still image as two frames, [P, 3 * 2 * p * p]."""
    images = random_images(2, *size)
    patches, grid = policy.backbone.pixels(images)
    official = processor([Image.fromarray(image.numpy()) for image in images], return_tensors="pt")
    assert official["image_grid_thw"].tolist() == [[1, *grid]] * 2
    expected = official["pixel_values"].view(2, patches.shape[1], 3, 2, -1)
    torch.testing.assert_close(expected[:, :, :, 0], expected[:, :, :, 1], rtol=0, atol=0)
    torch.testing.assert_close(patches.view(2, patches.shape[1], 3, -1), expected[:, :, :, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_hidden_states_are_those_of_transformers(policy, model_folder, processor, size):
    """Prompts of different lengths in one batch, against Qwen2VLModel's own forward, one by one."""
    from transformers import Qwen2VLModel
    official, backbone = Qwen2VLModel.from_pretrained(model_folder).eval(), policy.backbone
    images = random_images(5, *size)
    with torch.no_grad():
        text, ends, image, patch_centers = backbone(images, GOALS)
    count, features = size[0] * size[1] // 16**2, []
    official.visual.blocks[-1].register_forward_hook(lambda module, args, out: features.append(out))
    assert len({len(backbone.prompt(goal)[1]) for goal in GOALS}) > 2
    assert text.shape == (5, ends.max() + 1, 96) and image.shape == (5, 4 * count, 160)
    assert text.dtype == image.dtype == torch.float32
    for b, goal in enumerate(GOALS):
        before, after = backbone.prompt(goal)
        ids = torch.tensor([before + [official.config.image_token_id] * count + after])
        processed = processor([Image.fromarray(images[b].numpy())], return_tensors="pt")
        with torch.no_grad():
            hidden = official(input_ids=ids, **{name: processed[name] for name in ("pixel_values", "image_grid_thw")},
                              mm_token_type_ids=(ids == official.config.image_token_id).int()).last_hidden_state[0]
        torch.testing.assert_close(text[b, :ends[b] + 1], hidden[len(before) + count:], rtol=0, atol=1e-4)
        tokens = hidden[len(before):len(before) + count].repeat_interleave(4, 0)      # of every patch, its token's
        torch.testing.assert_close(image[b, :, :96], tokens, rtol=0, atol=1e-4)
        patches = torch.nn.functional.layer_norm(features[-1].view(4 * count, 64), (64,))
        torch.testing.assert_close(image[b, :, 96:], patches, rtol=0, atol=1e-4)


def test_prompt_is_what_the_tokenizer_makes_of_the_template(policy):
    backbone = policy.backbone
    for goal in GOALS:
        before, after = backbone.prompt(goal)
        text = backbone.tokenizer.decode([*before, *after])
        assert text.startswith("<|vision_start|>") and "<|vision_end|>" in text and text.endswith("<|im_end|>")
    assert backbone.prompt("heat") != backbone.prompt("cool")


def test_patch_log_prob_by_hand():
    """Two queries over two patches, left and right; the first position is on the right, the second is not known."""
    d = distribution(batch=2)
    d.attn_weights, d.patch_xy = f64([0.9, 0.1], [0.2, 0.8]).expand(2, 2, 2), f64([0.25, 0.5], [0.75, 0.5])
    object_xy = f64([[0.9, 0.1], [math.nan, math.nan]], [[0.6, 0.6], [0.4, 0.9]])
    expected = f64(math.log(0.1), math.log(0.1) + math.log(0.2))
    torch.testing.assert_close(d.patch_log_prob(object_xy), expected, rtol=0, atol=1e-4)


def test_subgoal_log_prob_by_hand():
    """Subgoals with weights 1 and 3: the first is served with a probability of a quarter."""
    d = distribution(batch=2)
    d.subgoal_logits = f64([0, math.log(3)]).expand(2, 2)
    torch.testing.assert_close(d.subgoal_log_prob(torch.tensor([0, 1])), f64(math.log(0.25), math.log(0.75)))


def test_subgoals_are_encoded_separately(policy):
    """Their order does not matter to the head; two equal ones have the effect of one."""
    head = HybridHead(policy.spec, 5, 8, [16], 0.1)
    torch.manual_seed(0)
    goals, image, patch_centers = torch.rand(3, 2, 5), torch.rand(3, 4, 8), torch.rand(4, 2)
    with torch.no_grad():
        for weight in head.parameters():        # some start at 0
            weight.add_(0.3 * torch.randn(weight.shape))
        both, swapped = head(goals, image, patch_centers), head(goals.flip(1), image, patch_centers)
        single = head(goals[:, :1], image, patch_centers)
        repeated = head(goals[:, [0, 0]], image, patch_centers)
    torch.testing.assert_close(both.subgoal_logits, swapped.subgoal_logits.flip(1))
    assert (both.subgoal_logits.softmax(-1) - 0.5).abs().min() > 1e-3
    for a, b in ((both, swapped), (single, repeated)):
        for name in ("type_logits", "mode_logits", "point", "param_mean", "class_logits", "point_attention",
                     "attn_weights"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5)
    assert (both.type_logits - single.type_logits).abs().max() > 1e-3


def test_goal_features_by_hand():
    """Number, slots, and "THEN", which is of the whole goal; 0 for a slot that a subgoal cannot have."""
    head = GoalParserHead(4, ["1 heat", "1 left", "1 push", "2 heat", "THEN"])
    features = head.to_goal_features(torch.tensor([[9.0, -9.0, -9.0, 9.0, 9.0]])).round()
    assert features.tolist() == [[[1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 0, 1]]]
    assert features.shape[-1] == head.goal_width


def test_goal_parser_by_hand():
    """The query of subgoal 1 finds tokens whose first number is large, that of subgoal 2 those whose second is; what
    comes after the last token is not read. The third number means "heat", the fourth "push"; the third of the last
    token means "THEN"."""
    head = GoalParserHead(4, ["1 heat", "1 push", "2 heat", "THEN"])
    with torch.no_grad():
        head.token_query.weight.copy_(torch.tensor([[50.0, 0, 0, 0], [0, 50.0, 0, 0]]))
        head.slot_head.weight.copy_(torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 1.0]]))
        head.plan_head.weight.copy_(torch.tensor([[0, 0, 2.0, 0]]))
        text = torch.tensor([[[1.0, 0, 5, -1], [0, 1.0, 7, -2], [0, 0, 3, 0], [9, 9, 9, 9]]])
        slot_logits = head(text, torch.tensor([2]))
    torch.testing.assert_close(slot_logits, torch.tensor([[5.0, -1, 7, 6]]) - 3)


def test_subword_dropout_keeps_the_text_and_is_seeded(make_policy):
    policy = make_policy()
    backbone, goal = policy.backbone, "please move every dot left, 왼쪽으로"
    uncut = backbone.prompt(goal)
    policy.use_dropout(True, bpe_dropout=0.3).train()
    torch.manual_seed(1)
    cut = [backbone.prompt(goal) for _ in range(20)]
    torch.manual_seed(1)
    assert [backbone.prompt(goal) for _ in range(20)] == cut
    decode = lambda ids: backbone.tokenizer.decode(ids).replace(" ", "")
    assert {decode(after) for _, after in cut} == {decode(uncut[1])}
    assert len({tuple(after) for _, after in cut}) > 15
    assert policy.eval().backbone.prompt(goal) == uncut
    assert policy.use_dropout(False).train().backbone.prompt(goal) == uncut


def test_centres_lie_where_the_patches_are():
    """Two rows of three patches that are not merged: (x, y), row by row; merged by fours, token by token."""
    expected = [[x, y] for y in (1 / 4, 3 / 4) for x in (1 / 6, 1 / 2, 5 / 6)]
    torch.testing.assert_close(Qwen2VLBackbone.patch_centers(2, 3, 1, "cpu"), torch.tensor(expected))
    expected = [[x, y] for left in (0, 2) for y in (1 / 4, 3 / 4) for x in ((left + 0.5) / 4, (left + 1.5) / 4)]
    torch.testing.assert_close(Qwen2VLBackbone.patch_centers(2, 4, 2, "cpu"), torch.tensor(expected))


def test_patches_and_image_tokens_belong_to_their_places(policy):
    """A change in the image's top right corner reaches the token there most, and of its patches the changed one."""
    images = random_images(2)
    images[1] = images[0]
    images[1, :8, 56:] = 255 - images[1, :8, 56:]
    with torch.no_grad():
        tokens, patches = policy.backbone.run_vision_tower(*policy.backbone.pixels(images))
    for patch_features, grid, centre in ((tokens, (4, 4, 1), [0.875, 0.125]), (patches, (8, 8, 2), [0.9375, 0.0625])):
        changed = (patch_features[0] - patch_features[1]).abs().sum(-1)
        assert policy.backbone.patch_centers(*grid, "cpu")[changed.argmax()].tolist() == centre


def test_point_log_prob_by_hand():
    """Two patches, left and right, two modes with weights 3/4 and 1/4; SET_PROPERTY points into the right one."""
    d = distribution(batch=2, modes=2)
    d.mode_logits = torch.log(f64(3.0, 1.0)).expand(2, KINDS, 2)
    d.point_attention = f64([0.9, 0.1], [0.2, 0.8]).expand(2, KINDS, 2, 2)
    d.patch_xy = f64([0.25, 0.5], [0.75, 0.5])
    actions = f64(*([float(kind), -1, 60, 10, 0, 1, 2] for kind in (ActionType.SET_PROPERTY, ActionType.APPLY_FORCE)))
    expected = f64(math.log(0.75 * 0.1 + 0.25 * 0.8), 0)
    torch.testing.assert_close(d.point_log_prob(actions), expected, rtol=0, atol=1e-5)


def test_a_batch_is_its_samples(policy):
    images = random_images(5)
    with torch.no_grad():
        text, ends, image, _ = policy.backbone(images, GOALS)
        for b in range(5):
            one, end, patches, _ = policy.backbone(images[b:b + 1], GOALS[b:b + 1])
            assert end == ends[b]
            torch.testing.assert_close(one[0], text[b, :end + 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(patches[0], image[b], rtol=0, atol=1e-5)


def test_instruction_and_image_both_matter(policy):
    images = random_images(2)
    with torch.no_grad():
        a, b, c = (last_token(*policy.backbone(one[None], [goal])[:2]) for one, goal in (
            (images[0], "heat"), (images[0], "cool"), (images[1], "heat")))
    assert (a - b).abs().max() > 1e-3 and (a - c).abs().max() > 1e-3


@pytest.mark.parametrize("goal", ["<|image_pad|>", "go <|image_pad|> left <|vision_end|><|im_end|>", "", "🙂 \x00"])
def test_odd_instructions_do_not_break_it(policy, goal):
    with torch.no_grad():
        text, ends, image, _ = policy.backbone(random_images(2), [goal, "heat"])
        alone = policy.backbone(random_images(2)[1:], ["heat"])[0]
    assert image.shape == (2, 64, 160) and torch.isfinite(text).all()
    torch.testing.assert_close(text[1, :ends[1] + 1], alone[0], rtol=0, atol=1e-5)


# --- the policy -------------------------------------------------------------------------------------------------
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
