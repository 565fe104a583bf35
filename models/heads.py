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
        phi = lambda v: torch.exp(-0.5 * v * v - LOG_SQRT_2PI)  # noqa: E731
        return 0.5 + LOG_SQRT_2PI + self.std.log() + log_z + (alpha * phi(alpha) - beta * phi(beta)) / (2 * log_z.exp())


class HybridDistribution:
    """p(type) times, for each parameter that the type uses, p(parameter | type).

    `type_logits` [B,K], `mean` [B,K,C] in [0,1] (share of the parameter's range), `std` [K,C],
    `class_logits` [B,K2] of the categorical column.
    """

    def __init__(self, spec, type_logits, mean, std, class_logits):
        self.spec, self.type_logits, self.class_logits = spec, type_logits, class_logits
        self.parameters = UnitTruncatedNormal(mean, std.expand_as(mean))
        tensor = lambda values: torch.tensor(values, dtype=mean.dtype, device=mean.device)  # noqa: E731
        low, high = tensor(spec.low), tensor(spec.high)
        columns = list(spec.continuous)
        self.low, self.default, self.range = low[columns], low, (high - low)[columns]
        uses = tensor(spec.uses)
        self.uses_continuous, self.uses_class = uses[:, columns], uses[:, spec.categorical]

    def sample(self, deterministic=False):
        """Actions [B,A], float32: the columns that the drawn type does not use stay at their low end."""
        draw = (lambda logits: logits.argmax(-1)) if deterministic else (
            lambda logits: torch.distributions.Categorical(logits=logits).sample())
        kind, classes = draw(self.type_logits), draw(self.class_logits)
        unit = self.parameters.mean if deterministic else self.parameters.sample()
        rows = torch.arange(len(kind), device=kind.device)
        used = self.uses_continuous[kind].bool()
        actions = self.default.repeat(len(kind), 1)
        actions[:, 0] = kind.to(actions.dtype)
        columns = list(self.spec.continuous)
        actions[:, columns] = torch.where(used, self.low + unit[rows, kind] * self.range, self.low)
        actions[:, self.spec.categorical] = classes * self.uses_class[kind]
        return actions.float()

    def log_prob(self, actions):
        """Log-probability [B] of actions [B,A]: of the type, and of the parameters that this type uses only."""
        kind = actions[:, 0].round().long()
        rows = torch.arange(len(kind), device=kind.device)
        unit = ((actions[:, list(self.spec.continuous)] - self.low) / self.range).clamp(0, 1)
        parameters = UnitTruncatedNormal(self.parameters.mean[rows, kind], self.parameters.std[rows, kind])
        log_prob = self.type_logits.log_softmax(-1)[rows, kind]
        log_prob = log_prob + (self.uses_continuous[kind] * parameters.log_prob(unit)).sum(-1)
        classes = actions[:, self.spec.categorical].round().long()
        return log_prob + self.uses_class[kind] * self.class_logits.log_softmax(-1)[rows, classes]

    def entropy(self):
        """H(type) + sum over types of p(type) H(parameters used by the type), [B]; exact."""
        log_p = self.type_logits.log_softmax(-1)
        log_c = self.class_logits.log_softmax(-1)
        h_class = -(log_c.exp() * log_c).sum(-1, keepdim=True)                        # [B,1]
        h_given_type = (self.uses_continuous * self.parameters.entropy()).sum(-1) + self.uses_class * h_class
        return (log_p.exp() * (h_given_type - log_p)).sum(-1)


def _mlp(width, hidden):
    layers = []
    for out in hidden:
        layers += [nn.Linear(width, out), nn.GELU()]
        width = out
    return nn.Sequential(*layers), width


class HybridHead(nn.Module):
    """Action head of a hybrid space: a trunk on the last token's hidden state, then type, parameters and class.

    Image coordinates are pointed at: for each type a query attends over the image tokens, and the expectation of
    their centres plus an offset read from what was attended to (at most one token's width) is the mean of (x, y).
    An MLP on the last token alone does not learn to localise in minutes.
    """

    def __init__(self, spec, width, hidden, init_std):
        super().__init__()
        self.spec = spec
        self.kinds, self.others = len(spec.uses), len(spec.continuous) - 2
        if tuple(spec.continuous[:2]) != tuple(spec.point):
            raise ValueError("the first two continuous columns must be the image coordinates")
        classes = int(spec.high[spec.categorical] - spec.low[spec.categorical]) + 1
        self.trunk, out = _mlp(width, hidden)
        self.key_width = out
        self.kind = nn.Linear(out, self.kinds)
        self.query = nn.Linear(out, self.kinds * self.key_width)
        self.key, self.look = nn.Linear(width, self.key_width), nn.Linear(width, self.key_width)
        self.offset = nn.Linear(self.key_width, 2)
        self.other = nn.Linear(out, self.kinds * self.others)
        self.classes = nn.Linear(out, classes)
        self.log_std = nn.Parameter(torch.full((self.kinds, len(spec.continuous)), math.log(init_std)))
        for layer in (self.kind, self.other, self.classes):   # start near uniform types and middling parameters
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, last, image, centres):
        """last [B,D], image [B,S,D] and the tokens' centres [S,2] in [0,1] (x, y) -> HybridDistribution."""
        z = self.trunk(last)
        query = self.query(z).view(-1, self.kinds, self.key_width)
        attention = (query @ self.key(image).transpose(1, 2) / math.sqrt(self.key_width)).softmax(-1)  # [B,K,S]
        offset = torch.tanh(self.offset(F.gelu(attention @ self.look(image)))) / math.sqrt(len(centres))
        point = (attention @ centres + offset).clamp(0, 1)
        other = torch.sigmoid(self.other(z)).view(-1, self.kinds, self.others)
        std = self.log_std.clamp(math.log(0.02), math.log(0.5)).exp()
        return HybridDistribution(self.spec, self.kind(z), torch.cat([point, other], -1), std, self.classes(z))


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
