"""The arithmetic of PPO, worked by hand. Each test names the mistake it would catch."""
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.training.losses import bc_loss, compute_gae, explained_variance, normalize_advantages, ppo_loss

T = torch.tensor
NO = torch.zeros(3, 1, dtype=torch.bool)


def gae(rewards, values, next_values, terminated=NO, truncated=NO, gamma=0.5, gae_lambda=0.5):
    column = lambda numbers: T(numbers).unsqueeze(1)  # noqa: E731
    advantages, returns = compute_gae(column(rewards), column(values), column(next_values), terminated, truncated,
                                      gamma, gae_lambda)
    return advantages.squeeze(1).tolist(), returns.squeeze(1).tolist()


def at(*steps):
    mask = NO.clone()
    mask[list(steps)] = True
    return mask


def test_gae_by_hand():
    # deltas: 1 + .5*2 - 1 = 1;  2 + .5*3 - 2 = 1.5;  3 + .5*4 - 3 = 2.   gamma * lambda = .25
    # A2 = 2;  A1 = 1.5 + .25*2 = 2;  A0 = 1 + .25*2 = 1.5          (lambda dropped: 2, 2.5, 2.25 or 2, 1.5, 1)
    advantages, returns = gae([1., 2., 3.], [1., 2., 3.], [2., 3., 4.])
    assert advantages == pytest.approx([1.5, 2.0, 2.0], abs=1e-6)
    assert returns == pytest.approx([2.5, 4.0, 5.0], abs=1e-6)


def test_gae_terminated_bootstraps_from_nothing_and_stops_credit():
    # the episode ends at t=1: delta1 = 2 - 2 = 0 (no bootstrap), A1 = 0 (nothing of t=2), A0 = 1 + .25*0 = 1
    advantages, _ = gae([1., 2., 3.], [1., 2., 3.], [2., 99., 4.], terminated=at(1))
    assert advantages == pytest.approx([1.0, 0.0, 2.0], abs=1e-6)


def test_gae_truncated_bootstraps_from_the_last_observation_and_stops_credit():
    # cut off at t=1 with V(final) = 6: delta1 = 2 + .5*6 - 2 = 3, A1 = 3 (nothing of t=2), A0 = 1 + .25*3 = 1.75
    advantages, _ = gae([1., 2., 3.], [1., 2., 3.], [2., 6., 4.], truncated=at(1))
    assert advantages == pytest.approx([1.75, 3.0, 2.0], abs=1e-6)


@pytest.mark.parametrize(("gae_lambda", "expected"), [
    (0.0, [1.0, 1.5, 2.0]),                                     # one-step errors
    (1.0, [1 + .5 * 1.5 + .25 * 2, 1.5 + .5 * 2, 2.0])])        # discounted sum of them
def test_gae_limits(gae_lambda, expected):
    assert gae([1., 2., 3.], [1., 2., 3.], [2., 3., 4.], gae_lambda=gae_lambda)[0] == pytest.approx(expected, abs=1e-6)


def loss_of(ratio, advantage, entropy_coef=0.0, value_coef=0.0, value=0.0, ret=0.0, entropy=0.0):
    one = lambda x: T([float(x)])  # noqa: E731
    log_probs = T([math.log(ratio)], requires_grad=True)
    loss, metrics = ppo_loss(log_probs, one(0), one(advantage), one(value), one(ret), one(entropy),
                             clip_ratio=0.2, value_coef=value_coef, entropy_coef=entropy_coef)
    loss.backward()
    return loss.item(), log_probs.grad.item(), metrics


@pytest.mark.parametrize(("ratio", "advantage", "loss", "gradient"), [
    # d(-r A)/d(log r) = -r A where the unclipped term is the smaller one, else 0
    (1.5, 2.0, -1.2 * 2, 0.0),        # good action, already likelier than 1 + clip: clipped, no gradient
    (0.5, 2.0, -0.5 * 2, -0.5 * 2),   # good action grown unlikelier: not clipped (max in place of min: -1.6)
    (1.5, -2.0, 1.5 * 2, 1.5 * 2),    # bad action grown likelier: not clipped (max: 2.4)
    (0.5, -2.0, 0.8 * 2, 0.0),        # bad action, already unlikelier than 1 - clip: clipped
    (1.1, 2.0, -1.1 * 2, -1.1 * 2),   # inside the clip range
])
def test_ppo_quadrants(ratio, advantage, loss, gradient):
    got, slope, _ = loss_of(ratio, advantage)
    assert got == pytest.approx(loss, abs=1e-6)
    assert slope == pytest.approx(gradient, abs=1e-6)


def test_ppo_terms_and_metrics():
    # policy -1 * 1.1, value 0.5 * (3 - 1)^2 = 2, entropy -0.1 * 0.7; KL estimate 0.1 - log 1.1
    loss, _, metrics = loss_of(1.1, 1.0, entropy_coef=0.1, value_coef=0.5, value=3.0, ret=1.0, entropy=0.7)
    assert loss == pytest.approx(-1.1 + 2.0 - 0.07, abs=1e-6)
    assert metrics["train/approx_kl"].item() == pytest.approx(0.1 - math.log(1.1), abs=1e-6)
    assert metrics["train/clip_fraction"].item() == 0.0
    assert loss_of(1.3, 1.0)[2]["train/clip_fraction"].item() == 1.0


def test_shapes_that_would_broadcast_are_refused():
    flat, column = torch.zeros(4), torch.zeros(4, 1)
    for position in range(6):
        arguments = [column if i == position else flat for i in range(6)]
        with pytest.raises(ValueError, match="shapes must be equal"):
            ppo_loss(*arguments, clip_ratio=0.2, value_coef=0.5, entropy_coef=0.01)
    with pytest.raises(ValueError, match="shapes must be equal"):
        compute_gae(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 2), torch.zeros(4, 2).bool(),
                    torch.zeros(4, 2).bool(), 0.9, 0.9)


def test_normalize_is_safe():
    assert normalize_advantages(T([1., 2., 3.])).tolist() == pytest.approx([-1.2247449, 0, 1.2247449], abs=1e-6)
    assert normalize_advantages(T([5.])).tolist() == [0.0]
    assert normalize_advantages(T([2., 2.])).tolist() == [0.0, 0.0]


def test_explained_variance():
    returns = T([1., 2., 3.])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.full((3,), 2.0), returns) == 0
    assert explained_variance(returns, torch.ones(3)) == 0


def test_bc_loss_by_hand():
    """Log-probabilities -1 and -3: 2; attention -0.5 and 0: 0.25; two slots at even odds: 2 log 2."""
    loss, metrics = bc_loss(torch.tensor([-1.0, -3.0]), torch.tensor([-0.5, 0.0]), torch.zeros(2, 2),
                            torch.tensor([[1.0, 0.0], [0.0, 0.0]]), attention_coef=5.0, parser_coef=4.0)
    assert abs(metrics["train/bc_loss"].item() - 2) < 1e-6 and abs(metrics["train/attention_loss"].item() - 0.25) < 1e-6
    assert abs(metrics["train/parser_loss"].item() - 2 * math.log(2)) < 1e-6
    assert abs(loss.item() - (2 + 1.25 + 8 * math.log(2))) < 1e-6


def test_importing_the_losses_does_not_load_transformers():
    code = "import sys, models.training.losses; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
