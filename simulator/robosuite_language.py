"""What a robosuite arm is told: the sentences that ship, `sentences_by_goal`, and what others ask, `understand`."""
import re
import unicodedata
from functools import cache

from simulator import language

SENTENCES = language.SENTENCES.with_name("robosuite_commands.jsonl")

LIFT = (r"lift|\brais|pick\b.*\bup|hoist|elevat|(?<!end )\bup(wards?)?\b|off the table|in(to)? the air|mid-air|"
        r"(?<!만)들[어고기자래려린렸면었]|(?<!만)드[는세십]|올[려리릴림]|띄[우울운워]|떠 있|뜬|공중|허공|"
        r"(?<!테이블 )(?<!탁자 )위로|위쪽으로|집어")
PUSH = (r"\bpush|shov|\bslid|nudg|forward|(?<!go )ahead|onward|away from|farther|further|"
        r"(?<!비)밀|떠미|\b미[시십]|앞으로|앞쪽으로|전방|전진|먼 쪽|멀[리어]|떨어[진져]|벌어지")
# where in the bin; for MOVE none is named
PLACE = r"compartment|section|slot|\bpart\b|\bside\b|칸|구획"
MOVE = rf"^(?!.*({PLACE})).*(\bmov|transfer|transport|relocat|different|another|else|\bbin\b|옮|상자)"
NEAR = (r"\bnear|\bclos(er|est|e to)\b|adjacent|next to|right by|by the (base|robot)|(?<!in )front|"
        r"가까[운이]|로봇 쪽|앞쪽|앞 ?칸|이편|이쪽|곁|근처|코앞")
OWN = r"\bown\b|designated|제 칸|지정된"
FAR = r"\bfar|distant|\brear|remote|at the back|\bback (comp|sect|part|side)|먼 |멀리|뒤쪽|뒤 ?칸|저편|건너"
PEG = r"\bpeg|\bpost\b|thread|기둥|말뚝|끼[우울워]|꽂|꿰|씌|걸[어기]"
DOWN = r"(put|set) it (back|down)|내려놓|내려놔|떨어뜨"
# goal: (what a sentence that asks for it says, what it does not say); to place a thing is to pick it up as well
SAYS = {"lift_cube": ((LIFT,), (PUSH, DOWN)),
        "push_cube": ((PUSH,), (LIFT, r"\bback|뒤로")),
        "place_can": ((f"{FAR}|{OWN}|{MOVE}",), (NEAR,)),
        "place_can_near": ((NEAR, f"{PLACE}|{MOVE}"), (FAR, OWN, "away from")),
        "place_nut": ((PEG,), (r"(off|from) (the|its) [\w ]*(peg|post)", r"기둥에서|말뚝에서")),
        "lift_nut": ((LIFT,), (PEG, DOWN))}
THINGS = {"cube": r"\bcube|\bblock\b|큐브|블록", "can": r"\b(the|a|that|this) can\b|\btin\b|캔|깡통",
          "nut": r"\bnut\b|너트"}
# what no goal is asked for with: what not to do, how things are, other ways and other things
OTHERWISE = (r"\b(don't(?! (you|mind))|do not|not|never|stop|instead)\b|지 ?[마말]|말고|않은|안 [들미밀넣옮끼]|"
             r"^(is|are|was|were|did|does|has|have|where|who|why (?!don't)|how (far|much|many))\b|"
             r"^(i|you|we|it|they) (?!need)\w+ed\b|(?<!수 )(?<!고 )있(어|어요|니|나요|습니까)$|"
             r"[었았했렸겼웠]어(요)?$|어디|"
             r"\b(left|to the right|backwards?|towards?)\b|왼쪽|오른쪽|당[겨기]|"
             r"blue|green|yellow|파란|초록|노란|round (peg|post|nut)|둥근")


@cache
def rows(path=SENTENCES):
    """The rows of a file of sentences for these goals; SentencesError names the line of a bad one."""
    return language.load_sentences(path, _check_goal)


def sentences_by_goal(split="train", language=None, more=()):
    """{goal: its sentences} of a split ("train" or "held_out"), in one language ("ko" or "en") or both; of the files
    `more` too."""
    known = [row for path in (SENTENCES, *more) for row in rows(path)]
    return {goal: [row["text"] for row in known if row["goal"] == goal and row["split"] == split
                   and language in (None, row["language"])] for goal in SAYS}


def understand(text, goals):
    """The one of `goals` that a sentence asks for, or None: a sentence that ships, else by its words."""
    goal = _by_text().get(_plain(text)) or understand_words(text, goals)
    return goal if goal in goals else None


def understand_words(text, goals):
    """As `understand`, by key words alone; None where none occur, or contradictory ones."""
    text = _plain(text)
    said = lambda pattern: re.search(pattern, text) is not None
    if said(OTHERWISE):
        return None
    things = [thing for thing, pattern in THINGS.items() if said(pattern)]
    asked = [goal for goal in goals if all(thing in goal.split("_") for thing in things)
             and all(map(said, SAYS[goal][0])) and not any(map(said, SAYS[goal][1]))]
    return asked[0] if len(asked) == 1 else None


@cache
def _by_text():
    return {_plain(row["text"]): row["goal"] for row in rows()}


def _plain(text):
    """Composed (NFC), lower case, single spaces, no punctuation at the end."""
    text = unicodedata.normalize("NFC", text).casefold().replace("\u2019", "'")
    return " ".join(text.split()).rstrip(" .!?~…")


def _check_goal(goal):
    if goal not in SAYS:
        raise ValueError(f"goal must be {' or '.join(SAYS)}, not {goal!r}")
