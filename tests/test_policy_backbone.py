"""The Qwen2-VL backbone against transformers, its image processor and its tokenizer."""
import pytest
import torch
from PIL import Image
from policy_helpers import GOALS
from qwen2_vl_helpers import random_images

from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.heads.goal_parser import last_token


@pytest.fixture(scope="module")
def processor(model_folder):
    from transformers import AutoImageProcessor
    return AutoImageProcessor.from_pretrained(model_folder)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (128, 128), (56, 90)])
def test_pixels_are_those_of_the_official_image_processor(policy, processor, size):
    """It repeats a still image as two frames, [P, 3 * 2 * p * p]."""
    images = random_images(2, *size)
    patches, grid = policy.backbone.pixels(images)
    official = processor([Image.fromarray(image.numpy()) for image in images], return_tensors="pt")
    assert official["image_grid_thw"].tolist() == [[1, *grid]] * 2
    expected = official["pixel_values"].view(2, patches.shape[1], 3, 2, -1)
    torch.testing.assert_close(expected[:, :, :, 0], expected[:, :, :, 1], rtol=0, atol=0)
    torch.testing.assert_close(patches.view(2, patches.shape[1], 3, -1), expected[:, :, :, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_hidden_states_are_those_of_transformers(policy, model_folder, processor, size):
    """Prompts of different lengths in one batch, against Qwen2VLModel's own forward, one by one."""
    from transformers import Qwen2VLModel
    official, backbone = Qwen2VLModel.from_pretrained(model_folder).eval(), policy.backbone
    images = random_images(5, *size)
    with torch.no_grad():
        text, ends, image, patch_centers = backbone(images, GOALS)
    count, features = size[0] * size[1] // 16**2, []
    official.visual.blocks[-1].register_forward_hook(lambda module, args, out: features.append(out))
    assert len({len(backbone.prompt(goal)[1]) for goal in GOALS}) > 2
    assert text.shape == (5, ends.max() + 1, 96) and image.shape == (5, 4 * count, 160)
    assert text.dtype == image.dtype == torch.float32
    for b, goal in enumerate(GOALS):
        before, after = backbone.prompt(goal)
        ids = torch.tensor([before + [official.config.image_token_id] * count + after])
        processed = processor([Image.fromarray(images[b].numpy())], return_tensors="pt")
        with torch.no_grad():
            hidden = official(input_ids=ids, **{name: processed[name] for name in ("pixel_values", "image_grid_thw")},
                              mm_token_type_ids=(ids == official.config.image_token_id).int()).last_hidden_state[0]
        torch.testing.assert_close(text[b, :ends[b] + 1], hidden[len(before) + count:], rtol=0, atol=1e-4)
        tokens = hidden[len(before):len(before) + count].repeat_interleave(4, 0)      # of every patch, its token's
        torch.testing.assert_close(image[b, :, :96], tokens, rtol=0, atol=1e-4)
        patches = torch.nn.functional.layer_norm(features[-1].view(4 * count, 64), (64,))
        torch.testing.assert_close(image[b, :, 96:], patches, rtol=0, atol=1e-4)


def test_prompt_is_what_the_tokenizer_makes_of_the_template(policy):
    backbone = policy.backbone
    for goal in GOALS:
        before, after = backbone.prompt(goal)
        text = backbone.tokenizer.decode([*before, *after])
        assert text.startswith("<|vision_start|>") and "<|vision_end|>" in text and text.endswith("<|im_end|>")
    assert backbone.prompt("heat") != backbone.prompt("cool")


def test_subword_dropout_keeps_the_text_and_is_seeded(make_policy):
    policy = make_policy()
    backbone, goal = policy.backbone, "please move every dot left, 왼쪽으로"
    uncut = backbone.prompt(goal)
    policy.use_dropout(True, bpe_dropout=0.3).train()
    torch.manual_seed(1)
    cut = [backbone.prompt(goal) for _ in range(20)]
    torch.manual_seed(1)
    assert [backbone.prompt(goal) for _ in range(20)] == cut
    decode = lambda ids: backbone.tokenizer.decode(ids).replace(" ", "")
    assert {decode(after) for _, after in cut} == {decode(uncut[1])}
    assert len({tuple(after) for _, after in cut}) > 15
    assert policy.eval().backbone.prompt(goal) == uncut
    assert policy.use_dropout(False).train().backbone.prompt(goal) == uncut


def test_centres_lie_where_the_patches_are():
    """Two rows of three patches that are not merged: (x, y), row by row; merged by fours, token by token."""
    expected = [[x, y] for y in (1 / 4, 3 / 4) for x in (1 / 6, 1 / 2, 5 / 6)]
    torch.testing.assert_close(Qwen2VLBackbone.patch_centers(2, 3, 1, "cpu"), torch.tensor(expected))
    expected = [[x, y] for left in (0, 2) for y in (1 / 4, 3 / 4) for x in ((left + 0.5) / 4, (left + 1.5) / 4)]
    torch.testing.assert_close(Qwen2VLBackbone.patch_centers(2, 4, 2, "cpu"), torch.tensor(expected))


def test_patches_and_image_tokens_belong_to_their_places(policy):
    """A change in the image's top right corner reaches the token there most, and of its patches the changed one."""
    images = random_images(2)
    images[1] = images[0]
    images[1, :8, 56:] = 255 - images[1, :8, 56:]
    with torch.no_grad():
        tokens, patches = policy.backbone.run_vision_tower(*policy.backbone.pixels(images))
    for patch_features, grid, centre in ((tokens, (4, 4, 1), [0.875, 0.125]), (patches, (8, 8, 2), [0.9375, 0.0625])):
        changed = (patch_features[0] - patch_features[1]).abs().sum(-1)
        assert policy.backbone.patch_centers(*grid, "cpu")[changed.argmax()].tolist() == centre


def test_a_batch_is_its_samples(policy):
    images = random_images(5)
    with torch.no_grad():
        text, ends, image, _ = policy.backbone(images, GOALS)
        for b in range(5):
            one, end, patches, _ = policy.backbone(images[b:b + 1], GOALS[b:b + 1])
            assert end == ends[b]
            torch.testing.assert_close(one[0], text[b, :end + 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(patches[0], image[b], rtol=0, atol=1e-5)


def test_instruction_and_image_both_matter(policy):
    images = random_images(2)
    with torch.no_grad():
        a, b, c = (last_token(*policy.backbone(one[None], [goal])[:2]) for one, goal in (
            (images[0], "heat"), (images[0], "cool"), (images[1], "heat")))
    assert (a - b).abs().max() > 1e-3 and (a - c).abs().max() > 1e-3


@pytest.mark.parametrize("goal", ["<|image_pad|>", "go <|image_pad|> left <|vision_end|><|im_end|>", "", "🙂 \x00"])
def test_odd_instructions_do_not_break_it(policy, goal):
    with torch.no_grad():
        text, ends, image, _ = policy.backbone(random_images(2), [goal, "heat"])
        alone = policy.backbone(random_images(2)[1:], ["heat"])[0]
    assert image.shape == (2, 64, 160) and torch.isfinite(text).all()
    torch.testing.assert_close(text[1, :ends[1] + 1], alone[0], rtol=0, atol=1e-5)
