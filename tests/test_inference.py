"""inference.py: which model, which instruction, and wrong arguments."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inference_helpers import act, refuses

import config
import inference
from models import vlm_policy
from models.vlm_policy import VLMPolicy
from scripts import cli, evaluate, instructions
from simulator.particles.goals import parse
from simulator.particles.splits import FAMILY


# --- which model ------------------------------------------------------------------------------------------------
def programs(tmp_path):
    return ((inference.main, ["--goal", "go left", "--steps", "1", "--output", str(tmp_path / "a.gif")]),
            (evaluate.main, ["--episodes", "1"]))


def test_a_model_is_a_file_a_folder_or_a_name(saved, capsys, tmp_path, monkeypatch):
    VLMPolicy.from_checkpoint(saved).save_pretrained(tmp_path / "agent")
    import huggingface_hub
    monkeypatch.setattr(vlm_policy, "resolve_hub_kwargs", lambda name, agent=False: {})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: {"someone/agent": tmp_path / "agent"}[name])
    for model in (saved, tmp_path / "agent", "someone/agent"):
        for main, words in programs(tmp_path):
            assert main([*words, "--model", str(model)]) == 0, model
    assert f"model {saved}, goal" in capsys.readouterr().out


@pytest.mark.parametrize("name, says", [("someone/no-agent", "no agent at 'someone/no-agent'.*or a hub name"),
                                        ("checkpoints/none.pt", "no checkpoint at checkpoints/none.pt")])
def test_a_model_that_is_not_there(name, says, capsys, tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    for main, words in programs(tmp_path):
        assert main([*words, "--model", name]) == 2
        err = capsys.readouterr().err
        assert re.search(says, err) and err.count("\n") == 1


def test_a_base_model_that_has_moved(make_policy, model_folder, capsys, tmp_path):
    policy = make_policy(lora={"r": 4, "alpha": 8, "dropout": 0.05, "targets": ["q_proj"]}, own_base=False)
    policy.backbone.name = str(tmp_path / "gone")
    policy.save(tmp_path / "p.pt", {"config": config.load(["vlm_tiny", "env.max_steps=3"]).to_dict()})
    for main, words in programs(tmp_path):
        assert main([*words, "--model", str(tmp_path / "p.pt")]) == 2
        assert f"needs its base model '{tmp_path / 'gone'}'" in capsys.readouterr().err
        assert main([*words, "--model", str(tmp_path / "p.pt"), "--base-model", str(model_folder)]) == 0


# --- instructions -----------------------------------------------------------------------------------------------
@pytest.fixture
def model_reads(monkeypatch):
    """model_reads(goal, confidence): what the model reads in any instruction."""
    def set_reading(goal, confidence=0.9):
        reading = instructions.Reading(["1 left"], goal and parse(goal), confidence)
        monkeypatch.setattr(instructions, "read_instruction", lambda *_: reading)
    return set_reading


@pytest.mark.parametrize("goal, reads, confidence, says", [
    ("make it winter in there", None, 0.9, "the model reads 1 left"),
    ("make it winter in there", "cool()", 0.3, r"the model reads cool\(\) \(confidence 0.30\)"),
    ("order a pizza", "heat()", 0.95, "knows no similar instruction"),
    ("asdf qwerty zxcv", "cool()", 0.95, "knows no similar instruction"),
    ("heat the red one", "heat()", 0.95, "acts on all particles, so it cannot be asked of 'red' alone"),
    ("빨간 입자를 데워 줘", "heat()", 0.95, "cannot be asked of '빨간' alone")])
def test_what_is_not_understood_is_refused(goal, reads, confidence, says, model_reads, saved, capsys, tmp_path):
    model_reads(reads, confidence)
    capsys.readouterr()
    assert inference.main(["--goal", goal, "--model", str(saved), "--output", str(tmp_path / "a.gif")]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert re.search(says, err) and re.search(r'try "[^"]+" \([a-z_]+\(.*\)\), ".*--force', err)
    code, out, _ = act(capsys, tmp_path, "--model", saved, "--force", goal=goal)
    assert code == 0 and "not scored" in out


@pytest.mark.parametrize("reason", ["ambiguous", "negation"])
def test_what_the_rules_refuse_is_refused(reason, model_reads, saved, capsys, tmp_path, monkeypatch):
    from simulator.particles import parser
    monkeypatch.setattr(parser, "parse_instruction", lambda _: (None, reason))
    model_reads("push(direction=left)", 1.0)
    code, out, err = act(capsys, tmp_path, "--model", saved, goal="don't move left")
    assert code == 2 and not out and "is not understood (" in err and '"move left" (push(direction=left))' in err


def test_a_negation_is_refused(saved, capsys, tmp_path):
    assert "is not understood" in act(capsys, tmp_path, "--model", saved, goal="don't move left")[2]


def test_what_only_the_model_understands_is_scored_by_its_reading(model_reads, saved, capsys, tmp_path):
    model_reads("cool()")
    code, out, _ = act(capsys, tmp_path, "--model", saved, goal="make it winter in there")
    assert code == 0 and "\"make it winter in there\", scored as cool() (as the model understood it)" in out
    assert re.search("reached in 3 steps", out)


def test_two_readings_are_both_said(model_reads, saved, capsys, tmp_path):
    model_reads("push(direction=up)")
    _, out, _ = act(capsys, tmp_path, "--model", saved)
    assert "scored as push(direction=left) (as the rules understand it, the model differs)" in out
    assert "the model understands: push(direction=up) (confidence 0.90)" in out
    model_reads("push(direction=left)")
    _, out, _ = act(capsys, tmp_path, "--model", saved)
    assert "scored as push(direction=left)\n" in out


def test_confidence_is_the_product_over_the_slots(policy):
    env = FAMILY.make_single(config.load(["vlm_tiny"]))
    obs, _ = env.reset(seed=0)
    reading = instructions.read_instruction(policy, obs["image"], "go left")
    p = torch.sigmoid(policy([obs["image"]], ["go left"]).slot_logits[0].detach())
    expected = torch.maximum(p, 1 - p).prod().item() if reading.slots else 0
    assert reading.confidence == pytest.approx(expected, abs=1e-5)


# --- arguments --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words, says", [
    (["--steps", "0"], "--steps is 0: give a whole number from 1 up"),
    (["--seed", "-1"], "--seed is -1: give a whole number from 0"),
    (["--model", "nofile.pt"], "no checkpoint at nofile.pt"), (["--goal", " "], "--goal is empty"),
    (["--output", "nowhere/a.gif"], "cannot write --output nowhere/a.gif"),
    (["--output", "a.avi"], "end in .gif or .mp4")])
def test_wrong_arguments_are_refused(words, says, capsys, tmp_path):
    assert says in refuses(capsys, tmp_path, *words)


@pytest.mark.parametrize("words", [
    ["--deterministic", "--sample"], ["--greedy", "--sample"], ["--seed", "x"], ["--no"]])
def test_arguments_that_do_not_parse_get_one_line(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        inference.parse_args(["--goal", "go left", *words])
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_missing_checkpoint_is_refused_before_torch_is_imported():
    code = ("import sys, inference; code = inference.main(['--goal', 'x', '--model', 'no.pt']); "
            "print(code, 'torch' in sys.modules)")
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.stdout == "2 False\n" and result.stderr.startswith("error: no checkpoint at no.pt")


def test_a_path_that_cannot_be_opened_is_refused(tmp_path):
    reason = cli.check_output_path(tmp_path / ("x" * 260 + ".gif"))
    assert reason.startswith("cannot write --output") and not list(tmp_path.iterdir())
