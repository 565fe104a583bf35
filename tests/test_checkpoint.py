"""Checkpoints come back as they were; files of format 2 load and act as before."""
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_helpers import one_line

import config
from models import checkpoint
from models.checkpoint import CheckpointError
from models.vlm_policy import VLMPolicy
from simulator.particles.env import ParticleVectorEnv

ROOT = Path(__file__).resolve().parent.parent

META = {"config": config.load(["vlm_tiny", "env.max_steps=3"]).to_dict()}


def outputs(policy):
    obs, _ = ParticleVectorEnv(3).reset(seed=0)
    with torch.no_grad():
        output = policy(obs["image"], obs["goal"])
    actions = output.distribution.sample(deterministic=True)
    return torch.cat([output.value, output.distribution.log_prob(actions), actions.flatten()])


def test_round_trip(policy, saved):
    loaded = VLMPolicy.from_checkpoint(saved)
    assert torch.equal(outputs(loaded), outputs(policy))
    assert loaded.meta["config"] == META["config"] and not loaded.training
    assert saved.with_suffix(".json").is_file() and not list(saved.parent.glob("*.tmp"))


def test_round_trip_with_adapters(make_policy, model_folder, tmp_path):
    """Over a pretrained folder only adapters and heads are kept."""
    policy = make_policy(lora={"r": 4, "alpha": 8, "dropout": 0.05, "targets": ["q_proj"]}, own_base=False)
    policy.save(tmp_path / "lora.pt")
    _, weights, _ = checkpoint.load(tmp_path / "lora.pt")
    assert all("lora_" in name or "head" in name for name in weights)
    assert torch.equal(outputs(VLMPolicy.from_checkpoint(tmp_path / "lora.pt")), outputs(policy))


def test_round_trip_with_adapters_on_a_random_base(make_policy, tmp_path):
    policy = make_policy(lora={"r": 4, "alpha": 8, "dropout": 0.05, "targets": ["q_proj"]})
    policy.save(tmp_path / "lora.pt")
    assert torch.equal(outputs(VLMPolicy.from_checkpoint(tmp_path / "lora.pt")), outputs(policy))


def test_plain_data_and_state_come_back(tmp_path):
    state = {"envs": {"x": torch.arange(3)}, "step": 4, "instructions": ["모아줘"]}
    checkpoint.save(tmp_path / "s.pt", {"goal": "왼쪽"}, {"w": torch.ones(2)}, state)
    meta, weights, back = checkpoint.load(tmp_path / "s.pt")
    assert meta == {"goal": "왼쪽"} and torch.equal(weights["w"], torch.ones(2))
    assert back["step"] == 4 and back["instructions"] == ["모아줘"] and torch.equal(back["envs"]["x"], torch.arange(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.pt"]


def test_a_header_that_begins_as_a_pickle_does(tmp_path):
    """A safetensors file begins with its header's length, a multiple of 8: now and then its first byte is 0x80."""
    path, starts = tmp_path / "p.pt", set()
    for n in range(0, 256, 8):
        checkpoint.save(path, {"n": "x" * n}, {"w": torch.ones(2)})
        starts.add(path.read_bytes()[0])
        assert checkpoint.load(path)[0] == {"n": "x" * n}
    assert 0x80 in starts


def as_format_2(path):
    """Rewrite a checkpoint of today with the names of format 2."""
    meta, weights, state = checkpoint.load(path)
    config_ = meta.pop("model_config")
    config_["heads"]["words"] = config_["heads"].pop("goal_vocab")
    config_["files"] = config_.pop("config_files")
    spec = config_["spec"]
    spec.pop("kind")
    spec["uses"], spec["point"] = spec.pop("used_params"), spec.pop("xy_params")
    old_weights = {}
    for name, tensor in weights.items():
        old, new = next((pair for pair in checkpoint.OLD_PARAMETERS if name.startswith(pair[1])), ("", ""))
        old_weights[old + name.removeprefix(new)] = tensor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", checkpoint.OLD_FORMAT)
        checkpoint.save(path, meta | {"architecture": config_}, old_weights, state)


def test_format_2_loads_and_acts_as_before(policy, tmp_path):
    policy.save(tmp_path / "p.pt", META)
    as_format_2(tmp_path / "p.pt")
    loaded = VLMPolicy.from_checkpoint(tmp_path / "p.pt")
    assert torch.equal(outputs(loaded), outputs(policy)) and loaded.meta["config"] == META["config"]


def test_a_training_state_of_format_2_is_refused(policy, tmp_path):
    checkpoint.save(tmp_path / "s.pt", {"model_config": policy.model_config()}, policy.trainable_state_dict(), {"n": 1})
    as_format_2(tmp_path / "s.pt")
    with pytest.raises(CheckpointError, match="s.pt is a training state of an older version") as error:
        checkpoint.load(tmp_path / "s.pt")
    assert one_line(error)


def test_the_shipped_checkpoint_acts_as_before():
    """Greedy actions on a fixed image, as the version that wrote the file computed them."""
    policy = VLMPolicy.from_checkpoint(ROOT / "checkpoints" / "vlm_tiny.pt")
    y, x = np.mgrid[0:64, 0:64]
    image = np.stack([(3 * x + y) % 256, (x * y) % 256, (5 * y) % 256], -1).astype(np.uint8)
    instructions = ["heat everything up, then spread it out", "입자들을 왼쪽으로 이동시켜"]
    actions, log_probs, output = policy.sample_action([image] * 2, instructions, deterministic=True)
    torch.testing.assert_close(actions, torch.tensor([
        [5.0, -1.0, 16.45130157470703, 0.0, -3.2600135803222656, 64.0, 0.0],
        [5.0, -1.0, 16.942106246948242, 22.56648826599121, 3.074435234069824, 64.0, 0.0]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(log_probs, torch.tensor([6.895651817321777, 6.176632404327393]), rtol=0, atol=1e-3)
    torch.testing.assert_close(output.value, torch.tensor([0.6536360383033752, 0.9360613226890564]), rtol=0, atol=1e-4)
