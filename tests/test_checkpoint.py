"""Checkpoints come back as they were; whatever else is named as one is refused in a line, and nothing is written."""
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import config
import inference
from models import checkpoint
from models.checkpoint import CheckpointError
from models.vlm_policy import VLMPolicy
from simulator.particles.env import ParticleVectorEnv

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import evaluate  # noqa: E402

META = {"config": config.load(["vlm_tiny", "env.max_steps=3"]).to_dict()}


def outputs(policy):
    obs, _ = ParticleVectorEnv(3).reset(seed=0)
    with torch.no_grad():
        output = policy(obs["image"], obs["goal"])
    actions = output.distribution.sample(deterministic=True)
    return torch.cat([output.value, output.distribution.log_prob(actions), actions.flatten()])


def one_line(error):
    return len(str(error.value).splitlines()) == 1


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


# --- files of format 2 ------------------------------------------------------------------------------------------
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
        [4.0, -1.0, 41.12953567504883, 40.82551574707031, 2.841938018798828, 64.0, 0.0],
        [5.0, -1.0, 25.800596237182617, 2.118575096130371, 2.9422659873962402, 64.0, 0.0]]), rtol=0, atol=1e-3)
    torch.testing.assert_close(log_probs, torch.tensor([6.207695007324219, 6.293227195739746]), rtol=0, atol=1e-3)
    torch.testing.assert_close(output.value, torch.tensor([0.5209782123565674, 0.7879509925842285]), rtol=0, atol=1e-4)


# --- what is no checkpoint --------------------------------------------------------------------------------------
class Bomb:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def damage(kind, path, saved):
    content = saved.read_bytes()
    match kind:
        case "missing":
            return
        case "folder":
            path.mkdir()
        case "half":
            path.write_bytes(content[:len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "random":
            path.write_bytes(torch.randint(256, (5000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
                             .numpy().tobytes())
        case "text":
            path.write_text("not a checkpoint\n")
        case "pickle":
            path.write_bytes(pickle.dumps({"format": checkpoint.FORMAT, "weights": Bomb(path.with_name("bang"))}, 2))
        case "torch pickle":
            torch.save({"format": checkpoint.FORMAT, "weights": Bomb(path.with_name("bang"))}, path)
        case "tensor":
            torch.save(torch.ones(3), path)
        case "weights alone":
            torch.save({"w": torch.ones(3)}, path)
        case "no policy":
            checkpoint.save(path, {}, {"w": torch.ones(3)})


KINDS = ["missing", "folder", "half", "empty", "random", "text", "pickle", "torch pickle",
         "tensor", "weights alone", "no policy"]


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


# --- a save that fails ------------------------------------------------------------------------------------------
def test_a_failing_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.pt"
    checkpoint.save(path, {"n": 1}, {"w": torch.ones(2)})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
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


# --- the programs -----------------------------------------------------------------------------------------------
def refused(main, words, capsys, folder):
    """Exit code 2, one line on stderr and nothing else, nothing written."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    return out, err


@pytest.mark.parametrize("goal", ["", "   ", "\n"])
def test_inference_empty_goal(goal, saved, capsys, tmp_path):
    words = ["--goal", goal, "--model", saved, "--output", tmp_path / "a.gif"]
    out, err = refused(inference.main, words, capsys, tmp_path)
    assert "--goal is empty" in err and not out


@pytest.mark.parametrize("kind", KINDS)
def test_programs_refuse_what_is_no_model(kind, saved, capsys, tmp_path):
    path = tmp_path / "named.pt"
    damage(kind, path, saved)
    for main, words in ((inference.main, ["--goal", "go left", "--output", tmp_path / "a.gif"]),
                        (evaluate.main, ["--json", tmp_path / "a.json"])):
        out, err = refused(main, [*words, "--model", path], capsys, tmp_path)
        assert "named.pt" in err and not out


@pytest.mark.parametrize("main, words, count", [
    (inference.main, ["--goal", "go left"], "--steps"), (evaluate.main, [], "--episodes")])
def test_programs_refuse_numbers_out_of_range(main, words, count, saved, capsys, tmp_path):
    for flag, wrong in ((count, "0"), ("--seed", "-1")):
        _, err = refused(main, [*words, "--model", saved, f"{flag}={wrong}"], capsys, tmp_path)
        assert f"{flag} is {wrong}" in err and "whole number" in err


@pytest.mark.parametrize("where", ["missing/a", "not writable", "a folder"])
def test_programs_refuse_where_they_cannot_write(where, saved, capsys, tmp_path, monkeypatch):
    target = {"missing/a": tmp_path / "missing" / "a", "a folder": tmp_path, "not writable": tmp_path / "a"}[where]
    if where == "not writable":                       # root may write everywhere: say it could not
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    out, err = refused(inference.main, ["--goal", "go left", "--model", saved, "--output", target], capsys, tmp_path)
    assert "cannot write" in err and not out
    if where != "a folder":
        out, err = refused(evaluate.main, ["--model", saved, "--json", target], capsys, tmp_path)
        assert "cannot write" in err and not out


def test_inference_writes_nothing_but_gifs(saved, capsys, tmp_path):
    words = ["--goal", "go left", "--model", saved, "--output", tmp_path / "a.txt"]
    assert "end in .gif" in refused(inference.main, words, capsys, tmp_path)[1]


def test_evaluate_refuses_a_folder_as_its_file(saved, capsys, tmp_path):
    _, err = refused(evaluate.main, ["--model", saved, "--episodes=1", "--json", tmp_path], capsys, tmp_path)
    assert f"cannot write --json {tmp_path}" in err


def test_evaluate_says_that_a_checkpoint_holds_no_config(policy, capsys, tmp_path):
    policy.save(tmp_path / "p.pt")
    _, err = refused(evaluate.main, ["--model", tmp_path / "p.pt"], capsys, tmp_path)
    assert "p.pt" in err


def test_what_is_no_regular_file_is_not_replaced(saved, capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for main, words in ((inference.main, ["--goal", "go left", "--output"]), (evaluate.main, ["--json"])):
        out, err = refused(main, [*words, tmp_path / "pipe", "--model", saved], capsys, tmp_path)
        assert "cannot write" in err and not out


def test_inference_refuses_a_goal_without_end(saved, capsys, tmp_path):
    words = ["--goal", "go left " * 70, "--model", saved, "--output", tmp_path / "a.gif"]
    assert "500 at most" in refused(inference.main, words, capsys, tmp_path)[1]


def test_inference_refuses_bytes_that_are_no_text(saved, capsys, tmp_path):
    words = ["--goal", "go left \udcff", "--model", saved, "--output", tmp_path / "a.gif"]
    assert "give the instruction in UTF-8" in refused(inference.main, words, capsys, tmp_path)[1]


def test_inference_writes_a_gif(saved, capsys, tmp_path):
    from PIL import Image
    for name in ("a.gif", "b.gif"):
        assert inference.main(["--goal", "sing <|image_pad|> a song", "--force", "--model", str(saved), "--seed", "3",
                               "--output", str(tmp_path / name)]) == 0
    assert "not scored" in capsys.readouterr().out
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 4                                   # the start and three steps
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "b.gif"]


def test_evaluate_reports_what_it_writes(saved, capsys, tmp_path):
    import json
    assert evaluate.main(["--model", str(saved), "--episodes", "5", "--json", str(tmp_path / "a.json")]) == 0
    figures = json.loads((tmp_path / "a.json").read_text())
    assert figures["model"] == str(saved) and figures["policy"]["greedy"]["n"] == 5
    assert "k of n" in capsys.readouterr().out


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
