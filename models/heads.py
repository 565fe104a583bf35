"""Heads on the backbone's hidden states, and the distribution over hybrid actions.

Legend: B samples, S image tokens, D hidden size, K action types, A numbers in an action vector, C continuous ones.
"""
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

SQRT2 = math.sqrt(2.0)
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class ActionSpec:
    """A hybrid action vector as plain data, so that a checkpoint can hold it: column 0 is the action type,
    `continuous` columns are bounded numbers, `categorical` a column of classes, the rest keeps its `low`.
    `uses[k][a]` says whether type k reads column a. `point` are the two columns that are image coordinates."""
    low: tuple
    high: tuple
    uses: tuple
    continuous: tuple
    point: tuple
    categorical: int

    @classmethod
    def from_space(cls, space):
        """From a Gymnasium Box that carries the layout of a hybrid action (see simulator.goal_env.HybridAction)."""
        if not hasattr(space, "uses"):
            raise TypeError(f"no action head for {space}: give a hybrid action space (goal_env.HybridAction)")
        return cls.from_dict({"low": space.low, "high": space.high, "uses": space.uses,
                              "continuous": space.continuous, "point": space.point, "categorical": space.categorical})

    @classmethod
    def from_dict(cls, d):
        floats = {key: tuple(float(v) for v in d[key]) for key in ("low", "high")}
        ints = {key: tuple(int(v) for v in d[key]) for key in ("continuous", "point")}
        uses = tuple(tuple(bool(v) for v in row) for row in d["uses"])
        return cls(**floats, **ints, uses=uses, categorical=int(d["categorical"]))


def _log_z(mean, std):
    """Log of the normal's mass inside [0, 1]; at least log 0.5 or so, since the mean lies inside."""
    return torch.log(0.5 * (torch.erf((1 - mean) / (std * SQRT2)) + torch.erf(mean / (std * SQRT2))))


class UnitTruncatedNormal:
    """A normal distribution truncated to [0, 1]: its samples are bounded by the distribution itself.

    `mean` in [0, 1] is the untruncated normal's, and so the mode; `std` > 0; any shapes that broadcast.
    """

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def sample(self):
        low, high = torch.erf(-self.mean / (self.std * SQRT2)), torch.erf((1 - self.mean) / (self.std * SQRT2))
        u = torch.rand_like(self.mean)
        # the inverse of the CDF; the clamp only catches the rounding of erfinv at the ends
        return (self.mean + self.std * SQRT2 * torch.erfinv(low + u * (high - low))).clamp(0, 1)

    def log_prob(self, x):
        return -0.5 * ((x - self.mean) / self.std) ** 2 - self.std.log() - LOG_SQRT_2PI - _log_z(self.mean, self.std)

    def entropy(self):
        alpha, beta = -self.mean / self.std, (1 - self.mean) / self.std
        log_z = _log_z(self.mean, self.std)
        phi = lambda v: torch.exp(-0.5 * v * v - LOG_SQRT_2PI)
        return 0.5 + LOG_SQRT_2PI + self.std.log() + log_z + (alpha * phi(alpha) - beta * phi(beta)) / (2 * log_z.exp())


class HybridDistribution:
    """p(type) times, for each parameter that the type uses, p(parameter | type).

    `type_logits` [B,K]; the image point (x, y) given a type is a mixture of M truncated normals with weights
    `mode_logits` [B,K,M] and modes `point` [B,K,M,2]; the other continuous parameters have modes `other` [B,K,C-2];
    all in [0, 1] (share of the parameter's range), with `std` [K,C]; `class_logits` [B,K2] of the categorical column.
    """

    def __init__(self, spec, type_logits, mode_logits, point, other, std, class_logits):
        self.spec, self.type_logits, self.class_logits = spec, type_logits, class_logits
        self.mode_logits, self.point, self.other, self.std = mode_logits, point, other, std
        tensor = lambda values: torch.tensor(values, dtype=point.dtype, device=point.device)
        low, high = tensor(spec.low), tensor(spec.high)
        columns = list(spec.continuous)
        self.low, self.default, self.range = low[columns], low, (high - low)[columns]
        uses = tensor(spec.uses)
        self.uses_point, self.uses_other = uses[:, columns[0]], uses[:, columns[2:]]
        self.uses_class = uses[:, spec.categorical]

    def sample(self, deterministic=False):
        """Actions [B,A], float32: the columns that the drawn type does not use stay at their low end."""
        draw = (lambda logits: logits.argmax(-1)) if deterministic else (
            lambda logits: torch.distributions.Categorical(logits=logits).sample())
        kind, classes = draw(self.type_logits), draw(self.class_logits)
        rows = torch.arange(len(kind), device=kind.device)
        mode = draw(self.mode_logits[rows, kind])
        mean = torch.cat([self.point[rows, kind, mode], self.other[rows, kind]], -1)
        unit = mean if deterministic else UnitTruncatedNormal(mean, self.std[kind]).sample()
        used = torch.cat([self.uses_point[kind, None].expand(-1, 2), self.uses_other[kind]], -1).bool()
        actions = self.default.repeat(len(kind), 1)
        actions[:, 0] = kind.to(actions.dtype)
        actions[:, list(self.spec.continuous)] = torch.where(used, self.low + unit * self.range, self.low)
        actions[:, self.spec.categorical] = classes * self.uses_class[kind]
        return actions.float()

    def log_prob(self, actions):
        """Log-probability [B] of actions [B,A]: of the type, and of the parameters that this type uses only."""
        kind = actions[:, 0].round().long()
        rows = torch.arange(len(kind), device=kind.device)
        unit = ((actions[:, list(self.spec.continuous)] - self.low) / self.range).clamp(0, 1)
        std = self.std[kind]
        modes = UnitTruncatedNormal(self.point[rows, kind], std[:, None, :2]).log_prob(unit[:, None, :2]).sum(-1)
        point = (self.mode_logits[rows, kind].log_softmax(-1) + modes).logsumexp(-1)
        other = UnitTruncatedNormal(self.other[rows, kind], std[:, 2:]).log_prob(unit[:, 2:])
        classes = self.class_logits.log_softmax(-1)[rows, actions[:, self.spec.categorical].round().long()]
        return (self.type_logits.log_softmax(-1)[rows, kind] + self.uses_point[kind] * point
                + (self.uses_other[kind] * other).sum(-1) + self.uses_class[kind] * classes)

    def entropy(self):
        """H(type) + sum over types of p(type) H(what the type uses), [B]. Exact but for the mixture of the point, for
        which it is the entropy of mode and point together (an upper bound of the point's own)."""
        h = lambda logits: -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        modes = UnitTruncatedNormal(self.point, self.std[:, None, :2]).entropy().sum(-1)                  # [B,K,M]
        point = h(self.mode_logits) + (self.mode_logits.softmax(-1) * modes).sum(-1)
        other = UnitTruncatedNormal(self.other, self.std[:, 2:]).entropy()
        given_type = (self.uses_point * point + (self.uses_other * other).sum(-1)
                      + self.uses_class * h(self.class_logits)[:, None])
        return h(self.type_logits) + (self.type_logits.softmax(-1) * given_type).sum(-1)


def _mlp(width, hidden):
    layers = []
    for out in hidden:
        layers += [nn.Linear(width, out), nn.GELU()]
        width = out
    return nn.Sequential(*layers), width


class HybridHead(nn.Module):
    """Action head of a hybrid space: a trunk on the last token's hidden state, then type, parameters and class.

    Image coordinates are pointed at: for each type a few queries attend over the image tokens; the expectation of the
    tokens' centres plus an offset read from what was attended to is one mode of (x, y). An MLP on the last token alone
    does not learn to localise in minutes, and a single mode cannot say "here or there".
    """

    def __init__(self, spec, width, hidden, init_std, modes=4, key_width=32):
        super().__init__()
        if tuple(spec.continuous[:2]) != tuple(spec.point):
            raise ValueError("the first two continuous columns must be the image coordinates")
        self.spec, self.key_width = spec, key_width
        self.kinds, self.modes, others = len(spec.uses), modes, len(spec.continuous) - 2
        classes = int(spec.high[spec.categorical] - spec.low[spec.categorical]) + 1
        self.trunk, out = _mlp(width, hidden)
        self.kind, self.classes = nn.Linear(out, self.kinds), nn.Linear(out, classes)
        self.mode, self.other = nn.Linear(out, self.kinds * modes), nn.Linear(out, self.kinds * others)
        self.query, self.aim = (nn.Linear(out, self.kinds * modes * key_width) for _ in range(2))
        self.key, self.look = nn.Linear(width, key_width), nn.Linear(width, key_width)
        self.place = nn.Linear(10, key_width)
        self.offset = nn.Linear(key_width, 2)
        self.seen = nn.Parameter(torch.zeros(self.kinds, modes * key_width, modes + others))
        self.log_std = nn.Parameter(torch.full((self.kinds, len(spec.continuous)), math.log(init_std)))
        for layer in (self.kind, self.mode, self.other, self.classes):   # near uniform types, middling parameters
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, last, image, centres):
        """last [B,D], image [B,S,D] and the tokens' centres [S,2] in [0,1] (x, y) -> HybridDistribution."""
        z = self.trunk(last)
        query, aim = (layer(z).view(len(z), -1, self.key_width) for layer in (self.query, self.aim))      # [B,K*M,key]
        # the backbone knows places only relative to each other (RoPE): tell the keys where they lie
        waves = [f(math.pi * k * centres) for k in (1, 2) for f in (torch.sin, torch.cos)]
        place = self.place(torch.cat([centres, *waves], -1))                                              # [S,key]
        attention = (query @ (self.key(image) + place).transpose(1, 2) / math.sqrt(self.key_width)).softmax(-1)
        per_kind = lambda values, *shape: values.view(len(z), self.kinds, *shape)
        seen = F.gelu(attention @ (self.look(image) + place) + aim)                                       # [B,K*M,key]
        point = (attention @ centres + 0.5 * torch.tanh(self.offset(seen))).clamp(0, 1)
        # which mode, and how strongly, depends on what was seen there; 8, because a choice that flips within a few
        # pixels takes weights so steep that they would be learned too late
        mode, other = torch.einsum("bkh,kho->bko", 8 * per_kind(seen, -1), self.seen).tensor_split([self.modes], -1)
        std = self.log_std.clamp(math.log(0.02), math.log(0.5)).exp()
        return HybridDistribution(self.spec, self.kind(z), per_kind(self.mode(z), -1) + mode,
                                  per_kind(point, self.modes, 2), torch.sigmoid(per_kind(self.other(z), -1) + other),
                                  std, self.classes(z))


class ValueHead(nn.Module):
    """V(s, g) [B] from the last token's hidden state [B,D]."""

    def __init__(self, width, hidden):
        super().__init__()
        self.trunk, out = _mlp(width, hidden)
        self.out = nn.Linear(out, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, last):
        return self.out(self.trunk(last)).squeeze(-1)
