"""What the tests of `train_vlm.main` share: a small run and what it wrote."""
import json
import re
from pathlib import Path

import torch

import train_vlm
from models import checkpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["vlm_tiny", "debug", "rl.iterations=3", "eval.episodes=4", "train.threads=1"]


def run(folder, *words):
    return train_vlm.main([*SMALL, f"train.output_dir:={folder}", *words])


def metrics(folder):
    """The rows of metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(("time/", "system/"))} for row in rows]


def weights(path):
    return checkpoint.load(path)[1]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def bad(capsys, *words, says):
    assert train_vlm.main(list(words)) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(err) == 1 and re.search(says, err[0]), err
