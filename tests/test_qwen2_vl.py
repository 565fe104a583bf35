"""Small Qwen2-VL models against transformers, its processor and peft; precision, caches, gradients."""
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import LORA
from qwen2_vl_helpers import (
    EMBED,
    INSTRUCTIONS,
    WIDTH,
    assert_states,
    build_model,
    make_instructions,
    random_images,
    reference_states,
    to_pil,
    transformers_model,
)

import config
import train_vlm
from models.backbones import hub_loading
from models.backbones.hub_loading import read_config_files
from models.backbones.qwen2_vl import Qwen2VLBackbone
from simulator.registry import make_env

pytest_plugins = ["qwen2_vl_fixtures"]

# --- against transformers ---------------------------------------------------------------------------------------
SIZES = [(64, 64), (224, 224), (20, 20), (40, 400), (400, 40), (100, 70), (9, 1000)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_official_processor(plain, folder, size):
    """Enlarged, made smaller, as they are, below the least size, far from square."""
    from transformers import AutoImageProcessor
    assert_pixels(plain.backbone, AutoImageProcessor.from_pretrained(folder), random_images(3, *size))


def assert_pixels(backbone, processor, images):
    patches, grid = backbone.pixels(images)
    official = processor(to_pil(images), return_tensors="pt")
    assert official["image_grid_thw"].tolist() == [[1, *grid]] * len(images)
    expected = official["pixel_values"].view(*patches.shape[:2], 3, 2, -1)      # two equal frames of a still image
    torch.testing.assert_close(expected[:, :, :, 0], expected[:, :, :, 1], rtol=0, atol=0)
    torch.testing.assert_close(patches.view(*patches.shape[:2], 3, -1), expected[:, :, :, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (300, 280)])
def test_min_pixels_is_that_of_the_official_processor(folder, size):
    from transformers import AutoImageProcessor
    processor = AutoImageProcessor.from_pretrained(folder, min_pixels=50176)
    assert processor.size["shortest_edge"] == 50176
    backbone = Qwen2VLBackbone.from_pretrained(folder, min_pixels=50176)
    assert_pixels(backbone, processor, random_images(2, *size))
    assert backbone.pixels(random_images(1))[1] == (16, 16) and backbone.init_kwargs()["min_pixels"] == 50176


def test_preprocessor_file_as_the_hub_has_it(folder, tmp_path):
    """`min_pixels` and `max_pixels` in the place of `size`."""
    from transformers import AutoImageProcessor
    shutil.copytree(folder, tmp_path / "base")
    path = tmp_path / "base" / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    del settings["size"]
    for low, high, grid in ((3136, 12845056, (4, 4)), (50176, 12845056, (16, 16)), (784, 1568, (2, 2))):
        path.write_text(json.dumps(settings | {"min_pixels": low, "max_pixels": high}))
        backbone = Qwen2VLBackbone.from_pretrained(tmp_path / "base")
        assert backbone.pixels(random_images(1))[1] == grid
        assert_pixels(backbone, AutoImageProcessor.from_pretrained(tmp_path / "base"), random_images(2))


def test_an_image_that_is_too_long_is_refused(plain, folder):
    """As the official processor does, beyond 200 to 1."""
    from transformers import AutoImageProcessor
    images = random_images(1, 5, 1001)
    with pytest.raises(ValueError, match="ratio"):
        AutoImageProcessor.from_pretrained(folder)(to_pil(images))
    with pytest.raises(ValueError, match="images.*200"):
        plain(images, ["heat"])


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("size", [64, 224])
def test_hidden_states_are_those_of_transformers(plain, folder, size, batch):
    """On one batch padded left or right, prompts of all lengths, compared from the instructions on."""
    model, images, instructions = transformers_model(folder), random_images(batch, size, size), make_instructions(batch)
    with torch.no_grad():
        features = plain.backbone(images, instructions)
    assert features[2].shape == (batch, (4 if size == 64 else 16)**2, WIDTH + EMBED)
    for side in ("left", "right"):
        assert_states(features, reference_states(model, folder, images, instructions, side), atol=1e-4)


@pytest.mark.parametrize("size", [(20, 20), (40, 400)])
def test_hidden_states_of_images_that_are_not_square(plain, folder, size):
    images = random_images(5, *size)
    with torch.no_grad():
        assert_states(plain.backbone(images, INSTRUCTIONS),
                      reference_states(transformers_model(folder), folder, images, INSTRUCTIONS, "left"), atol=1e-4)


def test_encode_text_is_the_language_model_alone(plain, folder):
    """Without images, against transformers' own forward on the same tokens."""
    model = transformers_model(folder)
    with torch.no_grad():
        text, last_index = plain.backbone.encode_text(INSTRUCTIONS)
        for b, instruction in enumerate(INSTRUCTIONS):
            before, after = plain.backbone.prompt(instruction)
            expected = model(input_ids=torch.tensor([before + after])).last_hidden_state[0, len(before):]
            torch.testing.assert_close(text[b, :last_index[b] + 1], expected, rtol=0, atol=1e-4)


def test_eager_equals_sdpa(plain, folder):
    eager = Qwen2VLBackbone.from_pretrained(folder, attention="eager")
    images, instructions = random_images(8), make_instructions(8)
    assert eager.vlm.config._attn_implementation == "eager"
    with torch.no_grad():
        for ours, expected in zip(eager(images, instructions), plain.backbone(images, instructions), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_adapters_are_those_of_stock_peft(adapted, plain, folder):
    """Put on by peft itself, with the same weights."""
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(transformers_model(folder), LoraConfig(
        r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=LORA["dropout"],
        target_modules=r"language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"))
    ours = adapted.backbone.model.state_dict()
    assert set(model.state_dict()) == set(ours)
    model.load_state_dict(ours)
    images, instructions = random_images(6), make_instructions(6)
    with torch.no_grad():
        features, without = adapted.backbone(images, instructions), plain.backbone(images, instructions)
    assert (features[0] - without[0]).abs().max() > 1e-2
    assert_states(features, reference_states(model.eval(), folder, images, instructions), atol=1e-4)


def test_weights_as_the_hub_has_them(folder, tmp_path):
    """The whole model with its vocabulary head, in several files, in bfloat16."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    torch.manual_seed(5)
    model_config = Qwen2VLConfig.from_pretrained(folder, tie_word_embeddings=False)
    full_model = Qwen2VLForConditionalGeneration(model_config).bfloat16()
    for file, text in read_config_files(folder).items():
        (tmp_path / file).write_text(text)
    full_model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    backbone = Qwen2VLBackbone.from_pretrained(tmp_path)
    assert backbone.dtype == "bfloat16" and backbone.base_hash == hub_loading.compute_base_hash(full_model.model)
    for name, tensor in full_model.model.state_dict().items():
        assert torch.equal(backbone.vlm.state_dict()[name], tensor), name


# --- precision --------------------------------------------------------------------------------------------------
def test_bfloat16_decides_in_float32(folder, obs):
    """In other batches hidden states may round otherwise, to 8 bits: log-probabilities, of some nats, within 0.05.
    (On a CPU they hardly do; other kernels and a GPU may.)"""
    policy = build_model(folder, dtype="bfloat16")
    assert {p.dtype for name, p in policy.named_parameters() if "_head." in name} == {torch.float32}
    assert policy.backbone.vlm.dtype == torch.bfloat16
    torch.manual_seed(0)
    actions, before, output = policy.sample_action(obs["image"], obs["goal"])
    for index, atol in ((np.arange(8), 1e-5), (np.array([5, 0, 3]), 0.05), (np.array([6]), 0.05)):
        part = {"image": obs["image"][index], "goal": [obs["goal"][i] for i in index]}
        log_probs, entropy, values = policy.evaluate_actions(part, actions[index])
        assert {t.dtype for t in (actions, before, log_probs, entropy, values)} == {torch.float32}
        torch.testing.assert_close(log_probs, before[index], rtol=0, atol=atol)
        torch.testing.assert_close(values, output.value[index], rtol=0, atol=atol)


def test_under_autocast_the_heads_stay_in_float32(adapted, obs):
    """Equal to the last bit with and without it, also without images."""
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            features = adapted.backbone(torch.from_numpy(obs["image"]), obs["goal"])
            text = adapted.backbone.encode_text(INSTRUCTIONS)
            inside, output = adapted.forward_heads(*features), adapted(obs["image"], obs["goal"])
            slot_logits = adapted.parse_goal(INSTRUCTIONS)
            actions, log_probs, _ = adapted.sample_action(obs["image"], obs["goal"])
            others = adapted.evaluate_actions(obs, actions)
        outside = adapted.forward_heads(*features)
        assert torch.equal(slot_logits, adapted.parser_head(*text))
    tensors = output.value, output.slot_logits, slot_logits, actions, log_probs, *others
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    torch.testing.assert_close(others[0], log_probs, rtol=0, atol=1e-5)
    for name in ("type_logits", "mode_logits", "point", "param_mean", "class_logits", "std", "point_attention",
                 "subgoal_logits"):
        assert torch.equal(getattr(inside.distribution, name), getattr(outside.distribution, name)), name
    assert torch.equal(inside.value, outside.value) and torch.equal(inside.slot_logits, outside.slot_logits)


# --- the cache of vision features ------------------------------------------------------------------------------------
@pytest.fixture
def rows(monkeypatch):
    """The batch size of each call of the vision tower."""
    batch_sizes, run_vision_tower = [], Qwen2VLBackbone.run_vision_tower

    def counted(self, patches, grid):
        batch_sizes.append(len(patches))
        return run_vision_tower(self, patches, grid)

    monkeypatch.setattr(Qwen2VLBackbone, "run_vision_tower", counted)
    return batch_sizes


def test_with_a_cache_the_tower_runs_once_per_image(adapted, rows):
    backbone, images = adapted.backbone, random_images(3)
    batch, instructions = images[[0, 1, 0, 2, 1, 0]], make_instructions(6)
    with torch.no_grad():
        expected = backbone(batch, instructions)
        assert rows == [6]
        with backbone.cache_vision_features():
            for _ in range(3):
                for ours, theirs in zip(backbone(batch, instructions), expected, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
            backbone(images, INSTRUCTIONS[:3])
            assert rows == [6, 3]
            backbone(random_images(4), INSTRUCTIONS[:4])                # one more, and the three again
            assert rows == [6, 3, 1] and len(backbone._feature_cache) == 4
        assert backbone._feature_cache is None
        backbone(batch, instructions)
    assert rows == [6, 3, 1, 6]


def test_cached_images_differ_by_their_shape(adapted):
    """The images are black, so their bytes are equal."""
    wide, high = torch.zeros(1, 56, 112, 3, dtype=torch.uint8), torch.zeros(1, 112, 56, 3, dtype=torch.uint8)
    with torch.no_grad(), adapted.backbone.cache_vision_features():
        patch_xy = [adapted.backbone(images, ["heat"]).patch_xy for images in (wide, high, wide)]
    assert torch.equal(patch_xy[0], patch_xy[2])
    assert torch.equal(patch_xy[1], Qwen2VLBackbone.patch_centers(8, 4, 2, "cpu"))


def test_the_cache_ends_after_an_error(adapted):
    with pytest.raises(RuntimeError, match="stop"), adapted.backbone.cache_vision_features():
        adapted(random_images(1), ["heat"])
        raise RuntimeError("stop")
    assert adapted.backbone._feature_cache is None


def test_the_cache_changes_no_gradient(folder, obs):
    gradients = []
    for cached in (False, True):
        policy, actions = build_model(folder), torch.zeros(8, 7)
        with policy.backbone.cache_vision_features() if cached else torch.enable_grad():
            policy.act(obs)
            policy.evaluate_actions(obs, actions)[0].sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_a_tower_that_is_trained_has_no_cache(plain, rows):
    images = random_images(2)
    with torch.no_grad(), plain.backbone.cache_vision_features():
        for _ in range(2):
            plain(images, INSTRUCTIONS[:2])
    assert rows == [2, 2] and plain.backbone._feature_cache is None


@pytest.mark.parametrize("lora", [True, False])
def test_gradient_checkpointing_changes_no_gradient(folder, obs, lora):
    """It computes every layer twice."""
    gradients, calls = [], []
    for on in (False, True):
        c = config.load(["vlm_full", f"model.vlm.name:={folder}", f"model.vlm.use_lora={lora}",
                         f"model.vlm.gradient_checkpointing={on}", "model.heads.hidden=[32]"])
        policy = train_vlm.build_policy(c, make_env(c, 1))
        generator = torch.Generator().manual_seed(0)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or "value_head.out" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        calls.append([])
        layer = policy.backbone.vlm.language_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, layer_calls=calls[-1]: layer_calls.append(1))
        log_probs, entropy, values = policy.train().evaluate_actions(obs, torch.zeros(8, 7))
        forward = len(calls[-1])
        (log_probs.sum() + entropy.sum() + values.square().sum()).backward()
        assert len(calls[-1]) == (2 if on else 1) * forward > 0
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1]) and any("backbone" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-5)
