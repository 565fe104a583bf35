"""The action distribution against numerical integration and by hand."""
import math

import numpy as np
import pytest
import torch
from policy_helpers import CLASSES, KINDS, SPACE, SPEC, distribution, f64

from models.heads import spec_from_dict
from models.heads.distributions import HybridDistribution, UnitTruncatedNormal
from simulator.particles.actions import ActionType


def gauss_legendre(n):
    """Nodes and weights of n points on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


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


def test_point_log_prob_by_hand():
    """Two patches, left and right, two modes with weights 3/4 and 1/4; SET_PROPERTY points into the right one."""
    d = distribution(batch=2, modes=2)
    d.mode_logits = torch.log(f64(3.0, 1.0)).expand(2, KINDS, 2)
    d.point_attention = f64([0.9, 0.1], [0.2, 0.8]).expand(2, KINDS, 2, 2)
    d.patch_xy = f64([0.25, 0.5], [0.75, 0.5])
    actions = f64(*([float(kind), -1, 60, 10, 0, 1, 2] for kind in (ActionType.SET_PROPERTY, ActionType.APPLY_FORCE)))
    expected = f64(math.log(0.75 * 0.1 + 0.25 * 0.8), 0)
    torch.testing.assert_close(d.point_log_prob(actions), expected, rtol=0, atol=1e-5)
