"""The instructions of the particle environment: {goal: texts} for each split of the corpus that ships."""
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from simulator import commands
from simulator.commands import DATA_FOLDER, CorpusError
from simulator.particles.goals import parse

COMMANDS_FILE = DATA_FOLDER / "goal_commands.jsonl"


def load_instructions(path: str | Path = COMMANDS_FILE) -> list[dict[str, str]]:
    """Return the rows of an instruction file whose goals are those of the particles.

    CorpusError: the file cannot be read, or a row does not fit (the message names its line).
    """
    return commands.load_instructions(path, parse)


@cache
def instructions_by_goal(split: str = "train", language: str | None = None,
                         more: tuple[str | Path, ...] = ()) -> dict[str, list[str]]:
    """Return {goal: its texts} of one split of the shipped corpus and of the files `more`.

    `language` is "en", "ko" or None for both. CorpusError: see `load_instructions`.
    """
    table = {}
    for path in (COMMANDS_FILE, *more):
        for row in load_instructions(path):
            if row["split"] == split and language in (None, row["language"]):
                table.setdefault(str(parse(row["goal"])), []).append(row["text"])
    return table


def training_instructions(paths: Sequence[str | Path] = ()) -> dict[str, list[str]]:
    """Return {goal: its texts for training} of the shipped corpus and of the files `paths`.

    CorpusError: a file cannot be used, or has no row for training.
    """
    for path in paths:
        if not any(row["split"] == "train" for row in load_instructions(path)):
            raise CorpusError(f"{path} has no instruction for training: its rows need \"split\": \"train\"")
    return instructions_by_goal("train", None, tuple(paths))


def corpus_hash(more: Sequence[str | Path] = ()) -> str:
    """Return the SHA-256 of the shipped corpus and of the files `more`."""
    return commands.corpus_hash(more, COMMANDS_FILE)
