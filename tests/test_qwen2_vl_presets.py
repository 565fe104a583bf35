"""The sizes of Qwen2-VL's policies and the models of the documented presets, without their weights."""
import pytest
import torch
from qwen2_vl_helpers import INSTRUCTIONS

import config
import train_vlm
from models.backbones.qwen2_vl import Qwen2VLBackbone
from models.backbones.tiny import init_model_files
from models.vlm_policy import VLMPolicy
from simulator.registry import make_env

B2, B7 = "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"


# --- sizes, on the meta device ----------------------------------------------------------------------------------
def on_meta(overrides):
    """Return the policy of a command line, without its weights, and the config."""
    c = config.load([*overrides.split(), "model.vlm.init:=random"])
    return train_vlm.build_policy(c, make_env(c, 1), device="meta"), c


def count(parameters):
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(("overrides", "base_size", "full_size", "least", "most"), [
    ("vlm_full", 2_208_985_600, 2_208_985_600, 5.6e6, 5.8e6),
    # 8.29 billion with the vocabulary head (152064 x 3584), which is not built here; that of 2B is its embedding
    ("vlm_full vlm_7b", 7_746_378_240, 8_291_375_616, 11e6, 14e6)])
def test_sizes_are_those_of_qwen(overrides, base_size, full_size, least, most):
    from transformers import Qwen2VLForConditionalGeneration
    policy, _ = on_meta(overrides)
    assert all(tensor.is_meta for tensor in policy.state_dict().values())
    assert count(p for name, p in policy.backbone.named_parameters() if "lora_" not in name) == base_size
    with torch.device("meta"):
        assert count(Qwen2VLForConditionalGeneration(policy.backbone.vlm.config).parameters()) == full_size
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert least < count(trained.values()) < most
    assert all("lora_" in name or "_head." in name for name in trained)
    # what a checkpoint to act from holds, where the base's weights come from the hub
    policy.backbone.config_files = None
    kept = VLMPolicy(policy.backbone, policy.spec, goal_vocab=policy.goal_vocab)._saved_names
    assert {name for name in kept if "backbone" in name} == {name for name in trained if "backbone" in name}
    assert sum(p.numel() * p.element_size() for p in trained.values()) < (30e6 if base_size < 3e9 else 50e6)


def test_from_files_on_meta_allocates_nothing():
    """Also without adapters."""
    built = Qwen2VLBackbone.from_files(init_model_files(B2, INSTRUCTIONS), B2, device="meta")
    assert count(built.parameters()) == 2_208_985_600 and built.dtype == "bfloat16" and built.device.type == "meta"


# --- the documented presets and settings ------------------------------------------------------------------------
WIDTHS = {B2: 1536, B7: 3584, "vlm_tiny": 96}
SETTINGS = [f"model.vlm.name:={B2}", "model.vlm.use_lora=True", "model.vlm.lora_r=16", "model.vlm.lora_alpha=32",
            "train.batch_size=8", "train.lr=1e-4", "rl.iterations=50", "rl.rollout_steps=256", "rl.clip_ratio=0.2",
            "rl.gamma=0.99", "physics.gravity_y=0", "physics.restitution=0.8", "physics.em_force_strength=5",
            "physics.em_force_radius=15", "physics.substeps=3", "physics.vibration_scale=0.5",
            "physics.heat_dissipation=0.02", "physics.thermal_radiation_rate=0.01",
            "physics.thermal_radiation_radius=10"]
DOCUMENTED = [
    ("vlm_fast", {"bc.epochs": 0, "rl.iterations": 10}),
    ("vlm_full", {"bc.epochs": 5, "rl.iterations": 50}),
    ("vlm_long", {"bc.epochs": 10, "rl.iterations": 100}),
    ("vlm_full vlm_7b", {"model.vlm.name": B7, "rl.iterations": 50}),
    ("vlm_long vlm_7b debug", {"model.vlm.name": B7, "rl.iterations": 2}),
    ("vlm_fast debug", {"rl.iterations": 2}),
    ("vlm_tiny", {"model.vlm.name": "vlm_tiny"}),
    ("vlm_tiny debug", {"rl.iterations": 2}),
    ("vlm_full train.lr=3e-4 rl.iterations=100 model.vlm.lora_r=32",
     {"train.lr": 3e-4, "rl.iterations": 100, "model.vlm.lora_r": 32}),
    (f"vlm_full model.vlm.name:={B7}", {"model.vlm.name": B7}),
    ("vlm_full zero_gravity high_res", {"physics.gravity_y": 0.0, "world.width": 128, "world.height": 128}),
    ("vlm_full gravity elastic strong_em small_sim",
     {"physics.gravity_y": 0.1, "physics.restitution": 1.0, "physics.em_force_strength": 20.0, "world.width": 32}),
    (" ".join(["vlm_fast", *SETTINGS]), dict(config._parse(word) for word in SETTINGS))]


@pytest.mark.parametrize(("overrides", "expected"), DOCUMENTED, ids=[overrides for overrides, _ in DOCUMENTED])
def test_everything_documented_builds_its_model(overrides, expected):
    policy, c = on_meta(overrides)
    got = dict(config._flatten(c.to_dict()))
    assert {key: got[key] for key in expected} == expected
    assert policy.backbone.name == c.model.vlm.name and policy.backbone.width == WIDTHS[c.model.vlm.name]
    ranks = {p.shape[0] for name, p in policy.named_parameters() if "lora_A" in name}
    assert ranks == ({c.model.vlm.lora_r} if c.model.vlm.use_lora else set())
    assert policy.spec.high[2:4] == (c.world.width, c.world.height)
