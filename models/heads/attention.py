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
FEATURE_GAIN = 8.0     # scale of what is seen: a choice that flips within a few pixels takes weights that are steep early on
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class HybridSpec:
    """A hybrid action vector as plain data, so that a checkpoint can hold it: column 0 is the action type,
    `continuous` columns are bounded numbers, `categorical` a column of classes, the rest keeps its `low`.
    `uses[k][a]` says whether type k reads column a. `point` are the two columns that are image coordinates."""
    low: tuple
    high: tuple
    used_params: tuple
    continuous: tuple
    xy_params: tuple
    categorical: int

    @classmethod
    def from_dict(cls, d):
        floats = {keys: tuple(float(v) for v in d[keys]) for keys in ("low", "high")}
        ints = {keys: tuple(int(v) for v in d[keys]) for keys in ("continuous", "xy_params")}
        used_params = tuple(tuple(bool(v) for v in row) for row in d["used_params"])
        return cls(**floats, **ints, used_params=used_params, categorical=int(d["categorical"]))

    def make_head(self, *widths):
        return HybridHead(self, *widths)


@dataclass(frozen=True)
class DiscreteSpec:
    """One of n actions, an int64; `names` where they have some."""
    n: int
    names: tuple = ()

    @classmethod
    def from_dict(cls, d):
        return cls(int(d["n"]), tuple(d["names"]))

    def make_head(self, width, image_width, hidden, init_std):
        return DiscreteHead(self, width, image_width, hidden)


@dataclass(frozen=True)
class BoxSpec:
    """A vector of numbers, each between its `low` and `high`."""
    low: tuple
    high: tuple

    @classmethod
    def from_dict(cls, d):
        return cls(*(tuple(float(v) for v in d[keys]) for keys in ("low", "high")))

    def make_head(self, *widths):
        return BoxHead(self, *widths)


def spec_from_dict(d):
    """The spec that `dataclasses.asdict` made plain data of."""
    return (HybridSpec if "used_params" in d else DiscreteSpec if "n" in d else BoxSpec).from_dict(d)


def spec_from_space(space):
    """From a Gymnasium space: Discrete (with `names`, if it has some), a bounded Box of one axis, or one that carries
    the layout of a hybrid action (simulator.particles.env.HybridAction). TypeError for any other."""
    from gymnasium import spaces
    if hasattr(space, "used_params"):
        return HybridSpec.from_dict(vars(space) | {"low": space.low, "high": space.high})
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return DiscreteSpec(int(space.n), tuple(getattr(space, "names", ())))
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        return BoxSpec.from_dict({"low": space.low, "high": space.high})
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


class ActionDistribution:
    """What a head looked at before it decided: `glances` [B,G,P], its attention for patches with `centres` [P,2], and
    `due` [B,S], logits, which goal of the plan it serves. Distributions of actions inherit it."""

    def with_attention(self, attn_weights, patch_xy, subgoal):
        self.attn_weights, self.patch_xy, self.subgoal = attn_weights, patch_xy, subgoal
        return self

    def attention_log_prob(self, actions, object_xy, subgoal):
        """Log of the attention [B] for what there is to see where `actions` are right: the `places` [B,R,2], shares of
        the picture, and the goal that is `due` [B]. As a loss of its own it teaches to tell things apart, long before
        the likelihood of the actions does."""
        return self.patch_log_prob(object_xy) + self.subgoal_log_prob(subgoal)

    def patch_log_prob(self, object_xy):
        """Log of the attention [B] of the first glances for the patches nearest to `places` [B,R,2], shares of the
        picture, summed over R; a place that is NaN does not count."""
        known = object_xy.isfinite().all(-1)
        patch = torch.cdist(object_xy.nan_to_num(), self.patch_xy).argmin(-1)
        attention_output = self.attn_weights[:, :object_xy.shape[1]].gather(2, patch[..., None]).squeeze(-1)
        return (known * (attention_output + 1e-6).log()).sum(-1)

    def subgoal_log_prob(self, number):
        """Log-probability [B] that the goal which is served is the one of this `number` [B] in its plan."""
        return self.subgoal.log_softmax(-1).gather(1, number[:, None]).squeeze(1)

    def detach_std(self):
        """Leaves how far samples spread out of the gradient: it is PPO's to learn, and likelihood of an expert's
        actions would shrink it until every ratio explodes."""


class Categorical(ActionDistribution):
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


class BoxDistribution(ActionDistribution):
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

    def detach_std(self):
        self.std = self.std.detach()


class HybridDistribution(ActionDistribution):
    """p(type) times, for each parameter that the type uses, p(parameter | type).

    `type_logits` [B,K]; the image point (x, y) given a type is a mixture of M truncated normals with weights
    `mode_logits` [B,K,M] and modes `point` [B,K,M,2]; the other continuous parameters have modes `other` [B,K,C-2];
    all in [0, 1] (share of the parameter's range), with `std` [K,C]; `class_logits` [B,K2] of the categorical column.
    `attention` [B,K,M,P] says from which patches of the picture a point was read.
    """

    def __init__(self, spec, type_logits, mode_logits, point, other, std, class_logits, attention=None):
        self.spec, self.type_logits, self.class_logits = spec, type_logits, class_logits
        self.mode_logits, self.point, self.param_mean, self.std = mode_logits, point, other, std
        self.attention = attention
        tensor = lambda values: torch.tensor(values, dtype=point.dtype, device=point.device)
        low, high = tensor(spec.low), tensor(spec.high)
        columns = list(spec.continuous)
        self.low, self.default, self.range = low[columns], low, (high - low)[columns]
        used_params = tensor(spec.used_params)
        self.uses_point, self.uses_other = used_params[:, columns[0]], used_params[:, columns[2:]]
        self.uses_class = used_params[:, spec.categorical]

    def sample(self, deterministic=False):
        """Actions [B,A], float32: the columns that the drawn type does not use stay at their low end."""
        draw = (lambda logits: logits.argmax(-1)) if deterministic else (
            lambda logits: torch.distributions.Categorical(logits=logits).sample())
        action_type, classes = draw(self.type_logits), draw(self.class_logits)
        rows = torch.arange(len(action_type), device=action_type.device)
        mode = draw(self.mode_logits[rows, action_type])
        mean = torch.cat([self.point[rows, action_type, mode], self.param_mean[rows, action_type]], -1)
        unit = mean if deterministic else UnitTruncatedNormal(mean, self.std[action_type]).sample()
        used = torch.cat([self.uses_point[action_type, None].expand(-1, 2), self.uses_other[action_type]], -1).bool()
        actions = self.default.repeat(len(action_type), 1)
        actions[:, 0] = action_type.to(actions.dtype)
        actions[:, list(self.spec.continuous)] = torch.where(used, self.low + unit * self.range, self.low)
        actions[:, self.spec.categorical] = classes * self.uses_class[action_type]
        return actions.float()

    def log_prob(self, actions):
        """Log-probability [B] of actions [B,A]: of the type, and of the parameters that this type uses only."""
        action_type = actions[:, 0].round().long()
        rows = torch.arange(len(action_type), device=action_type.device)
        unit = ((actions[:, list(self.spec.continuous)] - self.low) / self.range).clamp(0, 1)
        std = self.std[action_type]
        num_modes = UnitTruncatedNormal(self.point[rows, action_type], std[:, None, :2]).log_prob(unit[:, None, :2]).sum(-1)
        point = (self.mode_logits[rows, action_type].log_softmax(-1) + num_modes).logsumexp(-1)
        other = UnitTruncatedNormal(self.param_mean[rows, action_type], std[:, 2:]).log_prob(unit[:, 2:])
        classes = self.class_logits.log_softmax(-1)[rows, actions[:, self.spec.categorical].round().long()]
        return (self.type_logits.log_softmax(-1)[rows, action_type] + self.uses_point[action_type] * point
                + (self.uses_other[action_type] * other).sum(-1) + self.uses_class[action_type] * classes)

    def point_log_prob(self, actions):
        """Log of the attention [B] that the patch nearest to the points of `actions` [B,A] gets; 0 but for types that
        change a property of one thing, whose point is where that thing is."""
        action_type = actions[:, 0].round().long()
        rows = torch.arange(len(action_type), device=action_type.device)
        unit = ((actions[:, list(self.spec.continuous)] - self.low) / self.range)[:, :2]
        patch = torch.cdist(unit, self.patch_xy).argmin(-1)
        weights = self.mode_logits[rows, action_type].softmax(-1)
        attended = (weights * self.attention[rows, action_type, :, patch]).sum(-1)
        return self.uses_point[action_type] * self.uses_class[action_type] * (attended + 1e-6).log()

    def attention_log_prob(self, actions, object_xy, subgoal):
        return self.point_log_prob(actions) + super().attention_log_prob(actions, object_xy, subgoal)

    def detach_std(self):
        self.std = self.std.detach()

    def entropy(self):
        """H(type) + sum over types of p(type) H(what the type uses), [B]. Exact but for the mixture of the point, for
        which it is the entropy of mode and point together (an upper bound of the point's own)."""
        h = lambda logits: -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        num_modes = UnitTruncatedNormal(self.point, self.std[:, None, :2]).entropy().sum(-1)                  # [B,K,M]
        point = h(self.mode_logits) + (self.mode_logits.softmax(-1) * num_modes).sum(-1)
        other = UnitTruncatedNormal(self.param_mean, self.std[:, 2:]).entropy()
        given_type = (self.uses_point * point + (self.uses_other * other).sum(-1)
                      + self.uses_class * h(self.class_logits)[:, None])
        return h(self.type_logits) + (self.type_logits.softmax(-1) * given_type).sum(-1)


def _mlp(width, hidden):
    layers = []
    for out in hidden:
        layers += [nn.Linear(width, out), nn.GELU()]
        width = out
    return nn.Sequential(*layers), width


class AttentionActionHead(nn.Module):
    """What every action head begins with: a trunk on what is known of the goal, and a few glances at the picture.

    What to do depends on the picture too (is it warm yet?), and by way of the last token alone that is learned far more
    slowly than by queries which attend over the patches. Of a plan of several goals one is served at a time: each goal
    is thought about apart, with the same weights, then one is chosen, by what is seen. So what is learned of goals
    holds in plans that were never trained.
    """

    def __init__(self, width, image_width, hidden, key_width=32, attn_weights=8):
        super().__init__()
        self.key_width = key_width
        self.trunk, self.out = _mlp(width, hidden)
        self.query = nn.Linear(self.out, attn_weights * key_width)
        self.fuse = nn.Sequential(nn.Linear(self.out + attn_weights * key_width, self.out), nn.GELU(),
                                  nn.Linear(self.out, self.out))
        self.subgoal = nn.Sequential(nn.Linear(self.out + attn_weights * key_width, self.out), nn.GELU(), nn.Linear(self.out, 1))
        self.key_proj, self.value_proj = nn.Linear(image_width, key_width), nn.Linear(image_width, key_width)
        self.pos_embed = nn.Linear(10, key_width)

    def encode(self, goals, patches, patch_xy):
        """What is known of each goal of a plan [B,S,W], image [B,P,D+E], and the patches' centres [P,2] in [0,1] (x, y)
        -> z [B,out]; `attend`, a function of queries; the patches as seen [B,P,key]; what was looked at."""
        # the backbone knows places only relative to each other (RoPE): tell the keys where they lie
        fourier = [f(math.pi * k * patch_xy) for k in (1, 2) for f in (torch.sin, torch.cos)]
        pos = self.pos_embed(torch.cat([patch_xy, *fourier], -1))                                              # [P,key]
        keys, value_feats = self.key_proj(patches) + pos, self.value_proj(patches) + pos                                     # [B,P,key]

        def attend(query):     # not divided by the square root of the width: the queries would take too long to grow
            return (query.view(len(goals), -1, self.key_width) @ keys.transpose(1, 2)).softmax(-1)

        z = self.trunk(goals)                                                                         # [B,S,out]
        attn_weights = attend(self.query(z))                                                              # [B,S*G,P]
        attended_feats = F.gelu(attn_weights @ value_feats).view(*z.shape[:2], -1)                                        # [B,S,G*key]
        attended_feats = torch.cat([z, FEATURE_GAIN * attended_feats], -1)
        z, subgoal = z + self.fuse(attended_feats), self.subgoal(attended_feats).squeeze(-1)                                  # due: [B,S]
        z, attn_weights = (torch.einsum("bs,bs...->b...", subgoal.softmax(-1), each)
                      for each in (z, attn_weights.view(*z.shape[:2], -1, len(patch_xy))))
        return z, attend, value_feats, (attn_weights, patch_xy, subgoal)


class DiscreteHead(AttentionActionHead):
    """Action head of n named or numbered actions."""

    def __init__(self, spec, width, image_width, hidden):
        super().__init__(width, image_width, hidden)
        self.spec, self.logits = spec, nn.Linear(self.out, spec.n)
        init_small(self.logits)

    def forward(self, goals, patches, patch_xy):
        """As `see` -> Categorical."""
        z, _, _, attention_output = self.encode(goals, patches, patch_xy)
        return Categorical(self.logits(z)).with_attention(*attention_output)


class BoxHead(AttentionActionHead):
    """Action head of a bounded vector."""

    def __init__(self, spec, width, image_width, hidden, init_std):
        super().__init__(width, image_width, hidden)
        self.spec, self.mean = spec, nn.Linear(self.out, len(spec.low))
        self.log_std = nn.Parameter(torch.full((len(spec.low),), math.log(init_std)))
        init_small(self.mean)

    def forward(self, goals, patches, patch_xy):
        """As `see` -> BoxDistribution."""
        z, _, _, attention_output = self.encode(goals, patches, patch_xy)
        return BoxDistribution(self.spec, torch.sigmoid(self.mean(z)), clamp_log_std(self.log_std)).with_attention(*attention_output)


def init_small(*layers):
    """Near uniform types and middling parameters at first."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)


def clamp_log_std(log_std):
    return log_std.clamp(math.log(0.02), math.log(0.5)).exp()


class HybridHead(AttentionActionHead):
    """Action head of a hybrid space: type, parameters and class.

    Image coordinates are pointed at: for each type a few queries attend over the picture's patches; the expectation of
    their centres plus an offset read from what was attended to is one mode of (x, y). An MLP on the last token alone
    does not learn to localise in minutes, and a single mode cannot say "here or there".
    """

    def __init__(self, spec, width, image_width, hidden, init_std, num_modes=4):
        super().__init__(width, image_width, hidden)
        if tuple(spec.continuous[:2]) != tuple(spec.xy_params):
            raise ValueError("the first two continuous columns must be the image coordinates")
        self.spec, out = spec, self.out
        self.num_types, self.num_modes, others = len(spec.used_params), num_modes, len(spec.continuous) - 2
        classes = int(spec.high[spec.categorical] - spec.low[spec.categorical]) + 1
        self.action_type, self.class_head = nn.Linear(out, self.num_types), nn.Linear(out, classes)
        self.mixture_head, self.param_head = nn.Linear(out, self.num_types * num_modes), nn.Linear(out, self.num_types * others)
        self.point_query, self.point_query_bias = (nn.Linear(out, self.num_types * num_modes * self.key_width) for _ in range(2))
        self.offset = nn.Linear(self.key_width, 2)
        self.point_out = nn.Parameter(torch.zeros(self.num_types, num_modes * self.key_width, num_modes + others + classes))
        self.log_std = nn.Parameter(torch.full((self.num_types, len(spec.continuous)), math.log(init_std)))
        init_small(self.action_type, self.mixture_head, self.param_head, self.class_head)

    def forward(self, goals, patches, patch_xy):
        """As `see` -> HybridDistribution."""
        z, attend, value_feats, attention_output = self.encode(goals, patches, patch_xy)
        attention = attend(self.point_query(z))                                                             # [B,K*M,P]
        per_kind = lambda values, *shape: values.view(len(z), self.num_types, *shape)
        point_features = F.gelu(attention @ value_feats + self.point_query_bias(z).view(len(z), -1, self.key_width))                # [B,K*M,key]
        point = (attention @ patch_xy + 0.5 * torch.tanh(self.offset(point_features))).clamp(0, 1)
        # which mode, how strongly and which class depends on what was seen there
        mode, other, classes = torch.einsum("bkh,kho->bko", FEATURE_GAIN * per_kind(point_features, -1), self.point_out).split(
            [self.num_modes, self.param_head.out_features // self.num_types, self.class_head.out_features], -1)
        uses_class = torch.tensor([row[self.spec.categorical] for row in self.spec.used_params], device=z.device)
        classes = self.class_head(z) + (classes * uses_class[:, None]).sum(1)
        return HybridDistribution(self.spec, self.action_type(z), per_kind(self.mixture_head(z), -1) + mode,
                                  per_kind(point, self.num_modes, 2), torch.sigmoid(per_kind(self.param_head(z), -1) + other),
                                  clamp_log_std(self.log_std), classes, per_kind(attention, self.num_modes, -1)).with_attention(*attention_output)


class GoalParserHead(nn.Module):
    """Which of `words` a sentence says (`simulator.particles.goals.words_of`): "2 heat" is a word of the second goal, "THEN" one
    of the plan.

    For each goal it looks for the tokens that speak of it, whatever they say, and reads them as it reads those of every
    other goal: a sentence that joins two goals which training never joined is read as well.
    """

    def __init__(self, width, slots):
        super().__init__()
        numbers = sorted({word.split()[0] for word in slots if word[0].isdigit()})
        names = sorted({word.partition(" ")[2] for word in slots if word[0].isdigit()})
        self.plan_columns = [i for i, word in enumerate(slots) if not word[0].isdigit()]
        column = {word: i for i, word in enumerate(slots)}
        self.goal_columns = [[column.get(f"{number} {name}", len(slots)) for name in names] for number in numbers]
        table = [*(f"{number} {name}" for number in numbers for name in names), *(slots[i] for i in self.plan_columns)]
        self.order = [table.index(word) for word in slots]
        # no layers without outputs: FSDP does not know what to do with parameters that are empty
        self.token_query = nn.Linear(width, len(numbers), bias=False) if numbers else None
        self.slot_head = nn.Linear(width, len(names)) if names else None
        self.plan_head = nn.Linear(width, len(self.plan_columns)) if self.plan_columns else None
        for layer in (self.slot_head, self.plan_head):
            if layer:
                nn.init.constant_(layer.bias, -3.0)      # most words are not said

    def forward(self, text, last_index):
        """text [B,T,D], of which [0, ends[b]] is sentence b -> logits [B,V]."""
        slot_logits = [text.new_zeros(len(text), 0)]
        if self.slot_head:
            after = torch.arange(text.shape[1], device=text.device) > last_index[:, None]
            tokens = self.token_query(text).masked_fill(after[..., None], -math.inf).softmax(1)                  # [B,T,S]
            slot_logits.append(self.slot_head(tokens.transpose(1, 2) @ text).flatten(1))
        if self.plan_head:
            slot_logits.append(self.plan_head(last_token(text, last_index)))
        return torch.cat(slot_logits, -1)[:, self.order]

    def to_goal_features(self, slot_logits):
        """Logits [B,V] -> what each goal of the plan is taken to be [B,S,W], probabilities: its number, its words, and
        the plan's."""
        slot_logits = F.pad(slot_logits.sigmoid(), (0, 1))        # what is never said of a goal: 0
        goals = slot_logits[:, self.goal_columns]
        plan = slot_logits[:, None, self.plan_columns].expand(-1, goals.shape[1], -1)
        number = torch.eye(goals.shape[1], device=slot_logits.device).expand(len(slot_logits), -1, -1)
        return torch.cat([number, goals, plan], -1)


def last_token(text, last_index):
    """The hidden state [B,D] of each sentence's last token, from text [B,T,D] and ends [B]."""
    return text[torch.arange(len(text), device=text.device), last_index]


class ProprioEncoder(nn.Module):
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
        angles = math.pi * unit[..., None] * unit.new_tensor([0.5, 1, 2, 4, 8])
        return torch.cat([unit[..., None], angles.sin(), angles.cos()], -1).flatten(1)


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
