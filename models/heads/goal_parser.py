"""The goal-parser head: which goal an instruction describes, as a multi-label classification of slots.

A goal vocabulary has two sorts of slots. "2 heat" says that the second subgoal is to heat. "THEN" says something of
the whole goal. Shapes: B samples, T tokens, D hidden size, V slots, S subgoals, N slot names.
"""
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

RARE_SLOT_BIAS = -3.0       # most slots are absent from most instructions


def last_token(text: torch.Tensor, last_index: torch.Tensor) -> torch.Tensor:
    """Return the hidden state [B,D] of each instruction's last token, from text [B,T,D] and last_index [B]."""
    return text[torch.arange(len(text), device=text.device), last_index]


class GoalParserHead(nn.Module):
    """Predict the slots of an instruction.

    For each subgoal, one query attends to the tokens that describe it. All subgoals share the layer that classifies
    what was attended to. So the head can parse combinations of subgoals that training did not contain.
    """

    def __init__(self, width: int, goal_vocab: Sequence[str]) -> None:
        super().__init__()
        subgoal_slots = [slot for slot in goal_vocab if slot[0].isdigit()]
        numbers = sorted({slot.partition(" ")[0] for slot in subgoal_slots})
        names = sorted({slot.partition(" ")[2] for slot in subgoal_slots})
        index = {slot: i for i, slot in enumerate(goal_vocab)}
        absent = len(goal_vocab)        # the index of a column of zeros, see `to_goal_features`
        self.plan_columns = [i for i, slot in enumerate(goal_vocab) if not slot[0].isdigit()]
        self.goal_columns = [[index.get(f"{number} {name}", absent) for name in names] for number in numbers]
        # forward() computes the logits of every number and name, then those of the whole goal
        computed = [f"{number} {name}" for number in numbers for name in names]
        computed += [goal_vocab[i] for i in self.plan_columns]
        self.goal_width = len(numbers) + len(names) + len(self.plan_columns)    # W of `to_goal_features`
        self.order = [computed.index(slot) for slot in goal_vocab]
        # a layer without outputs would have empty parameters, which FSDP does not support
        self.token_query = nn.Linear(width, len(numbers), bias=False) if numbers else None
        self.slot_head = nn.Linear(width, len(names)) if names else None
        self.plan_head = nn.Linear(width, len(self.plan_columns)) if self.plan_columns else None
        for layer in (self.slot_head, self.plan_head):
            if layer:
                nn.init.constant_(layer.bias, RARE_SLOT_BIAS)

    def forward(self, text: torch.Tensor, last_index: torch.Tensor) -> torch.Tensor:
        """Return slot logits float32 [B,V].

        text: float32 [B,T,D], hidden states. last_index: int64 [B]; later tokens of a row are padding.
        """
        logits = [text.new_zeros(len(text), 0)]
        if self.slot_head:
            padding = torch.arange(text.shape[1], device=text.device) > last_index[:, None]       # [B,T]
            scores = self.token_query(text).masked_fill(padding[..., None], -math.inf)            # [B,T,S]
            attended = scores.softmax(1).transpose(1, 2) @ text                                   # [B,S,D]
            logits.append(self.slot_head(attended).flatten(1))                                    # [B,S*N]
        if self.plan_head:
            logits.append(self.plan_head(last_token(text, last_index)))
        return torch.cat(logits, -1)[:, self.order]                                               # [B,V]

    def to_goal_features(self, slot_logits: torch.Tensor) -> torch.Tensor:
        """Return the features [B,S,W] of every subgoal, from slot logits [B,V].

        They are its number (one-hot), the probabilities of its slots, and those of the slots of the whole goal.
        """
        probabilities = F.pad(slot_logits.sigmoid(), (0, 1))        # [B,V+1]; the last column is 0, for absent slots
        own_slots = probabilities[:, self.goal_columns]                                           # [B,S,N]
        num_subgoals = own_slots.shape[1]
        plan_slots = probabilities[:, None, self.plan_columns].expand(-1, num_subgoals, -1)
        number = torch.eye(num_subgoals, device=slot_logits.device).expand(len(slot_logits), -1, -1)
        return torch.cat([number, own_slots, plan_slots], -1)                                     # [B,S,W]
