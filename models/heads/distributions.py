"""Distributions over actions, one for each kind of action space.

Shapes: B samples, A action numbers, K action types, M mixture modes, C continuous parameters, N classes, P image
patches, S subgoals, G attention queries. Means and standard deviations are fractions of a parameter's range.
"""
import math
from collections.abc import Sequence

import numpy as np
import torch

from models.heads import BoxSpec, HybridSpec

SQRT2 = math.sqrt(2.0)
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
EPSILON = 1e-6      # keeps the logarithm of an attention weight finite


class UnitTruncatedNormal:
    """A normal distribution truncated to [0, 1], so that no sample needs to be clipped.

    `mean` in [0, 1] is the mean of the untruncated normal, which is the mode. `std` > 0. Their shapes broadcast.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.mean, self.std = mean, std

    def sample(self) -> torch.Tensor:
        """Return samples in [0, 1] of the mean's shape, by inversion of the CDF."""
        erf_low = torch.erf(-self.mean / (self.std * SQRT2))
        erf_high = torch.erf((1 - self.mean) / (self.std * SQRT2))
        u = torch.rand_like(self.mean)
        sample = self.mean + self.std * SQRT2 * torch.erfinv(erf_low + u * (erf_high - erf_low))
        return sample.clamp(0, 1)       # erfinv rounds near its ends

    def log_prob(self, x: torch.Tensor) -> torch.Tensor:
        """Return the log-density at x in [0, 1]."""
        z = (x - self.mean) / self.std
        return -0.5 * z ** 2 - self.std.log() - LOG_SQRT_2PI - self._log_mass()

    def entropy(self) -> torch.Tensor:
        """Return the differential entropy."""
        alpha = -self.mean / self.std
        beta = (1 - self.mean) / self.std
        log_mass = self._log_mass()
        untruncated = 0.5 + LOG_SQRT_2PI + self.std.log()
        edges = alpha * _standard_normal_density(alpha) - beta * _standard_normal_density(beta)
        return untruncated + log_mass + edges / (2 * log_mass.exp())

    def _log_mass(self) -> torch.Tensor:
        """Return the log of the untruncated normal's mass in [0, 1]."""
        erf_high = torch.erf((1 - self.mean) / (self.std * SQRT2))
        erf_low = torch.erf(self.mean / (self.std * SQRT2))
        return torch.log(0.5 * (erf_high + erf_low))


def _standard_normal_density(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-0.5 * x * x - LOG_SQRT_2PI)


class ActionDistribution:
    """A distribution over a batch of actions: the interface, and the attention of the head that made it.

    A head that attends to image patches calls `with_attention`; for another head `attention_log_prob` is 0.
    """
    attn_weights: torch.Tensor | None = None        # [B,G,P], the head's queries over the patches
    patch_xy: torch.Tensor | None = None            # [P,2], the patches' centres as fractions of the image
    subgoal_logits: torch.Tensor | None = None      # [B,S], which subgoal the head serves

    def sample(self, deterministic: bool = False) -> torch.Tensor:
        """Return actions: samples, or the modes if `deterministic`."""
        raise NotImplementedError

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the log-probability [B] of the actions."""
        raise NotImplementedError

    def entropy(self) -> torch.Tensor:
        """Return the entropy [B]."""
        raise NotImplementedError

    def detach_std(self) -> None:
        """Stop gradients into the standard deviations; a distribution without them ignores this.

        Behaviour cloning calls it. The likelihood of an expert's actions would shrink the deviations until PPO's
        ratios explode; only PPO learns them.
        """

    def with_attention(self, attn_weights: torch.Tensor, patch_xy: torch.Tensor,
                       subgoal_logits: torch.Tensor) -> "ActionDistribution":
        """Return this distribution, with the attention that its head computed."""
        self.attn_weights = attn_weights
        self.patch_xy = patch_xy
        self.subgoal_logits = subgoal_logits
        return self

    def attention_log_prob(self, actions: torch.Tensor, object_xy: torch.Tensor,
                           active_goal: torch.Tensor) -> torch.Tensor:
        """Return the log-probability [B] that the head attends to the right places and serves the right subgoal.

        object_xy: float32 [B,R,2], positions as fractions of the image. active_goal: int64 [B]. Behaviour cloning
        maximises it: attention learned this way distinguishes objects much earlier than from the actions alone.
        """
        if self.attn_weights is None:
            return torch.zeros(len(actions), device=actions.device)
        return self.patch_log_prob(object_xy) + self.subgoal_log_prob(active_goal)

    def patch_log_prob(self, object_xy: torch.Tensor) -> torch.Tensor:
        """Return the log of the attention [B] on the patches nearest to object_xy [B,R,2], summed over R.

        Query r attends to position r. A position that is NaN does not count.
        """
        known = object_xy.isfinite().all(-1)                                                      # [B,R]
        nearest = torch.cdist(object_xy.nan_to_num(), self.patch_xy).argmin(-1)                   # [B,R]
        weights = self.attn_weights[:, :object_xy.shape[1]]                                       # [B,R,P]
        weights = weights.gather(2, nearest[..., None]).squeeze(-1)                               # [B,R]
        return (known * (weights + EPSILON).log()).sum(-1)

    def subgoal_log_prob(self, active_goal: torch.Tensor) -> torch.Tensor:
        """Return the log-probability [B] that the head serves the subgoal of this index [B]."""
        return self.subgoal_logits.log_softmax(-1).gather(1, active_goal[:, None]).squeeze(1)


class Categorical(ActionDistribution):
    """One of n actions, from `logits` [B,n]. Actions are int64 [B]."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.pi = torch.distributions.Categorical(logits=logits)
        self.logits = self.pi.logits

    def sample(self, deterministic: bool = False) -> torch.Tensor:
        return self.logits.argmax(-1) if deterministic else self.pi.sample()

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        if actions.shape != self.logits.shape[:1]:      # [B,1] would broadcast over the samples
            raise ValueError(f"actions must be [{len(self.logits)}], not {list(actions.shape)}")
        return self.logits.gather(1, actions.long()[:, None]).squeeze(1)

    def entropy(self) -> torch.Tensor:
        return self.pi.entropy()


class BoxDistribution(ActionDistribution):
    """Independent truncated normals: `mean` [B,A] in [0, 1] and `std` [A]. Actions are float32 [B,A].

    A number with low == high is a constant: it is sampled as `low` and adds nothing to log_prob and entropy.
    """

    def __init__(self, spec: BoxSpec, mean: torch.Tensor, std: torch.Tensor) -> None:
        self.spec, self.mean, self.std = spec, mean, std
        self.low = torch.tensor(spec.low, dtype=mean.dtype, device=mean.device)
        high = torch.tensor(spec.high, dtype=mean.dtype, device=mean.device)
        is_constant = torch.tensor(np.equal(spec.low, spec.high), device=mean.device)
        self.is_free = (~is_constant).to(mean.dtype)                                              # [A], 0 or 1
        self.range = torch.where(is_constant, 1.0, high - self.low)

    @property
    def unit(self) -> UnitTruncatedNormal:
        """The distribution [B,A] of the numbers as fractions of their ranges."""
        return UnitTruncatedNormal(self.mean, self.std.expand_as(self.mean))

    def sample(self, deterministic: bool = False) -> torch.Tensor:
        fraction = self.mean if deterministic else self.unit.sample()
        actions = self.low + self.is_free * fraction * self.range
        return _clamp_to_space(actions, self.spec.low, self.spec.high)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        if actions.shape != self.mean.shape:
            raise ValueError(f"actions must be {list(self.mean.shape)}, not {list(actions.shape)}")
        fraction = ((actions - self.low) / self.range).clamp(0, 1)
        return (self.is_free * self.unit.log_prob(fraction)).sum(-1)

    def entropy(self) -> torch.Tensor:
        return (self.is_free * self.unit.entropy()).sum(-1)

    def detach_std(self) -> None:
        self.std = self.std.detach()


class HybridDistribution(ActionDistribution):
    """An action type, and parameters given the type: p(a) = p(type) * product of p(parameter | type).

    The product is over the parameters that the type uses; see `log_prob`. Actions are float32 [B,A].
    type_logits [B,K]. The image point (x, y) given a type is a mixture of M truncated normals (Bishop 1994, "Mixture
    density networks") with weights mode_logits [B,K,M] and modes point [B,K,M,2]. The other continuous parameters
    have modes param_mean [B,K,C-2]. std [K,C] holds all standard deviations. class_logits [B,N] are those of the
    categorical column. point_attention [B,K,M,P] is the attention from which the head computed each mode.
    """

    def __init__(self, spec: HybridSpec, type_logits: torch.Tensor, mode_logits: torch.Tensor, point: torch.Tensor,
                 param_mean: torch.Tensor, std: torch.Tensor, class_logits: torch.Tensor,
                 point_attention: torch.Tensor | None = None) -> None:
        self.spec = spec
        self.type_logits = type_logits
        self.mode_logits = mode_logits
        self.point = point
        self.param_mean = param_mean
        self.std = std
        self.class_logits = class_logits
        self.point_attention = point_attention
        self.columns = list(spec.continuous)
        self.default = torch.tensor(spec.low, dtype=point.dtype, device=point.device)             # [A]
        high = torch.tensor(spec.high, dtype=point.dtype, device=point.device)
        self.low = self.default[self.columns]                                                     # [C]
        self.range = (high - self.default)[self.columns]                                          # [C]
        used = torch.tensor(spec.used_params, dtype=point.dtype, device=point.device)             # [K,A], 0 or 1
        self.uses_point = used[:, self.columns[0]]                                                # [K]
        self.uses_other = used[:, self.columns[2:]]                                               # [K,C-2]
        self.uses_class = used[:, spec.categorical]                                               # [K]

    def sample(self, deterministic: bool = False) -> torch.Tensor:
        """Return actions float32 [B,A]. Columns that the sampled type does not use keep their lower bound."""
        action_type = _sample_index(self.type_logits, deterministic)                              # [B]
        class_index = _sample_index(self.class_logits, deterministic)                             # [B]
        rows = _rows(action_type)
        mode = _sample_index(self.mode_logits[rows, action_type], deterministic)                  # [B]
        point = self.point[rows, action_type, mode]                                               # [B,2]
        mean = torch.cat([point, self.param_mean[rows, action_type]], -1)                         # [B,C]
        fraction = mean if deterministic else UnitTruncatedNormal(mean, self.std[action_type]).sample()
        uses_xy = self.uses_point[action_type, None].expand(-1, 2)
        used = torch.cat([uses_xy, self.uses_other[action_type]], -1).bool()                      # [B,C]
        actions = self.default.repeat(len(action_type), 1)                                        # [B,A]
        actions[:, 0] = action_type.to(actions.dtype)
        actions[:, self.columns] = torch.where(used, self.low + fraction * self.range, self.low)
        actions[:, self.spec.categorical] = class_index * self.uses_class[action_type]
        return _clamp_to_space(actions, self.spec.low, self.spec.high)

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the log-probability [B] of actions [B,A] under the masked factorisation.

            log p(a) = log p(type) + u_xy(type) log p(x, y | type) + sum over c of u_c(type) log p(a_c | type)
                       + u_class(type) log p(class)

        u(type) is 1 for a parameter that the type uses, else 0. So unused columns change neither the ratio of PPO nor
        the gradient. H-PPO has the same factors in two actors (Fan et al. 2019, arXiv:1903.01344).
        """
        action_type = self._action_type(actions)
        rows = _rows(action_type)
        fraction = self._fraction(actions).clamp(0, 1)                                            # [B,C]
        std = self.std[action_type]                                                               # [B,C]
        # the mixture: logsumexp over the modes of log weight + log density
        modes = UnitTruncatedNormal(self.point[rows, action_type], std[:, None, :2])              # [B,M,2]
        mode_log_prob = modes.log_prob(fraction[:, None, :2]).sum(-1)                             # [B,M]
        mode_log_weight = self.mode_logits[rows, action_type].log_softmax(-1)                     # [B,M]
        point_log_prob = (mode_log_weight + mode_log_prob).logsumexp(-1)                          # [B]
        params = UnitTruncatedNormal(self.param_mean[rows, action_type], std[:, 2:])              # [B,C-2]
        param_log_prob = params.log_prob(fraction[:, 2:])                                         # [B,C-2]
        class_index = actions[:, self.spec.categorical].round().long()
        class_log_prob = self.class_logits.log_softmax(-1)[rows, class_index]                     # [B]
        return (self.type_logits.log_softmax(-1)[rows, action_type]
                + self.uses_point[action_type] * point_log_prob
                + (self.uses_other[action_type] * param_log_prob).sum(-1)
                + self.uses_class[action_type] * class_log_prob)

    def entropy(self) -> torch.Tensor:
        """Return H(type) + sum over types of p(type) * H(the parameters that it uses), [B].

        It is exact but for the mixture. There it is the joint entropy of mode and point, an upper bound of the
        point's own, which has no closed form.
        """
        modes = UnitTruncatedNormal(self.point, self.std[:, None, :2])                            # [B,K,M,2]
        mode_entropy = modes.entropy().sum(-1)                                                    # [B,K,M]
        weight_entropy = _entropy(self.mode_logits)                                               # [B,K]
        mean_entropy = (self.mode_logits.softmax(-1) * mode_entropy).sum(-1)                      # [B,K]
        point_entropy = weight_entropy + mean_entropy                                             # [B,K]
        param_entropy = UnitTruncatedNormal(self.param_mean, self.std[:, 2:]).entropy()           # [B,K,C-2]
        class_entropy = _entropy(self.class_logits)[:, None]                                      # [B,1]
        given_type = (self.uses_point * point_entropy
                      + (self.uses_other * param_entropy).sum(-1)
                      + self.uses_class * class_entropy)                                          # [B,K]
        return _entropy(self.type_logits) + (self.type_logits.softmax(-1) * given_type).sum(-1)

    def detach_std(self) -> None:
        self.std = self.std.detach()

    def attention_log_prob(self, actions: torch.Tensor, object_xy: torch.Tensor,
                           active_goal: torch.Tensor) -> torch.Tensor:
        """As for every distribution, plus `point_log_prob`."""
        return self.point_log_prob(actions) + super().attention_log_prob(actions, object_xy, active_goal)

    def point_log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the log of the attention [B] on the patch nearest to the point of each action [B,A].

        It is 0 for types without a class. Only the types with one act on a single object, which lies at the point;
        the others act on an area, whose centre may be empty.
        """
        action_type = self._action_type(actions)
        rows = _rows(action_type)
        nearest = torch.cdist(self._fraction(actions)[:, :2], self.patch_xy).argmin(-1)           # [B]
        mode_weight = self.mode_logits[rows, action_type].softmax(-1)                             # [B,M]
        weights = self.point_attention[rows, action_type, :, nearest]                             # [B,M]
        attended = (mode_weight * weights).sum(-1)                                                # [B]
        return self.uses_point[action_type] * self.uses_class[action_type] * (attended + EPSILON).log()

    @staticmethod
    def _action_type(actions: torch.Tensor) -> torch.Tensor:
        """Return column 0 as int64 [B]."""
        return actions[:, 0].round().long()

    def _fraction(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the continuous parameters [B,C] as fractions of their ranges."""
        return (actions[:, self.columns] - self.low) / self.range


def _rows(index: torch.Tensor) -> torch.Tensor:
    """Return 0 .. B-1, to index a batch together with `index` [B]."""
    return torch.arange(len(index), device=index.device)


def _sample_index(logits: torch.Tensor, deterministic: bool) -> torch.Tensor:
    """Return an index [B] of the last axis: the most likely one, or a sample."""
    return logits.argmax(-1) if deterministic else torch.distributions.Categorical(logits=logits).sample()


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy of a categorical distribution over the last axis."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def _clamp_to_space(actions: torch.Tensor, low: Sequence[float], high: Sequence[float]) -> torch.Tensor:
    """Return actions [B,A] as float32 inside [low, high].

    Rounding may leave the space: in float32, -1 + 1.0 * 1.1 is 0.10000002. A bound that float32 cannot represent
    is rounded inwards, so that a float64 space contains the action too.
    """
    low = torch.from_numpy(_round_inwards(low, np.float32(np.inf))).to(actions.device)
    high = torch.from_numpy(_round_inwards(high, np.float32(-np.inf))).to(actions.device)
    return actions.float().clamp(low, high)


def _round_inwards(bound: Sequence[float], inwards: np.float32) -> np.ndarray:
    """Return the bound as float32 [A]; one that rounds to outside the space moves towards `inwards`, +-infinity."""
    exact = np.asarray(bound, np.float64)
    rounded = exact.astype(np.float32)
    outside = rounded < exact if inwards > 0 else rounded > exact
    return np.where(outside, np.nextafter(rounded, inwards), rounded)
