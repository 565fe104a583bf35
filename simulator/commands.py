"""The sentences that ship, and what people do to sentences: `load_sentences`, `perturb`.

What a sentence asks for is read in simulator.particles.parser.
"""
import hashlib
import json
import re
import string
from pathlib import Path

from simulator.particles.goals import parse

COMMANDS_FILE = Path(__file__).resolve().parent.parent / "data" / "goal_commands.jsonl"
# what a sentence may be written in
ALLOWED_CHARS = frozenset(string.printable) | {chr(c) for c in range(0xAC00, 0xD7A4)} | {
    chr(c) for c in range(0x3131, 0x3190)} | set("·…’‘“”–—~")
FIELDS = ("text", "language", "goal", "split", "source", "template_family")
ALLOWED = {"language": ("ko", "en"), "split": ("train", "held_out", "unseen_words", "compositional", "cross_lingual")}


class CorpusError(ValueError):
    """A file of sentences that cannot be used; the message is one line for the person who named it."""


def load_instructions(path=None, check_goal=parse) -> list[dict]:
    """The rows of a file of sentences (by default the one that ships), each a dict of the six FIELDS.

    SentencesError for a file that cannot be read and for a row that does not fit (it names the file's line).
    `check_goal(goal)` raises ValueError for what is no goal of the world that the sentences are about.
    """
    path = Path(path or COMMANDS_FILE)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CorpusError(f"cannot read the sentences of {path} ({error.strerror}): name a file that "
                             "scripts/generate_training_data.py wrote") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_row(line.decode("utf-8"), check_goal))
            except ValueError as error:
                raise CorpusError(f"{path}, line {number}: {error}") from None
    return rows


def corpus_hash(more=(), first=COMMANDS_FILE):
    """SHA-256 of the sentences that ship and of the files `more`, by which a checkpoint tells what it has read."""
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in (first, *more))).hexdigest()


def _row(line, check_goal):
    """One line of the file, checked."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    if not isinstance(row, dict) or set(row) != set(FIELDS):
        raise ValueError(f"expected an object with {', '.join(FIELDS)}")
    for field in FIELDS:
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{field} must be a non-empty string, not {row[field]!r}")
        if row[field] not in ALLOWED.get(field, (row[field],)):
            raise ValueError(f"{field} must be {' or '.join(ALLOWED[field])}, not {row[field]!r}")
    check_goal(row["goal"])
    return row


PREFIXES = {"en": ("please, ", "excuse me, could you: ", "if it's no trouble, "),
            "ko": ("죄송하지만 ", "저기요, ", "부탁인데 ")}


def corrupt_text(text, rng):
    """The sentence as somebody careless or very polite would type it: with a trailing full stop, in capitals, with
    doubled spaces, with one typing mistake, or after a polite prefix. `rng` is a numpy Generator."""
    korean = re.search("[가-힣]", text) is not None
    ways = ["stop", "spaces", "typo", "prefix"]
    match rng.choice(ways if korean else [*ways[:1], "capitals", *ways[1:]]):
        case "stop":
            return text.rstrip(".!?") + "."
        case "capitals":
            return text.upper()
        case "spaces":
            return text.replace(" ", "  ")
        case "typo":
            return _typo(text, rng)
        case _:
            prefixes = PREFIXES["ko" if korean else "en"]
            return prefixes[rng.integers(len(prefixes))] + text


def _typo(text, rng):
    """Two neighbouring letters of a word swapped, or one left out, or one typed twice."""
    words = [match.span() for match in re.finditer(r"[^\W\d_]{2,}", text)]
    start, end = words[rng.integers(len(words))]
    at = int(rng.integers(start, end - 1))
    middle = [text[at + 1] + text[at], text[at + 1], text[at] * 2 + text[at + 1]][rng.integers(3)]
    return text[:at] + middle + text[at + 2:]
