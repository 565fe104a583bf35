"""Action heads that attend to image patches: discrete, box and hybrid action spaces.

Shapes: B samples, S subgoals, W goal features, P image patches, D patch features, Z trunk width, G queries, H key
width, A action numbers, K action types, M mixture modes, C continuous parameters, N classes.
"""
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from models.heads import (
    BoxSpec,
    DiscreteSpec,
    HybridSpec,
)
from models.heads.distributions import (
    BoxDistribution,
    Categorical,
    HybridDistribution,
)
from models.heads.layers import clamp_log_std, init_small, mlp

# Scale of attended features. Choices that flip within a few pixels need steep functions of them early in training.
FEATURE_GAIN = 8.0
NUM_POSITION_FEATURES = 10      # x and y, and their sines and cosines at two frequencies


class Encoding(NamedTuple):
    """What the common part of the attention heads computes."""
    z: torch.Tensor                 # [B,Z], the subgoals' features, averaged by their weights
    keys: torch.Tensor              # [B,P,H]
    values: torch.Tensor            # [B,P,H]
    attn_weights: torch.Tensor      # [B,G,P]
    subgoal_logits: torch.Tensor    # [B,S]


class PointOutputs(NamedTuple):
    """What the hybrid head reads from the attended points, added to its logits."""
    mode_logits: torch.Tensor       # [B,K,M]
    param_logits: torch.Tensor      # [B,K,C-2]
    class_logits: torch.Tensor      # [B,N]


class AttentionActionHead(nn.Module):
    """The common part: a trunk on the goal features, queries over the image patches, a choice of subgoal.

    The right action depends on the image too. Through the last token alone that is learned much more slowly than
    by queries over the patches. Every subgoal is encoded separately, with the same weights; then one is chosen from
    what its queries attended to. So what is learned of a subgoal holds in sequences that training did not contain.
    """

    def __init__(self, goal_width: int, patch_width: int, hidden: Sequence[int], key_width: int = 32,
                 num_queries: int = 8) -> None:
        super().__init__()
        self.key_width = key_width
        self.trunk, self.out = mlp(goal_width, hidden)
        attended_width = self.out + num_queries * key_width
        self.query = nn.Linear(self.out, num_queries * key_width)
        self.fuse = nn.Sequential(nn.Linear(attended_width, self.out), nn.GELU(), nn.Linear(self.out, self.out))
        self.subgoal = nn.Sequential(nn.Linear(attended_width, self.out), nn.GELU(), nn.Linear(self.out, 1))
        self.key_proj = nn.Linear(patch_width, key_width)
        self.value_proj = nn.Linear(patch_width, key_width)
        self.pos_embed = nn.Linear(NUM_POSITION_FEATURES, key_width)

    def encode(self, goal_features: torch.Tensor, patches: torch.Tensor, patch_xy: torch.Tensor) -> Encoding:
        """Return the encoding of goal_features [B,S,W] and patches [B,P,D] with centres patch_xy [P,2] in [0, 1]."""
        # the backbone's rotary embedding gives relative positions only
        position = self.pos_embed(fourier_features(patch_xy))                                     # [P,H]
        keys = self.key_proj(patches) + position                                                  # [B,P,H]
        values = self.value_proj(patches) + position                                              # [B,P,H]
        z = self.trunk(goal_features)                                                             # [B,S,Z]
        num_subgoals = z.shape[1]
        attn_weights = self.attend(self.query(z), keys)                                           # [B,S*G,P]
        attended = F.gelu(attn_weights @ values).view(len(z), num_subgoals, -1)                   # [B,S,G*H]
        attended = torch.cat([z, FEATURE_GAIN * attended], -1)                                    # [B,S,Z+G*H]
        z = z + self.fuse(attended)                                                               # [B,S,Z]
        subgoal_logits = self.subgoal(attended).squeeze(-1)                                       # [B,S]
        # a soft choice: the average over the subgoals, weighted by their probabilities
        probabilities = subgoal_logits.softmax(-1)
        attn_weights = attn_weights.view(len(z), num_subgoals, -1, len(patch_xy))                 # [B,S,G,P]
        z = torch.einsum("bs,bsz->bz", probabilities, z)                                          # [B,Z]
        attn_weights = torch.einsum("bs,bsgp->bgp", probabilities, attn_weights)                  # [B,G,P]
        return Encoding(z, keys, values, attn_weights, subgoal_logits)

    def attend(self, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Return attention weights [B,Q,P] of Q queries, given as [B,...] of Q*H numbers a sample.

        Unlike in Vaswani et al. 2017 (arXiv:1706.03762) the scores are not divided by sqrt(H): with so few updates,
        the queries would not grow large enough to attend sharply.
        """
        query = query.view(len(keys), -1, self.key_width)                                         # [B,Q,H]
        return (query @ keys.transpose(1, 2)).softmax(-1)


def fourier_features(xy: torch.Tensor) -> torch.Tensor:
    """Return points [P,2] with their sines and cosines at two frequencies, [P,10] (Tancik et al. 2020)."""
    waves = [wave(math.pi * frequency * xy) for frequency in (1, 2) for wave in (torch.sin, torch.cos)]
    return torch.cat([xy, *waves], -1)


class DiscreteHead(AttentionActionHead):
    """The head of n discrete actions; it has no use for `init_std`."""

    def __init__(self, spec: DiscreteSpec, goal_width: int, patch_width: int, hidden: Sequence[int],
                 init_std: float) -> None:
        super().__init__(goal_width, patch_width, hidden)
        self.spec = spec
        self.logits = nn.Linear(self.out, spec.n)
        init_small(self.logits)

    def forward(self, goal_features: torch.Tensor, patches: torch.Tensor, patch_xy: torch.Tensor) -> Categorical:
        """Return the distribution; the arguments are those of `models.heads.ActionHead`."""
        encoding = self.encode(goal_features, patches, patch_xy)
        distribution = Categorical(self.logits(encoding.z))
        return distribution.with_attention(encoding.attn_weights, patch_xy, encoding.subgoal_logits)


class BoxHead(AttentionActionHead):
    """The head of a bounded vector. Standard deviations are parameters, the same in every state."""

    def __init__(self, spec: BoxSpec, goal_width: int, patch_width: int, hidden: Sequence[int],
                 init_std: float) -> None:
        super().__init__(goal_width, patch_width, hidden)
        self.spec = spec
        size = len(spec.low)
        self.mean = nn.Linear(self.out, size)
        self.log_std = nn.Parameter(torch.full((size,), math.log(init_std)))
        init_small(self.mean)

    def forward(self, goal_features: torch.Tensor, patches: torch.Tensor, patch_xy: torch.Tensor) -> BoxDistribution:
        """Return the distribution; the arguments are those of `models.heads.ActionHead`."""
        encoding = self.encode(goal_features, patches, patch_xy)
        mean = torch.sigmoid(self.mean(encoding.z))                                               # [B,A]
        distribution = BoxDistribution(self.spec, mean, clamp_log_std(self.log_std))
        return distribution.with_attention(encoding.attn_weights, patch_xy, encoding.subgoal_logits)


class HybridHead(AttentionActionHead):
    """The head of a hybrid space: an action type, an image point and other parameters, a class.

    For each type, M queries attend to the patches. The expected centre of the attended patches is a mode of the
    point, a spatial soft-argmax (Levine et al. 2016, arXiv:1504.00702, section 5.1). An offset, computed from what
    was attended to, makes it finer than a patch. An MLP on the last token does not learn to localise in minutes,
    and a single mode cannot represent two objects.
    """

    def __init__(self, spec: HybridSpec, goal_width: int, patch_width: int, hidden: Sequence[int], init_std: float,
                 num_modes: int = 4) -> None:
        super().__init__(goal_width, patch_width, hidden)
        if tuple(spec.continuous[:2]) != tuple(spec.xy_params):
            raise ValueError("the first two continuous columns must be the image coordinates")
        self.spec = spec
        self.num_types = len(spec.used_params)
        self.num_modes = num_modes
        self.num_other = len(spec.continuous) - 2
        self.num_classes = int(spec.high[spec.categorical] - spec.low[spec.categorical]) + 1
        num_queries = self.num_types * num_modes
        num_outputs = num_modes + self.num_other + self.num_classes
        self.action_type = nn.Linear(self.out, self.num_types)
        self.class_head = nn.Linear(self.out, self.num_classes)
        self.mixture_head = nn.Linear(self.out, num_queries)
        self.param_head = nn.Linear(self.out, self.num_types * self.num_other)
        self.point_query = nn.Linear(self.out, num_queries * self.key_width)
        self.point_query_bias = nn.Linear(self.out, num_queries * self.key_width)
        self.offset = nn.Linear(self.key_width, 2)
        self.point_out = nn.Parameter(torch.zeros(self.num_types, num_modes * self.key_width, num_outputs))
        self.log_std = nn.Parameter(torch.full((self.num_types, len(spec.continuous)), math.log(init_std)))
        init_small(self.action_type, self.mixture_head, self.param_head, self.class_head)

    def forward(self, goal_features: torch.Tensor, patches: torch.Tensor,
                patch_xy: torch.Tensor) -> HybridDistribution:
        """Return the distribution; the arguments are those of `models.heads.ActionHead`."""
        encoding = self.encode(goal_features, patches, patch_xy)
        z = encoding.z
        attention = self.attend(self.point_query(z), encoding.keys)                               # [B,K*M,P]
        point_features = self._point_features(z, attention, encoding.values)                      # [B,K*M,H]
        offset = 0.5 * torch.tanh(self.offset(point_features))                                    # [B,K*M,2]
        point = (attention @ patch_xy + offset).clamp(0, 1)                                       # [B,K*M,2]
        from_points = self._split_point_outputs(point_features)
        # Each is the sum of a part from z and a part from the points: which of them is right, and how strongly to
        # act there, depends on what lies there.
        class_logits = self.class_head(z) + from_points.class_logits                              # [B,N]
        type_logits = self.action_type(z)                                                         # [B,K]
        mode_logits = self._by_type(self.mixture_head(z), -1) + from_points.mode_logits           # [B,K,M]
        point = self._by_type(point, self.num_modes, 2)                                           # [B,K,M,2]
        param_logits = self._by_type(self.param_head(z), -1) + from_points.param_logits           # [B,K,C-2]
        distribution = HybridDistribution(
            self.spec,
            type_logits=type_logits,
            mode_logits=mode_logits,
            point=point,
            param_mean=torch.sigmoid(param_logits),
            std=clamp_log_std(self.log_std),
            class_logits=class_logits,
            point_attention=self._by_type(attention, self.num_modes, -1))                         # [B,K,M,P]
        return distribution.with_attention(encoding.attn_weights, patch_xy, encoding.subgoal_logits)

    def _point_features(self, z: torch.Tensor, attention: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return what each query attended to, relative to what z expects there, [B,K*M,H]."""
        bias = self.point_query_bias(z).view(len(z), -1, self.key_width)
        return F.gelu(attention @ values + bias)

    def _split_point_outputs(self, point_features: torch.Tensor) -> PointOutputs:
        """Return what the features [B,K*M,H] of the attended points add to the logits."""
        features = FEATURE_GAIN * self._by_type(point_features, -1)                               # [B,K,M*H]
        outputs = torch.einsum("bkh,kho->bko", features, self.point_out)                          # [B,K,M+C-2+N]
        sizes = [self.num_modes, self.num_other, self.num_classes]
        mode_logits, param_logits, class_logits = outputs.split(sizes, -1)
        # the classes are not conditioned on the type: sum over the types that use them
        uses_class = torch.tensor([used[self.spec.categorical] for used in self.spec.used_params],
                                  device=outputs.device)
        class_logits = (class_logits * uses_class[:, None]).sum(1)                                # [B,N]
        return PointOutputs(mode_logits, param_logits, class_logits)

    def _by_type(self, tensor: torch.Tensor, *shape: int) -> torch.Tensor:
        """Return the tensor as [B,K,*shape]."""
        return tensor.view(len(tensor), self.num_types, *shape)
