"""evaluate.py: splits by name, wrong arguments, and baselines of an env."""
import json

import pytest

import config
from scripts import evaluate


def test_splits_by_all_their_names():
    from simulator.particles.splits import SPLITS
    args = evaluate.parse_args(["--split", "swap", "chain", "--split", "held_out", "chain"])
    assert evaluate.resolve_splits(args.split, SPLITS, ["seen"]) == [
        "instruction_swap", "long_horizon", "held_out_en", "held_out_ko"]
    assert evaluate.resolve_splits(["all"], SPLITS, ["seen"]) == ["seen"]
    with pytest.raises(config.UserError, match="unknown split 'chains': choose from held_out, swap, chain, all, seen"):
        evaluate.resolve_splits(["chains"], SPLITS, [])


@pytest.mark.parametrize("words, says", [
    (["--episodes", "0"], "--episodes is 0"), (["--seed", "-1"], "--seed is -1"),
    (["--env-preset", "vlm_tiny", "--split", "seen"], "--env-preset measures no model"),
    (["--json", "nowhere/a.json"], "cannot write --json"), (["--model", "no.pt"], "no checkpoint at no.pt")])
def test_evaluate_refuses_in_one_line(words, says, capsys):
    assert evaluate.main(words) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_baselines_of_an_env(capsys, tmp_path):
    path = tmp_path / "a.json"
    assert evaluate.main(["--env-preset", "vlm_tiny", "env.max_steps=2", "--episodes", "2", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["env_preset"] == ["vlm_tiny", "env.max_steps=2"]
    assert "expert" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "simulator/particles/splits.py" in capsys.readouterr().out
