"""A file that is not a checkpoint is refused in one line; a save that fails leaves the old file."""
import os
import pickle
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import KINDS, Bomb, damage, one_line

from models import checkpoint
from models.checkpoint import CheckpointError
from models.vlm_policy import VLMPolicy


@pytest.mark.parametrize("kind", KINDS)
def test_refused_in_one_line(kind, saved, tmp_path):
    path = tmp_path / "named.pt"
    damage(kind, path, saved)
    with pytest.raises(CheckpointError) as error:
        VLMPolicy.from_checkpoint(path)
    assert one_line(error) and "named.pt" in str(error.value)
    assert not (tmp_path / "bang").exists()


def test_the_pickle_does_run_code_elsewhere(tmp_path):
    with (tmp_path / "pickle").open("wb") as file:
        pickle.dump(Bomb(tmp_path / "bang"), file)
    with (tmp_path / "pickle").open("rb") as file:
        pickle.load(file).close()
    assert (tmp_path / "bang").exists()


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 10, 100, 1000, 100_000, -1, -10, -22, -1000])
def test_cut_anywhere(cut, saved, tmp_path):
    (tmp_path / "cut.pt").write_bytes(saved.read_bytes()[:cut])
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(tmp_path / "cut.pt")
    assert one_line(error)


def test_random_bytes_and_cut_pickles(tmp_path):
    g = torch.Generator().manual_seed(0)
    noise = [torch.randint(256, (n,), dtype=torch.uint8, generator=g).numpy().tobytes() for n in range(1, 100)]
    whole = pickle.dumps({"format": checkpoint.FORMAT, "meta": "{}", "weights": {"w": [1, 2]}}, protocol=2)
    for content in noise + [whole[:cut] for cut in range(len(whole))]:
        (tmp_path / "noise.pt").write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            checkpoint.load(tmp_path / "noise.pt")
        assert one_line(error)


def test_format_without_content(tmp_path):
    torch.save({"format": checkpoint.FORMAT}, tmp_path / "p.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "p.pt")


def test_another_architecture(make_policy, saved, tmp_path):
    """Weights of heads 16 wide under the description of heads 32 wide, and those with one missing."""
    meta, weights, _ = checkpoint.load(saved)
    checkpoint.save(tmp_path / "other.pt", meta, make_policy(hidden=(16,)).trainable_state_dict())
    with pytest.raises(CheckpointError, match="another architecture") as error:
        VLMPolicy.from_checkpoint(tmp_path / "other.pt")
    assert one_line(error)
    weights.pop("value_head.out.bias")
    checkpoint.save(tmp_path / "less.pt", meta, weights)
    with pytest.raises(CheckpointError, match="1 weights do not fit, the first is value_head.out.bias"):
        VLMPolicy.from_checkpoint(tmp_path / "less.pt")


def test_base_model_that_is_gone(policy, tmp_path):
    model_config = policy.model_config() | {"base": str(tmp_path / "gone"), "config_files": None}
    checkpoint.save(tmp_path / "p.pt", {"model_config": model_config}, policy.trainable_state_dict())
    with pytest.raises(CheckpointError, match="p.pt: needs its base model '.*/gone', which cannot be loaded") as error:
        VLMPolicy.from_checkpoint(tmp_path / "p.pt")
    assert one_line(error)


def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.pt"
    checkpoint.save(path, {"n": 1}, {"w": torch.ones(2)})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space.*p\.pt"):
        checkpoint.save(path, {"n": 2}, {"w": torch.zeros(2)})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_failing_json_leaves_no_temporary_file(tmp_path, monkeypatch):
    def half(self, text, **_):
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path / "p.pt", {"n": 2}, {"w": torch.zeros(2)})
    assert not list(tmp_path.glob("*.tmp"))


def test_damaged_or_broken_weights_are_refused(policy, tmp_path):
    """Some bytes inverted where weights lie; a weight that is no number."""
    policy.save(tmp_path / "a.pt", {})
    content = bytearray((tmp_path / "a.pt").read_bytes())
    middle = len(content) // 2
    content[middle:middle + 8] = bytes(255 - byte for byte in content[middle:middle + 8])
    (tmp_path / "b.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged.*checksum"):
        VLMPolicy.from_checkpoint(tmp_path / "b.pt")
    meta, weights, _ = checkpoint.load(tmp_path / "a.pt")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    checkpoint.save(tmp_path / "c.pt", meta, weights)
    with pytest.raises(CheckpointError, match="not finite"):
        VLMPolicy.from_checkpoint(tmp_path / "c.pt")
