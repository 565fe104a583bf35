"""The rule-based instruction parser: the goal that a Korean or English instruction asks for, if any.

`parse_instruction` returns a goal in the goal language, such as `push(direction=left, distance=12) THEN heat()`, or
the reason why there is none. It is right or silent: it returns no goal for an instruction that it does not understand
as a whole.

1. The patterns of lexicon_en and lexicon_ko are tried in order, idioms first. Each match is replaced by a mark of the
   part that it stands for (lexicon_parts). So "heat up" leaves no "up", and "top left" leaves no "left". The rest of
   the instruction has no effect.
2. GOAL_RULES are the parts that make a goal, OPTIONAL_PARTS the parts that may come with it. One goal must account for
   all parts.
3. An instruction that says "at once" or "in order" must have a place to split it into two goals.
4. Words with typing errors are corrected, and the corrected instruction is read instead.
"""
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

from simulator.particles import lexicon_en, lexicon_ko
from simulator.particles.goals import Goal, GoalError, parse
from simulator.particles.lexicon_parts import (
    ACROSS,
    AT_ONCE,
    BOTTOM_LEFT,
    BOTTOM_RIGHT,
    CAME_FIRST,
    CAME_SECOND,
    CENTER,
    CLUSTER,
    COLUMN,
    COMMA,
    CORNER,
    DISTRIBUTE,
    DOWN,
    EDGE,
    FIRST,
    HEAT,
    IN_ORDER,
    INCREASE,
    JOIN,
    LEFT,
    LINE,
    MEET_UP,
    ONLY_THESE,
    ORDERS,
    REJECT,
    RIGHT,
    ROW,
    SECOND,
    SET,
    SPLIT_POINTS,
    SPREAD,
    STICK_TOGETHER,
    TOP_LEFT,
    TOP_RIGHT,
    UP,
    UPRIGHT,
    VIBRATE,
    Amount,
    Particles,
)
from simulator.particles.physics import PALETTE

CORNERS = {TOP_LEFT: {UP, LEFT}, TOP_RIGHT: {UP, RIGHT}, BOTTOM_LEFT: {DOWN, LEFT}, BOTTOM_RIGHT: {DOWN, RIGHT}}
SIDES = {LEFT: "x<16", RIGHT: "x>48", UP: "y<16", DOWN: "y>48"}      # of an image of 64x64
BOUNDS = SIDES | {corner: ", ".join(sorted(SIDES[side] for side in sides)) for corner, sides in CORNERS.items()}

PATTERNS_OF_GOALS = {part for part, _ in lexicon_en.PATTERNS + lexicon_ko.PATTERNS
                     if isinstance(part, str) and part.endswith(")")}
GOAL_RULES = [
    *((goal, {goal}) for goal in sorted(PATTERNS_OF_GOALS)),
    (CLUSTER, {MEET_UP}), (CLUSTER, {STICK_TOGETHER}), (CLUSTER, {CLUSTER, CENTER}), (SPREAD, {DISTRIBUTE}),
    *((goal, {CORNER, *sides}) for goal, sides in CORNERS.items()),        # "the left corner at the top"
    (ROW, {ACROSS, LINE}), (ROW, {ACROSS, SET}), (COLUMN, {UPRIGHT, LINE}), (COLUMN, {UPRIGHT, SET}),
]
OPTIONAL_PARTS = {
    **{goal: {SET} for goal in PATTERNS_OF_GOALS},
    **{goal: {SET, STICK_TOGETHER, EDGE} for goal in SIDES},
    **{goal: {SET, CORNER, MEET_UP, *sides} for goal, sides in CORNERS.items()},    # "up into the top left corner"
    CENTER: {SET, MEET_UP}, CLUSTER: {SET, MEET_UP, STICK_TOGETHER}, VIBRATE: {ACROSS, UPRIGHT},
    ROW: {SET, DISTRIBUTE, ACROSS, LINE}, COLUMN: {SET, DISTRIBUTE, UPRIGHT, LINE},
}
# Kinds of goals that can hold at once: a temperature with any other, gathering or scattering with motion.
COMPATIBLE_KINDS = [
    *({temperature, kind} for temperature in ("heat", "cool")
      for kind in ("push", "cluster", "spread", "vibrate", "move_to", "align", "move_toward")),
    *({"cluster", motion} for motion in ("push", "move_to")),
]

MAX_LENGTH = 500        # characters of an instruction
# Marks are characters for private use; those of parts with a value have a range of their own.
FIRST_MARK, FIRST_VALUE = 0xE000, 0xF000
VALUE = {"VALUE": "[\uf000-\uf8ff]"}
COLOURS = {name: i for i, names in enumerate(PALETTE) for name in names[:2]}
NEGATIVE_NUMBER = re.compile(r"[-−]\s?\d|\bminus\b|마이너스")
TYPO_TARGETS, NOT_TYPOS = (frozenset(words.split()) for words in (lexicon_en.TYPO_TARGETS, lexicon_en.NOT_TYPOS))
# A clause that complains says where the particles are, not where they should go: "too hot, cool them off".
COMPLAINT = re.compile(r"\btoo\b|너무")


def normalise(instruction: str) -> str:
    """Return the instruction in NFC and lower case, without punctuation and complaints, its clauses joined by ", "."""
    text = unicodedata.normalize("NFC", instruction).casefold().replace("\u2019", "'")
    clauses = (" ".join(re.sub(r"[^\w']", " ", clause).split()) for clause in re.split(r"[.,!?;:…\n]", text))
    return ", ".join(clause for clause in clauses if clause and not COMPLAINT.search(clause))


def instruction_to_goal(instruction: str) -> str | None:
    """Return the goal that an instruction asks for, such as "push(direction=left)", or None."""
    return parse_instruction(instruction)[0]


def parse_instruction(instruction: str) -> tuple[str | None, str]:
    """Return the goal that an instruction asks for and "understood", or None and the reason.

    The reason is "refused" for a prohibition, a question or something else than a goal, "unknown" if the instruction
    names no goal, and "ambiguous" if it names several that are neither at
    once nor in order, or that contradict each other.
    """
    if len(instruction) > MAX_LENGTH or NEGATIVE_NUMBER.search(instruction):
        return None, "unknown"
    text = normalise(instruction)
    parts, rest = _find_parts(text)
    corrected = _correct(text, rest)
    return _read(parts if corrected == text else _find_parts(corrected)[0])


def _read(parts: list) -> tuple[str | None, str]:
    """Return the result of `parse_instruction` for the parts of an instruction."""
    if REJECT in parts:
        return None, "refused"
    readings = _plans(parts) if ORDERS & set(parts) else _single_goals(parts)
    if len(readings) == 1:
        return readings.pop(), "understood"
    named = {goal for goal, needed in GOAL_RULES if needed <= set(parts)}
    return None, "ambiguous" if len(readings | named) > 1 else "unknown"


# --- from text to parts ---


def _compile(lexicon: Any, is_english: bool) -> list[tuple[Any, re.Pattern]]:
    """Return the patterns of a lexicon, compiled, with their shorthand written out."""
    shorthand = lexicon.SHORTHAND | VALUE

    def write_out(pattern: str) -> str:
        pattern = re.sub("…|[A-Z]+", lambda match: shorthand.get(match[0], match[0]), pattern)
        if is_english:
            return rf"\b({pattern})\b"
        pattern = re.sub(r"\[([가-힣]+)\]|([가-힣])(?=[?*+])", lambda m: f"({'|'.join(m[1] or m[2])})", pattern)
        return unicodedata.normalize("NFD", pattern)       # 지 is then the beginning of 진, 질, 집
    return [(part, re.compile(write_out(pattern))) for part, pattern in lexicon.PATTERNS]


ENGLISH = _compile(lexicon_en, is_english=True)
KOREAN = _compile(lexicon_ko, is_english=False)


def _find_parts(text: str) -> tuple[list, str]:
    """Return the parts of a normalised text in their order, and the text without them.

    A part with a value is a pair: ("pixels", 12), or ("some", (0, 2)) with the ids of particles.
    """
    text = unicodedata.normalize("NFD", text)
    parts_by_mark = {",": COMMA}
    patterns = ENGLISH if re.search("[a-z]", text) else []
    patterns = patterns + (KOREAN if re.search("[\u1100-\u1112]", text) else [])
    for part, pattern in patterns:
        def mark(match: re.Match, part: Any = part) -> str:
            found = _evaluate(part, match)
            first = FIRST_VALUE if isinstance(found, tuple) else FIRST_MARK
            character = chr(first + len(parts_by_mark))
            parts_by_mark[character] = found
            return character
        text = pattern.sub(mark, text)
    parts = [parts_by_mark[character] for character in text if parts_by_mark.get(character)]
    return parts, text


def _evaluate(part: Any, match: re.Match) -> Any:
    """Return the part that a match stands for, with its value."""
    if isinstance(part, Amount):
        return part.unit, _number(match["n"])
    if isinstance(part, Particles):
        names = re.findall("|".join(COLOURS), unicodedata.normalize("NFC", match[0]))
        ids = tuple(sorted({COLOURS[name] for name in names}))
        return (part.role, ids) if (len(ids) > 1) == (part.role == "some") else REJECT
    return part


def _number(text: str) -> int:
    """Return the number that digits or words stand for."""
    text = unicodedata.normalize("NFC", text)
    if text.isdigit():
        return int(text)
    if text[0] in lexicon_ko.DIGITS + "십백":
        return _korean_number(text)
    return sum(lexicon_en.NUMBERS[word] for word in text.split())


def _korean_number(text: str) -> int:
    """Return a number below 1000, such as 백이십: before 백 and 십 stands a digit, or none for 1."""
    hundreds, tens, ones = re.fullmatch("(?:(.?)백)?(?:(.?)십)?(.?)", text).groups()
    total = lexicon_ko.DIGITS.index(ones) if ones else 0
    for scale, digit in ((100, hundreds), (10, tens)):
        if digit is not None:
            total += scale * (lexicon_ko.DIGITS.index(digit) if digit else 1)
    return total


# --- typing errors ---


def _correct(text: str, rest: str) -> str:
    """Return the normalised text with its typing errors corrected.

    Only words that no pattern matches, those of `rest`, are corrected, and only to a single word of the lexicon.
    """
    for word in set(re.findall(r"[a-z]+", rest)):
        text = re.sub(rf"\b{word}\b", _correct_word(word), text)
    return text


@cache
def _correct_word(word: str) -> str:
    """Return the word of TYPO_TARGETS that is nearest to `word`; `word` itself if none or several are."""
    if word in NOT_TYPOS | TYPO_TARGETS:
        return word
    distances = {right: _edit_distance(word, right) for right in TYPO_TARGETS if _is_typo(word, right)}
    nearest = [right for right, distance in distances.items() if distance == min(distances.values())]
    return nearest[0] if len(nearest) == 1 else word


def _is_typo(word: str, right: str) -> bool:
    """Return whether `word` is `right` with a typing error.

    Words up to 5 letters: two neighbouring letters are swapped, or one is doubled. Of 5 letters one may also be
    missing, but not the first. Longer words: edit distance 1, from 9 letters 2.
    """
    n = len(right)
    if n > 5:
        return abs(len(word) - n) <= 2 and _edit_distance(word, right) <= (2 if n > 8 else 1)
    swapped = {right[:i] + right[i + 1] + right[i] + right[i + 2:] for i in range(n - 1)}
    doubled = {right[:i] + right[i] + right[i:] for i in range(n) if n > 3}
    missing = {right[:i] + right[i + 1:] for i in range(1, n) if n == 5}
    return word in swapped | doubled | missing


def _edit_distance(a: str, b: str) -> int:
    """Return the number of letters to insert, delete, replace or swap with their neighbour (Damerau 1964)."""
    previous, row = [], list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, previous, row = previous, row, [i]
        for j, other in enumerate(b, 1):
            cost = min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
    return row[-1]


# --- from parts to goals ---


def _single_goals(parts: list) -> set[str]:
    """Return the goals of an instruction without words of order: one, unless "and" joins several."""
    joined = {goal for _, first, second in _splits(parts, {JOIN}) for goal in (first, second)}
    return joined or {_clause_goal(parts)} - {None}


def _plans(parts: list) -> set[str]:
    """Return the plans of two goals, at once or in order, that an instruction may ask for."""
    splits = _splits(parts, SPLIT_POINTS)
    pairs = {(first, second) for _, first, second in splits}
    if len(pairs) != 1:
        return {f"{first} ? {second}" for first, second in pairs}
    first, second = pairs.pop()
    contradiction = {first, second, "contradiction"}
    start, end = splits[0][0], splits[-1][0] + 1
    before, between, after = set(parts[:start]), set(parts[start:end]), set(parts[end:])
    is_forward = bool(FIRST in before or between & {SECOND, CAME_FIRST} or CAME_SECOND in after)
    is_backward = bool(SECOND in before or between & {FIRST, CAME_SECOND} or CAME_FIRST in after)
    if AT_ONCE in parts:
        has_order = is_forward or is_backward or IN_ORDER in parts
        is_possible = not has_order and _can_hold_at_once(Goal.parse(first), Goal.parse(second))
        return {f"{first} AND {second}"} if is_possible else contradiction
    if is_forward and is_backward or after & {FIRST, SECOND}:
        return contradiction
    return {f"{second} THEN {first}" if is_backward else f"{first} THEN {second}"}


def _splits(parts: list, points: set[str]) -> list[tuple[int, str, str]]:
    """Return (index, goal before, goal after) of all split points between two goals."""
    indices = [i for i, part in enumerate(parts) if part in points]
    halves = [(i, _clause_goal(parts[:i]), _clause_goal(parts[i + 1:])) for i in indices]
    return [half for half in halves if half[1] and half[2]]


def _clause_goal(parts: list) -> str | None:
    """Return the one goal that the parts of a clause make, or None."""
    values = sorted(part for part in parts if isinstance(part, tuple))
    names = {part for part in parts if isinstance(part, str)} - SPLIT_POINTS
    text = _goal_with_values(values, names) if values else _plain_goal(names)
    try:
        return text and str(parse(text))
    except GoalError:           # an amount out of range
        return None


def _goal_with_values(values: list[tuple], names: set[str]) -> str | None:
    """Return the goal of a clause with amounts or particles, in the goal language and unchecked, or None."""
    match values:
        case [("pixels", n)]:
            goal = _plain_goal(names)
            return f"{goal[:-1]}, distance={n})" if goal in SIDES else None
        case [("degrees" | "more degrees" as unit, n)]:
            names = names | {INCREASE} if unit == "more degrees" else names
            return f"heat(by={n})" if names and names <= {HEAT, INCREASE, UP} else None
        case [("one", (i,))]:
            place = _plain_goal(names - {ONLY_THESE, EDGE, STICK_TOGETHER})
            is_place = place in CORNERS or EDGE in names and place in SIDES
            return f"move_to(id={i}, {BOUNDS[place]})" if is_place else None
        case [("one", (i,)), ("target", (j,))] if i != j:
            is_move = names <= {ONLY_THESE, STICK_TOGETHER, SET, CLUSTER, MEET_UP, ACROSS}
            return f"move_toward({i}, {j})" if is_move else None
        case [("some", ids)]:
            is_cluster = _plain_goal(names - {ONLY_THESE}) == CLUSTER and CENTER not in names
            return f"cluster(ids={list(ids)})" if is_cluster else None
    return None


def _plain_goal(names: Iterable[str]) -> str | None:
    """Return the one goal that accounts for all these parts, or None."""
    names = set(names)
    goals = {goal for goal, needed in GOAL_RULES if needed <= names <= needed | OPTIONAL_PARTS[goal]}
    return goals.pop() if len(goals) == 1 else None


def _can_hold_at_once(a: Goal, b: Goal) -> bool:
    if a.ids and b.ids:
        return not set(a.ids) & set(b.ids)
    kinds = {a.kind, b.kind}
    return kinds in COMPATIBLE_KINDS and (not (a.ids or b.ids) or bool(kinds & {"heat", "cool"}))
