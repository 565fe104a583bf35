"""inference.py and evaluate.py refuse wrong models, goals, numbers and outputs in one line and write nothing."""
import os

import pytest
from checkpoint_helpers import KINDS, damage

import inference
from scripts import evaluate


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
