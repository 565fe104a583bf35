"""Instruction texts and instruction files, as all environments share them.

An instruction file is JSON lines. Each line is an object with the six FIELDS, all of them strings. Which goals it may
name is up to the environment: see simulator.particles.commands and simulator.robosuite.commands.
"""
import hashlib
import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from config import MAX_INSTRUCTION_LENGTH, UserError
from simulator.registry import EnvError

DATA_FOLDER = Path(__file__).resolve().parent.parent / "data"
HANGUL = {chr(code) for code in range(0xAC00, 0xD7A4)}          # composed syllables
HANGUL_LETTERS = {chr(code) for code in range(0x3131, 0x3190)}
ALLOWED_CHARS = frozenset(string.printable) | HANGUL | HANGUL_LETTERS | set("·…’‘“”–—~")
FIELDS = ("text", "language", "goal", "split", "source", "template_family")
ALLOWED_VALUES = {
    "language": ("ko", "en"),
    "split": ("train", "held_out", "unseen_words", "compositional", "cross_lingual"),
}
POLITE_PREFIXES = {"en": ("please, ", "excuse me, could you: ", "if it's no trouble, "),
                   "ko": ("죄송하지만 ", "저기요, ", "부탁인데 ")}


class CorpusError(UserError):
    """An instruction file that cannot be used. The message is one line that names the file."""


def clean_instruction(text: str) -> str:
    """Return the text in Unicode's composed form (NFC).

    EnvError: the text is empty, longer than 500 characters, or has a character that ALLOWED_CHARS lacks.
    """
    text = unicodedata.normalize("NFC", str(text))
    if not text.strip():
        raise EnvError("the instruction is empty: give a text in English or Korean")
    if len(text) > MAX_INSTRUCTION_LENGTH:
        raise EnvError(f"the instruction has {len(text)} characters: at most {MAX_INSTRUCTION_LENGTH} are allowed")
    unknown = [char for char in dict.fromkeys(text) if char not in ALLOWED_CHARS]
    if unknown:
        raise EnvError(f"the instruction contains {', '.join(map(ascii, unknown[:5]))}: allowed are Hangul, "
                       "unaccented Latin letters, digits and punctuation")
    return text


def sample_instruction(instructions: Mapping[str, Sequence[str]], goal: object, rng: np.random.Generator) -> str:
    """Return a random one of the texts that `instructions` {goal: texts} has for a goal; its name if there is none."""
    texts = instructions.get(str(goal)) or [str(goal)]
    return texts[rng.integers(len(texts))]


def load_instructions(path: str | Path, check_goal: Callable[[str], object]) -> list[dict[str, str]]:
    """Return the rows of an instruction file, each a dict of the six FIELDS.

    `check_goal(goal)` raises ValueError if the environment does not have this goal.

    CorpusError: the file cannot be read, or a row does not fit (the message names its line).
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CorpusError(f"cannot read the instructions of {path} ({error.strerror}): name a file that "
                          "scripts/generate_training_data.py wrote") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_parse_row(line.decode("utf-8"), check_goal))
            except ValueError as error:
                raise CorpusError(f"{path}, line {number}: {error}") from None
    return rows


def corpus_hash(more: Iterable[str | Path], first: str | Path) -> str:
    """Return the SHA-256, in hexadecimal, of the instruction file `first` followed by the files `more`."""
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in (first, *more))).hexdigest()


def _parse_row(line: str, check_goal: Callable[[str], object]) -> dict[str, str]:
    """Return one line of an instruction file as a dict. ValueError: it does not fit."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    if not isinstance(row, dict) or set(row) != set(FIELDS):
        raise ValueError(f"expected an object with {', '.join(FIELDS)}")
    for field in FIELDS:
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{field} must be a non-empty string, not {row[field]!r}")
        if row[field] not in ALLOWED_VALUES.get(field, (row[field],)):
            raise ValueError(f"{field} must be {' or '.join(ALLOWED_VALUES[field])}, not {row[field]!r}")
    check_goal(row["goal"])
    return row | {"text": clean_instruction(row["text"])}


def corrupt_text(text: str, rng: np.random.Generator) -> str:
    """Return an instruction as careless or very polite people type it.

    One of: a full stop at the end, capitals (English only), doubled spaces, one typing error, a polite prefix.
    """
    korean = re.search("[가-힣]", text) is not None
    kinds = ["stop", "spaces", "typo", "prefix"] if korean else ["stop", "capitals", "spaces", "typo", "prefix"]
    match rng.choice(kinds):
        case "stop":
            return text.rstrip(".!?") + "."
        case "capitals":
            return text.upper()
        case "spaces":
            return text.replace(" ", "  ")
        case "typo":
            return _add_typo(text, rng)
        case _:
            prefixes = POLITE_PREFIXES["ko" if korean else "en"]
            return prefixes[rng.integers(len(prefixes))] + text


def _add_typo(text: str, rng: np.random.Generator) -> str:
    """Return the text with two neighbouring letters swapped, or one letter left out, or one typed twice."""
    words = [match.span() for match in re.finditer(r"[^\W\d_]{2,}", text)]
    start, end = words[rng.integers(len(words))]
    at = int(rng.integers(start, end - 1))
    first, second = text[at], text[at + 1]
    typo = [second + first, second, first * 2 + second][rng.integers(3)]
    return text[:at] + typo + text[at + 2:]
