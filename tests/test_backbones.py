"""The backbone interface and registry, with a backbone that is not Qwen2-VL; what may be trained in which precision."""
import subprocess
import sys

import pytest
import torch
from torch import nn

import models.backbones
from models.backbones import (
    BACKBONES,
    Features,
    VisionLanguageBackbone,
    get_backbone_class,
    hub_loading,
    make_backbone,
    register_backbone,
)
from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.heads import spec_from_space
from models.vlm_policy import VLMPolicy
from simulator.particles.task import action_space

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
INSTRUCTIONS = ["heat", "모아줘", "push everything to the very top, please"]


class PoolingBackbone(VisionLanguageBackbone):
    """16 average colours of the image, and one embedding per character."""
    width, patch_width = 8, 3

    def __init__(self, name):
        super().__init__()
        self.name = str(name)
        self.embedding = nn.Embedding(256, self.width)

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        return cls(name)

    def encode_text(self, instructions):
        ids = [torch.tensor([ord(character) % 256 for character in text]) for text in instructions]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return self.embedding(padded), torch.tensor([len(row) - 1 for row in ids])

    def forward(self, images, instructions):
        colours = nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, 4)
        centers = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1) / 4 + 0.125
        return Features(*self.encode_text(instructions), colours.flatten(2).transpose(1, 2), centers)


@pytest.fixture
def pooling_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(models.backbones, "BACKBONES", dict(BACKBONES))
    for file in ("preprocessor_config.json", "tokenizer.json"):
        (tmp_path / file).write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "pooling"}')
    return tmp_path


def images(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


def refused_line(error):
    message = str(error.value)
    assert message.count("\n") == 0
    return message


# --- the registry -----------------------------------------------------------------------------------------------
def test_an_own_backbone_loads_through_the_registry(pooling_folder):
    register_backbone("pooling", f"{__name__}:PoolingBackbone")
    backbone = make_backbone(pooling_folder)
    assert type(backbone).__name__ == "PoolingBackbone" and backbone.name == str(pooling_folder)
    policy = VLMPolicy(backbone, spec_from_space(action_space(64, 64, 50)), hidden=(32,), goal_vocab=("1 left", "THEN"))
    actions, log_probs, output = policy.sample_action(images(3), INSTRUCTIONS)
    assert actions.shape == (3, 7) and torch.isfinite(log_probs).all() and output.value.shape == (3,)
    assert policy.parse_goal(INSTRUCTIONS).shape == (3, 2)
    with backbone.cache_vision_features():
        policy.train().evaluate_actions({"image": images(3), "goal": INSTRUCTIONS}, actions)[0].sum().backward()
    assert backbone.embedding.weight.grad.abs().sum() > 0
    backbone.check_trainable()
    for unsupported in (backbone.gradient_checkpointing_enable, lambda: backbone.from_files({}, "pooling")):
        with pytest.raises(ValueError, match="PoolingBackbone does not support") as error:
            unsupported()
        refused_line(error)


def test_an_unregistered_type_is_refused_with_the_registered_ones(pooling_folder):
    for load in (make_backbone, hub_loading.load_pretrained, Qwen2VLBackbone.from_pretrained):
        with pytest.raises(OSError, match="'pooling'.*choose from qwen2_vl") as error:
            load(pooling_folder)
        refused_line(error)


def test_a_backbone_must_implement_the_interface():
    class Incomplete(PoolingBackbone):
        encode_text = VisionLanguageBackbone.encode_text

    with pytest.raises(TypeError, match="encode_text"):
        Incomplete("name")


def test_make_backbone_builds_qwen2_vl(model_folder):
    assert get_backbone_class("qwen2_vl") is Qwen2VLBackbone
    loaded = make_backbone(model_folder, lora=LORA)
    assert type(loaded) is Qwen2VLBackbone and loaded.lora == LORA and loaded.config_files is None
    files = hub_loading.read_config_files(model_folder)
    random = make_backbone("vlm_tiny", files, dtype="bfloat16", device="meta")
    assert type(random) is Qwen2VLBackbone and random.device.type == "meta" and random.config_files == files
    assert random.init_kwargs() == {"lora": None, "dtype": "bfloat16", "min_pixels": 0}


def test_importing_the_registry_imports_no_transformers():
    code = "import sys, models.backbones; sys.exit('transformers' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=models.backbones.__file__.rpartition("/models/")[0]
                          ).returncode == 0


# --- features ---------------------------------------------------------------------------------------------------
def test_features_have_the_documented_shapes(model_folder):
    backbone = make_backbone(model_folder)
    with torch.no_grad():
        features = backbone(images(3), INSTRUCTIONS)
        text, last_index = backbone.encode_text(INSTRUCTIONS)
    assert isinstance(features, Features)
    num_patches, length = (64 // 8)**2, int(features.last_index.max()) + 1
    assert features.text.shape == text.shape == (3, length, backbone.width)
    assert torch.equal(features.last_index, last_index) and last_index.dtype == torch.int64
    assert features.patches.shape == (3, num_patches, backbone.patch_width)
    assert features.patch_xy.shape == (num_patches, 2) and 0 < features.patch_xy.min() < features.patch_xy.max() < 1
    assert {features.text.dtype, features.patches.dtype, features.patch_xy.dtype} == {torch.float32}


def test_gradient_checkpointing_in_training_mode_without_gradients(model_folder):
    """transformers' layers then take no cache, so prompts may not share one."""
    backbone = make_backbone(model_folder, lora=LORA)
    backbone.tokenizer.chat_template = None     # the official one, whose prompts have a long common beginning
    with torch.no_grad():
        expected = backbone.eval()(images(3), INSTRUCTIONS)
        backbone.gradient_checkpointing_enable()
        for ours, theirs in zip(backbone.train()(images(3), INSTRUCTIONS), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


# --- precision --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_whole_backbone_does_not_train_in_half_precision(model_folder, dtype):
    """It acts, and trains with LoRA; small updates of half-precision weights would be lost."""
    backbone = make_backbone(model_folder, dtype=dtype)
    message = f"{dtype} weights.*train the whole backbone in float32.*model.vlm.dtype:=float32.*or use LoRA"
    with torch.no_grad():
        assert torch.isfinite(backbone(images(2), INSTRUCTIONS[:2]).text).all()
    backbone.eval()(images(2), INSTRUCTIONS[:2])
    for use in (backbone.check_trainable, lambda: backbone.train()(images(2), INSTRUCTIONS[:2]),
                lambda: backbone.train().encode_text(INSTRUCTIONS)):
        with pytest.raises(ValueError, match=message) as error:
            use()
        refused_line(error)
    for trainable in (make_backbone(model_folder), make_backbone(model_folder, dtype=dtype, lora=LORA)):
        trainable.check_trainable()
        trainable.train().encode_text(INSTRUCTIONS)[0].sum().backward()
