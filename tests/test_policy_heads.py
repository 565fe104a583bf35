"""The action head and the goal parser by hand."""
import torch

from models.heads.attention import HybridHead
from models.heads.goal_parser import GoalParserHead


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
