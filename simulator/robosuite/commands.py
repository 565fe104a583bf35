"""Instructions for the robot arm: the corpus (`instructions_by_goal`) and a rule-based parser (`parse_instruction`).

The parser looks an instruction up in the corpus. If it is not there, keyword patterns (regular expressions over
lower-case text) decide: see `parse_by_keywords`.
"""
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from simulator.commands import load_instructions
from simulator.robosuite.tasks import GOALS, GoalError, check_choice

COMMANDS_FILE = Path(__file__).resolve().parents[2] / "data" / "robosuite_commands.jsonl"

TABLE = r"the (table(top)?|surface|bench|ground|desk)"
LIFT = (rf"lift|\brais|pick\b.*\bup|\bpickup|hoist|elevat|(?<!end )\bup(wards?)?\b|off {TABLE}|from the table|"
        r"in(to)? the air|mid-?air|aloft|overhead|skyward|airborne|takeoff|levitat|\bascen|altitude|pluck|\bheft|"
        r"\bheav(e|ing)\b|\bloft|\brise|climb|(above|over) the table$|hold\b.*\bhigh|"
        r"(?<![만힘잠])들[어고기자래려린렸면었]|(?<!만)들 [수준]|(?<!만)드[는세십]|올[려리릴림]|올라[가오와]|쳐들|치켜|"
        r"띄[우울운워]|떠 있|뜬|공중|허공|상승|인양|부양|이륙|거양|픽업|리프트|"
        r"(?<!테이블 )(?<!탁자 )위로|위쪽으로|집어")
PUSH = (r"\bpush|shov|\bslid|nudg|forward|(?<!go )ahead|onward|outward|away from|farther|further|bulldoz|propel|"
        r"thrust|\bshunt|scoot|\bprod|\bskid|\bskat|\bglid|toward the (far|opposite|distal)|"
        rf"\b(along|across|down|out over) {TABLE}|(off|over) to the (far|opposite)|"
        r"(?<!비)밀|떠미|\b미[는시세십]|\b민다|앞으로|앞쪽으로|전방|전진|먼 쪽|멀[리어찌]|떨어[진져]|벌어지|미끄러뜨|"
        r"푸시|저편|저리|건너")
# a part of the bin; MOVE matches only instructions that name none
PLACE = (r"compartment|section|slot|\bpart\b|\bside\b|\bcell|\brow\b|pocket|partition|division|cubby|\bbay\b|corner|"
         r"칸|구획|구역|[앞뒷]줄|[앞뒷]열|[전후]열")
MOVE = (rf"^(?!.*({PLACE})).*(\bmov|transfer|transport|relocat|displac|different|another|else|\bbin\b|next door|"
        r"옮|다른 (곳|데|통|자리|위치)|딴 ?데|상자|옆 ?통|치[워우])")
PUT = (r"\b(put|plac|set|drop|lay|park|rest|stor|stow|tuck|stash|plop|plonk|dump|toss|land|leav|bring|carr|plant|"
       r"lower|deposit|position|deliver|situat|pop)|"
       r"놓|놔|넣|두[어고렴면시]|둬|담[아으]|내려|갖다|가져|보내|보관|세워|배치|이동|이송|운반|적재|격납|투입|전달")
NEAR = (r"\bnear(?!ly)|\bclos(er|est|e to|e by|e side)\b|adjacent(?! bin)|next to|right by|right beside|"
        r"beside (you|it|the (base|robot))|by (the|your|its)( own)? (base|robot|foot|side|pedestal)|"
        r"\b(?<!from )your (own )?(base|foot|nose|pedestal|mount|stand)|(?<!in )front|foremost|anterior|proximal|"
        r"(?<!past the )first row|"
        r"가까[운이]|로봇 쪽|앞쪽|앞 ?칸|앞[줄열]|전열|이편|이쪽|곁|근처|근접|근방|인접|인근|발치|코앞|지척|"
        r"바로 [앞옆]|붙[은어]|안 먼|(네|니|로봇|받침대|베이스|밑동) (옆|앞)(?! (상자|통))")
DESIGNATED = (r"(?<!your )\bown (?!base|nose)|designated|usual|proper|matching|right place|where it belongs|"
              r"제 ?칸|제 이름|지정|제자리|전용|자기 칸|캔 칸|캔 넣는 칸|제집")
FAR = (r"\bfar|fu?rthe(r|st|rmost)\b|distant|\brear|remote|hindmost|outermost|(in|to|at) the (very )?back\b|"
       r"\bback (comp|sect|part|side|row|cell|slot|corner|pocket)|second row|last comp|away from your|"
       r"(?<!안 )먼 |멀[리찍]|뒤[쪽편로에]|뒤 ?칸|뒷|후방|후열|저편|건너|안쪽|저 끝|끝 칸|저쪽|구석|원거리|떨어진")
POLE = (r"(pegs?|posts?|poles?|pins?|rods?|stakes?|sticks?|studs?|shafts?|spindles?|dowels?|columns?|pillars?|masts?|"
        r"uprights?|spikes?|bars?|prongs?)\b")
PEG = (rf"\b(on|onto|over|around|round|to|down|along|with|through|at|into) (\w+[ -]){{0,4}}{POLE}|^peg\b|thread|"
       r"encircl|sheathe|sleev|impal|skewer|(기둥|말뚝|막대|봉|핀|페그|축|꼬챙이|지주) ?(에(?!서)|으?로|위|까지|쪽)|"
       r"끼[우울워]|꽂|꿰|씌|걸[어기자]")
NEXT_TO = "(near|close to|next to|beside)"
DOWN = r"(put|set) it (back|down)|내려놓|내려놔|떨어뜨"


class KeywordPattern(NamedTuple):
    """An instruction for a goal matches all `required` patterns and no `excluded` one."""
    required: tuple[str, ...]
    excluded: tuple[str, ...]


GOAL_PATTERNS = {
    "lift_cube": KeywordPattern((LIFT,), (PUSH, DOWN)),
    "push_cube": KeywordPattern((PUSH,), (LIFT, r"\bback|\bdown into|뒤로|(로봇|내|네) 쪽으로|이쪽")),
    "place_can": KeywordPattern((f"{FAR}|{DESIGNATED}|{MOVE}",), (NEAR, r"out of the (bin|compartment)|꺼내")),
    "place_can_near": KeywordPattern(
        (NEAR, f"{PLACE}|{MOVE}|{PUT}"),
        (FAR, DESIGNATED, "away from", rf"{NEXT_TO} (the|that) (can|tin)", r"[캔통] ?(옆|곁|가까이|근처)")),
    "place_nut": KeywordPattern(
        (PEG,), (rf"(off|from|{NEXT_TO}) (the|its) [\w ]*{POLE}", r"기둥에서|말뚝에서|기둥 (옆|곁)")),
    "lift_nut": KeywordPattern((LIFT,), (PEG, DOWN)),
}
OBJECT_PATTERNS = {
    "cube": r"\bcube|\bblock\b|\bbrick\b|\bdie\b|큐브|블록|정육면체|주사위",
    "can": r"\b(the|a|that|this) can\b|\btin\b|\bsoda\b|캔|깡통|통조림",
    "nut": r"\bnut\b|\bwasher\b|너트|암나사",
}
NEGATION = (r"\b(don't(?! (you|mind))|do not|not|never|stop|instead)\b|지 ?[마말]|지도 |말고|않은|그만|"
            r"안 [들미밀넣옮끼돼된]")
QUESTION_OR_STATEMENT = (
    r"^(is|are|was|were|did|does|has|have|where|which|who|what (is|are|was)|"
    r"why (?!don't)|how (far|much|many|heavy))\b|"
    r"^(i|you|we|it|they) (already )?(?!need)\w+ed\b|\b(was|were) (in|on|\w+ed)\b|"
    r"(?<!수 )(?<!고 )있(어|어요|니|나요|습니까)$|[었았했렸겼웠졌](어(요)?|니|나요|습니까)$|"
    r"어디(에|로|야| ?있|$)|마음에 들|얼마나 들")
OTHER_DIRECTION = (r"\b(left|to the right|backwards?|towards?(?! the (far|opposite|distal|ceiling)))\b|"
                   r"왼쪽|오른쪽|당[겨기]")
OTHER_OBJECT = (
    rf"blue|green|yellow|파란|초록|노란|round (nut|{POLE})|둥근|"
    rf"\b(lift|raise|move|push|put|take|place) (the|your|a) (\w+ )?({POLE}|bolt|screw|arm|hand|gripper|robot|"
    r"table|button|ball|milk|bread|cereal)\b|^(go|move) (forward|away|closer|back)|멀리 가$|"
    r"(팔|손|그리퍼|로봇|기둥|나사|공|우유|빵|시리얼)( 상자)?[을를] (들|올|밀|앞|뒤|먼|멀|가까|다른|옮)")
REJECT_PATTERNS = (NEGATION, QUESTION_OR_STATEMENT, OTHER_DIRECTION, OTHER_OBJECT)


@cache
def instruction_rows(path: str | Path = COMMANDS_FILE) -> list[dict]:
    """Return the rows of an instruction file for these goals. CorpusError names the line of a wrong row."""
    return load_instructions(path, lambda goal: check_choice("goal", goal, GOALS, GoalError))


def instructions_by_goal(split: str = "train", language: str | None = None,
                         extra_files: Iterable[str | Path] = ()) -> dict[str, list[str]]:
    """Return {goal: its instructions} of a split ("train" or "held_out") in one language ("ko" or "en") or both.

    `extra_files`: instruction files to add to the corpus.
    """
    texts = {goal: [] for goal in GOALS}
    for path in (COMMANDS_FILE, *extra_files):
        for row in instruction_rows(path):
            if row["split"] == split and language in (None, row["language"]):
                texts[row["goal"]].append(row["text"])
    return texts


def sample_instruction(instructions: dict[str, list[str]], goal: str, rng: np.random.Generator) -> str:
    """Return one of the goal's instructions, or the goal itself if there are none."""
    texts = instructions.get(goal) or [goal]
    return texts[rng.integers(len(texts))]


def parse_instruction(text: str, goals: Sequence[str]) -> str | None:
    """Return the one of `goals` that an instruction asks for, or None. The corpus decides before the keywords."""
    goal = _goal_by_text().get(normalize_text(text)) or parse_by_keywords(text, goals)
    return goal if goal in goals else None


def parse_by_keywords(text: str, goals: Sequence[str]) -> str | None:
    """Return the one of `goals` whose keywords an instruction contains. None if no goal or several match."""
    text = normalize_text(text)
    if any(re.search(pattern, text) for pattern in REJECT_PATTERNS):
        return None
    objects = [name for name, pattern in OBJECT_PATTERNS.items() if re.search(pattern, text)]
    matching = [goal for goal in goals
                if _names_only_object_of(goal, objects) and _matches(text, GOAL_PATTERNS[goal])]
    return matching[0] if len(matching) == 1 else None


def _names_only_object_of(goal: str, objects: list[str]) -> bool:
    return all(name in goal.split("_") for name in objects)


def _matches(text: str, pattern: KeywordPattern) -> bool:
    return (all(re.search(required, text) for required in pattern.required)
            and not any(re.search(excluded, text) for excluded in pattern.excluded))


@cache
def _goal_by_text() -> dict[str, str]:
    return {normalize_text(row["text"]): row["goal"] for row in instruction_rows()}


def normalize_text(text: str) -> str:
    """Return the text composed (NFC), in lower case, with single spaces and without punctuation at the end."""
    text = unicodedata.normalize("NFC", text).casefold().replace("\u2019", "'")
    return " ".join(text.split()).rstrip(" .!?~…")
