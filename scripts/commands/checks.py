"""Check the answers of a language model."""
import json
import re

from commands.goals import Task
from simulator.commands import ALLOWED_CHARS
from simulator.particles.parser import normalise

GOAL_SYNTAX = re.compile(r"\w\(|\w_\w|[=<>{}\[\]]|\b(AND|THEN)\b")       # syntax of the goal language


def read_answer(answer: str) -> list | None:
    """Return the items of an answer, a JSON list in plain text or in a code block; None for anything else."""
    fenced = re.fullmatch(r"\s*```\w*\s*\n(.*)```\s*", answer, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return None
    value = value.get("sentences") if isinstance(value, dict) else value
    return value if isinstance(value, list) and value else None


def key(text: str) -> str:
    """Return the text without case, punctuation and spaces: equal keys mean the same instruction."""
    return (normalise(text) or text.casefold()).replace(" ", "")


def form_error(text: str, task: Task) -> str | None:
    """Return why the form of an instruction is refused (length, language, characters, goal_language), or None."""
    if not 2 <= len(text) <= 200:
        return "length"
    letters = [c for c in text if c.isalpha()]
    hangul = len(re.findall("[가-힣ㄱ-ㆎ]", text))
    wrong_language = 2 * hangul < len(letters) if task.language == "ko" else not "".join(letters).isascii()
    if not letters or wrong_language:
        return "language"
    if not text.isprintable() or not ALLOWED_CHARS.issuperset(text):
        return "characters"
    return "goal_language" if GOAL_SYNTAX.search(text) else None
