"""Heads on the backbone's hidden states, and the distributions over actions: one kind for each kind of action space.

Legend: B samples, S goals of a plan, W words of a goal, V words of all goals, T tokens of a sentence, P patches of a
picture, D hidden size, E width of the vision tower, K action types, A numbers in an action vector, C continuous ones,
Q numbers of proprioception.
"""
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

SQRT2 = math.sqrt(2.0)
STEEP = 8.0     # scale of what is seen: a choice that flips within a few pixels takes weights that are steep early on
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class HybridSpec:
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
    def of(cls, d):
        floats = {key: tuple(float(v) for v in d[key]) for key in ("low", "high")}
        ints = {key: tuple(int(v) for v in d[key]) for key in ("continuous", "point")}
        uses = tuple(tuple(bool(v) for v in row) for row in d["uses"])
        return cls(**floats, **ints, uses=uses, categorical=int(d["categorical"]))

    def head(self, *widths):
        return HybridHead(self, *widths)


@dataclass(frozen=True)
class DiscreteSpec:
    """One of n actions, an int64; `names` where they have some."""
    n: int
    names: tuple = ()

    @classmethod
    def of(cls, d):
        return cls(int(d["n"]), tuple(d["names"]))

    def head(self, width, image_width, hidden, init_std):
        return DiscreteHead(self, width, image_width, hidden)


@dataclass(frozen=True)
class BoxSpec:
    """A vector of numbers, each between its `low` and `high`."""
    low: tuple
    high: tuple

    @classmethod
    def of(cls, d):
        return cls(*(tuple(float(v) for v in d[key]) for key in ("low", "high")))

    def head(self, *widths):
        return BoxHead(self, *widths)


def spec_from_dict(d):
    """The spec that `dataclasses.asdict` made plain data of."""
    return (HybridSpec if "uses" in d else DiscreteSpec if "n" in d else BoxSpec).of(d)


def spec_from_space(space):
    """From a Gymnasium space: Discrete (with `names`, if it has some), a bounded Box of one axis, or one that carries
    the layout of a hybrid action (simulator.goal_env.HybridAction). TypeError for any other."""
    from gymnasium import spaces
    if hasattr(space, "uses"):
        return HybridSpec.of(vars(space) | {"low": space.low, "high": space.high})
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return DiscreteSpec(int(space.n), tuple(getattr(space, "names", ())))
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        return BoxSpec.of({"low": space.low, "high": space.high})
    raise TypeError(f"no action head for {space}: give Discrete(n), a bounded Box of one axis, or a HybridAction")


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


class Looked:
    """What a head looked at before it decided: `glances` [B,G,P], its attention for patches with `centres` [P,2], and
    `due` [B,S], logits, which goal of the plan it serves. Distributions of actions inherit it."""

    def looked(self, glances, centres, due):
        self.glances, self.centres, self.due = glances, centres, due
        return self

    def log_looked(self, actions, places, due):
        """Log of the attention [B] for what there is to see where `actions` are right: the `places` [B,R,2], shares of
        the picture, and the goal that is `due` [B]. As a loss of its own it teaches to tell things apart, long before
        the likelihood of the actions does."""
        return self.log_glanced(places) + self.log_due(due)

    def log_glanced(self, places):
        """Log of the attention [B] of the first glances for the patches nearest to `places` [B,R,2], shares of the
        picture, summed over R; a place that is NaN does not count."""
        known = places.isfinite().all(-1)
        patch = torch.cdist(places.nan_to_num(), self.centres).argmin(-1)
        looked = self.glances[:, :places.shape[1]].gather(2, patch[..., None]).squeeze(-1)
        return (known * (looked + 1e-6).log()).sum(-1)

    def log_due(self, number):
        """Log-probability [B] that the goal which is served is the one of this `number` [B] in its plan."""
        return self.due.log_softmax(-1).gather(1, number[:, None]).squeeze(1)

    def hold_spread(self):
        """Leaves how far samples spread out of the gradient: it is PPO's to learn, and likelihood of an expert's
        actions would shrink it until every ratio explodes."""


class Categorical(Looked):
    """One of n actions, from `logits` [B,n]; actions int64 [B]."""

    def __init__(self, logits):
        self.pi = torch.distributions.Categorical(logits=logits)
        self.logits = self.pi.logits

    def sample(self, deterministic=False):
        return self.logits.argmax(-1) if deterministic else self.pi.sample()

    def log_prob(self, actions):
        if actions.shape != self.logits.shape[:1]:
            raise ValueError(f"actions must be [{len(self.logits)}], not {list(actions.shape)}")
        return self.logits.gather(1, actions.long()[:, None]).squeeze(1)

    def entropy(self):
        return self.pi.entropy()


class BoxDistribution(Looked):
    """Independent truncated normals: modes `mean` [B,A] in [0, 1], shares of each number's range, and `std` [A];
    actions float32 [B,A]."""

    def __init__(self, spec, mean, std):
        self.mean, self.std = mean, std
        self.low, high = (torch.tensor(bound, dtype=mean.dtype, device=mean.device) for bound in (spec.low, spec.high))
        self.range = high - self.low

    @property
    def unit(self):
        return UnitTruncatedNormal(self.mean, self.std.expand_as(self.mean))

    def sample(self, deterministic=False):
        return (self.low + (self.mean if deterministic else self.unit.sample()) * self.range).float()

    def log_prob(self, actions):
        if actions.shape != self.mean.shape:
            raise ValueError(f"actions must be {list(self.mean.shape)}, not {list(actions.shape)}")
        return self.unit.log_prob(((actions - self.low) / self.range).clamp(0, 1)).sum(-1)

    def entropy(self):
        return self.unit.entropy().sum(-1)

    def hold_spread(self):
        self.std = self.std.detach()


class HybridDistribution(Looked):
    """p(type) times, for each parameter that the type uses, p(parameter | type).

    `type_logits` [B,K]; the image point (x, y) given a type is a mixture of M truncated normals with weights
    `mode_logits` [B,K,M] and modes `point` [B,K,M,2]; the other continuous parameters have modes `other` [B,K,C-2];
    all in [0, 1] (share of the parameter's range), with `std` [K,C]; `class_logits` [B,K2] of the categorical column.
    `attention` [B,K,M,P] says from which patches of the picture a point was read.
    """

    def __init__(self, spec, type_logits, mode_logits, point, other, std, class_logits, attention=None):
        self.spec, self.type_logits, self.class_logits = spec, type_logits, class_logits
        self.mode_logits, self.point, self.other, self.std = mode_logits, point, other, std
        self.attention = attention
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

    def log_attended(self, actions):
        """Log of the attention [B] that the patch nearest to the points of `actions` [B,A] gets; 0 but for types that
        change a property of one thing, whose point is where that thing is."""
        kind = actions[:, 0].round().long()
        rows = torch.arange(len(kind), device=kind.device)
        unit = ((actions[:, list(self.spec.continuous)] - self.low) / self.range)[:, :2]
        patch = torch.cdist(unit, self.centres).argmin(-1)
        weights = self.mode_logits[rows, kind].softmax(-1)
        attended = (weights * self.attention[rows, kind, :, patch]).sum(-1)
        return self.uses_point[kind] * self.uses_class[kind] * (attended + 1e-6).log()

    def log_looked(self, actions, places, due):
        return self.log_attended(actions) + super().log_looked(actions, places, due)

    def hold_spread(self):
        self.std = self.std.detach()

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


class LookingHead(nn.Module):
    """What every action head begins with: a trunk on what is known of the goal, and a few glances at the picture.

    What to do depends on the picture too (is it warm yet?), and by way of the last token alone that is learned far more
    slowly than by queries which attend over the patches. Of a plan of several goals one is served at a time: each goal
    is thought about apart, with the same weights, then one is chosen, by what is seen. So what is learned of goals
    holds in plans that were never trained.
    """

    def __init__(self, width, image_width, hidden, key_width=32, glances=8):
        super().__init__()
        self.key_width = key_width
        self.trunk, self.out = _mlp(width, hidden)
        self.glance = nn.Linear(self.out, glances * key_width)
        self.join = nn.Sequential(nn.Linear(self.out + glances * key_width, self.out), nn.GELU(),
                                  nn.Linear(self.out, self.out))
        self.due = nn.Sequential(nn.Linear(self.out + glances * key_width, self.out), nn.GELU(), nn.Linear(self.out, 1))
        self.key, self.look = nn.Linear(image_width, key_width), nn.Linear(image_width, key_width)
        self.place = nn.Linear(10, key_width)

    def see(self, goals, image, centres):
        """What is known of each goal of a plan [B,S,W], image [B,P,D+E], and the patches' centres [P,2] in [0,1] (x, y)
        -> z [B,out]; `attend`, a function of queries; the patches as seen [B,P,key]; what was looked at."""
        # the backbone knows places only relative to each other (RoPE): tell the keys where they lie
        waves = [f(math.pi * k * centres) for k in (1, 2) for f in (torch.sin, torch.cos)]
        place = self.place(torch.cat([centres, *waves], -1))                                              # [P,key]
        key, look = self.key(image) + place, self.look(image) + place                                     # [B,P,key]

        def attend(query):     # not divided by the square root of the width: the queries would take too long to grow
            return (query.view(len(goals), -1, self.key_width) @ key.transpose(1, 2)).softmax(-1)

        z = self.trunk(goals)                                                                         # [B,S,out]
        glances = attend(self.glance(z))                                                              # [B,S*G,P]
        around = F.gelu(glances @ look).view(*z.shape[:2], -1)                                        # [B,S,G*key]
        around = torch.cat([z, STEEP * around], -1)
        z, due = z + self.join(around), self.due(around).squeeze(-1)                                  # due: [B,S]
        z, glances = (torch.einsum("bs,bs...->b...", due.softmax(-1), each)
                      for each in (z, glances.view(*z.shape[:2], -1, len(centres))))
        return z, attend, look, (glances, centres, due)


class DiscreteHead(LookingHead):
    """Action head of n named or numbered actions."""

    def __init__(self, spec, width, image_width, hidden):
        super().__init__(width, image_width, hidden)
        self.spec, self.logits = spec, nn.Linear(self.out, spec.n)
        _begin_near_uniform(self.logits)

    def forward(self, goals, image, centres):
        """As `see` -> Categorical."""
        z, _, _, looked = self.see(goals, image, centres)
        return Categorical(self.logits(z)).looked(*looked)


class BoxHead(LookingHead):
    """Action head of a bounded vector."""

    def __init__(self, spec, width, image_width, hidden, init_std):
        super().__init__(width, image_width, hidden)
        self.spec, self.mean = spec, nn.Linear(self.out, len(spec.low))
        self.log_std = nn.Parameter(torch.full((len(spec.low),), math.log(init_std)))
        _begin_near_uniform(self.mean)

    def forward(self, goals, image, centres):
        """As `see` -> BoxDistribution."""
        z, _, _, looked = self.see(goals, image, centres)
        return BoxDistribution(self.spec, torch.sigmoid(self.mean(z)), _bounded(self.log_std)).looked(*looked)


def _begin_near_uniform(*layers):
    """Near uniform types and middling parameters at first."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)


def _bounded(log_std):
    return log_std.clamp(math.log(0.02), math.log(0.5)).exp()


class HybridHead(LookingHead):
    """Action head of a hybrid space: type, parameters and class.

    Image coordinates are pointed at: for each type a few queries attend over the picture's patches; the expectation of
    their centres plus an offset read from what was attended to is one mode of (x, y). An MLP on the last token alone
    does not learn to localise in minutes, and a single mode cannot say "here or there".
    """

    def __init__(self, spec, width, image_width, hidden, init_std, modes=4):
        super().__init__(width, image_width, hidden)
        if tuple(spec.continuous[:2]) != tuple(spec.point):
            raise ValueError("the first two continuous columns must be the image coordinates")
        self.spec, out = spec, self.out
        self.kinds, self.modes, others = len(spec.uses), modes, len(spec.continuous) - 2
        classes = int(spec.high[spec.categorical] - spec.low[spec.categorical]) + 1
        self.kind, self.classes = nn.Linear(out, self.kinds), nn.Linear(out, classes)
        self.mode, self.other = nn.Linear(out, self.kinds * modes), nn.Linear(out, self.kinds * others)
        self.query, self.aim = (nn.Linear(out, self.kinds * modes * self.key_width) for _ in range(2))
        self.offset = nn.Linear(self.key_width, 2)
        self.seen = nn.Parameter(torch.zeros(self.kinds, modes * self.key_width, modes + others + classes))
        self.log_std = nn.Parameter(torch.full((self.kinds, len(spec.continuous)), math.log(init_std)))
        _begin_near_uniform(self.kind, self.mode, self.other, self.classes)

    def forward(self, goals, image, centres):
        """As `see` -> HybridDistribution."""
        z, attend, look, looked = self.see(goals, image, centres)
        attention = attend(self.query(z))                                                             # [B,K*M,P]
        per_kind = lambda values, *shape: values.view(len(z), self.kinds, *shape)
        seen = F.gelu(attention @ look + self.aim(z).view(len(z), -1, self.key_width))                # [B,K*M,key]
        point = (attention @ centres + 0.5 * torch.tanh(self.offset(seen))).clamp(0, 1)
        # which mode, how strongly and which class depends on what was seen there
        mode, other, classes = torch.einsum("bkh,kho->bko", STEEP * per_kind(seen, -1), self.seen).split(
            [self.modes, self.other.out_features // self.kinds, self.classes.out_features], -1)
        uses_class = torch.tensor([row[self.spec.categorical] for row in self.spec.uses], device=z.device)
        classes = self.classes(z) + (classes * uses_class[:, None]).sum(1)
        return HybridDistribution(self.spec, self.kind(z), per_kind(self.mode(z), -1) + mode,
                                  per_kind(point, self.modes, 2), torch.sigmoid(per_kind(self.other(z), -1) + other),
                                  _bounded(self.log_std), classes, per_kind(attention, self.modes, -1)).looked(*looked)


class ReadingHead(nn.Module):
    """Which of `words` a sentence says (`simulator.goals.words_of`): "2 heat" is a word of the second goal, "THEN" one
    of the plan.

    For each goal it looks for the tokens that speak of it, whatever they say, and reads them as it reads those of every
    other goal: a sentence that joins two goals which training never joined is read as well.
    """

    def __init__(self, width, words):
        super().__init__()
        numbers = sorted({word.split()[0] for word in words if word[0].isdigit()})
        names = sorted({word.partition(" ")[2] for word in words if word[0].isdigit()})
        self.of_plan = [i for i, word in enumerate(words) if not word[0].isdigit()]
        column = {word: i for i, word in enumerate(words)}
        self.of_goals = [[column.get(f"{number} {name}", len(words)) for name in names] for number in numbers]
        table = [*(f"{number} {name}" for number in numbers for name in names), *(words[i] for i in self.of_plan)]
        self.order = [table.index(word) for word in words]
        # no layers without outputs: FSDP does not know what to do with parameters that are empty
        self.where = nn.Linear(width, len(numbers), bias=False) if numbers else None
        self.goal = nn.Linear(width, len(names)) if names else None
        self.plan = nn.Linear(width, len(self.of_plan)) if self.of_plan else None
        for layer in (self.goal, self.plan):
            if layer:
                nn.init.constant_(layer.bias, -3.0)      # most words are not said

    def forward(self, text, ends):
        """text [B,T,D], of which [0, ends[b]] is sentence b -> logits [B,V]."""
        said = [text.new_zeros(len(text), 0)]
        if self.goal:
            after = torch.arange(text.shape[1], device=text.device) > ends[:, None]
            tokens = self.where(text).masked_fill(after[..., None], -math.inf).softmax(1)                  # [B,T,S]
            said.append(self.goal(tokens.transpose(1, 2) @ text).flatten(1))
        if self.plan:
            said.append(self.plan(last_of(text, ends)))
        return torch.cat(said, -1)[:, self.order]

    def by_goal(self, said):
        """Logits [B,V] -> what each goal of the plan is taken to be [B,S,W], probabilities: its number, its words, and
        the plan's."""
        said = F.pad(said.sigmoid(), (0, 1))        # what is never said of a goal: 0
        goals = said[:, self.of_goals]
        plan = said[:, None, self.of_plan].expand(-1, goals.shape[1], -1)
        number = torch.eye(goals.shape[1], device=said.device).expand(len(said), -1, -1)
        return torch.cat([number, goals, plan], -1)


def last_of(text, ends):
    """The hidden state [B,D] of each sentence's last token, from text [B,T,D] and ends [B]."""
    return text[torch.arange(len(text), device=text.device), ends]


class Proprioception(nn.Module):
    """What the body tells of itself [B,Q], between `low` and `high`, for the heads to read: float32 [B, Q * 11], each
    number as a share of its range and as waves of five lengths, the shortest an eighth of the range, for an MLP on the
    bare numbers takes long to tell near ones apart (Tancik et al. 2020, arXiv:2006.10739)."""

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = list(low), list(high)
        self.width = 11 * len(self.low)

    def forward(self, values):
        low, high = (values.new_tensor(bound) for bound in (self.low, self.high))
        unit = 2 * (values - low) / (high - low) - 1
        turns = math.pi * unit[..., None] * unit.new_tensor([0.5, 1, 2, 4, 8])
        return torch.cat([unit[..., None], turns.sin(), turns.cos()], -1).flatten(1)


class ValueHead(nn.Module):
    """V(s, g) [B] from the last token's hidden state [B,D], with proprioception [B,D+11Q] where there is some."""

    def __init__(self, width, hidden):
        super().__init__()
        self.trunk, out = _mlp(width, hidden)
        self.out = nn.Linear(out, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, last):
        return self.out(self.trunk(last)).squeeze(-1)
