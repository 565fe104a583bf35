"""Fill the templates of data/templates.jsonl and write data/goal_commands.jsonl, the corpus of instructions.

    python scripts/build_corpus.py             # after a change of templates.jsonl; data/README.md explains the slots

The fills of a template follow from its own text alone, so a new template changes no other row. A row has the split of
its template (train, held_out, unseen_words). Goals that training must never see get one of two other splits.
`compositional` rows are plans of two kinds of goals that training never combines. `cross_lingual` rows are goals that
training sees in the other language only.
"""
import argparse
import itertools
import json
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from simulator.particles.goals import GOALS, goal_group, parse
from simulator.particles.parser import COMPATIBLE_KINDS, normalise
from simulator.particles.physics import PALETTE

ROOT = Path(__file__).resolve().parent.parent
SIMPLE = [str(goal) for goal in GOALS]
# Words of the slots, (English, Korean) or (all English ones, all Korean ones).
SIDES = {"left": ("left", "왼쪽"), "right": ("right", "오른쪽"), "up": ("up", "위쪽"), "down": ("down", "아래쪽")}
TO_SIDE = {"left": "to the left", "right": "to the right", "up": "upward", "down": "downward"}
PLACES = {"center": (("the center", "the middle"), ("가운데", "중앙")),
          "top_left": (("the top left corner", "the upper left corner"), ("왼쪽 위 구석", "왼쪽 위 모서리")),
          "top_right": (("the top right corner", "the upper right corner"), ("오른쪽 위 구석", "오른쪽 위 모서리")),
          "bottom_left": (("the bottom left corner", "the lower left corner"), ("왼쪽 아래 구석", "왼쪽 아래 모서리")),
          "bottom_right": (("the bottom right corner", "the lower right corner"),
                           ("오른쪽 아래 구석", "오른쪽 아래 모서리"))}
LINES = {"horizontal": ("horizontal", "가로", "row"), "vertical": ("vertical", "세로", "column")}
WHERE = {"x<16": ("the left edge", "왼쪽 끝"), "x>48": ("the right edge", "오른쪽 끝"),
         "y<16": ("the top edge", "위쪽 끝"), "y>48": ("the bottom edge", "아래쪽 끝"),
         "x<16, y<16": ("the top left corner", "왼쪽 위 구석"),
         "x>48, y<16": ("the top right corner", "오른쪽 위 구석"),
         "x<16, y>48": ("the bottom left corner", "왼쪽 아래 구석"),
         "x>48, y>48": ("the bottom right corner", "오른쪽 아래 구석")}
NUMBERS = {3: ("three", "삼"), 4: ("four", "사"), 5: ("five", "오"), 6: ("six", "육"),
           12: ("twelve", "십이"), 15: ("fifteen", "십오"), 18: ("eighteen", "십팔"),
           20: ("twenty", "이십"), 22: ("twenty two", "이십이"), 24: ("twenty four", "이십사")}
DEGREES, PIXELS = (3, 4, 5, 6), (12, 15, 18, 20, 22, 24)
COLOURS = {"en": [name for name, _, _ in PALETTE],
           "ko": [name.replace("하늘", "하늘색") for _, name, _ in PALETTE]}
IDS = range(len(PALETTE))
LANGUAGES = ("en", "ko")
# Rows of a template, by kind. A kind that is not here gets all its goals.
FILLS = {"move_one": 8, "move_toward": 8, "cluster_some": 6, "push_distance": 4, "heat_to": 4, "and": 8, "then": 8}
TRAIN_FILLS = {"and": 24, "then": 24}       # of training templates: joining goals is learned from many pairs
CROSS_LINGUAL_FILLS, COMPOSITIONAL_FILLS = 2, 4
# Kinds of goals that training never combines, neither at once nor in order.
HELD_OUT_PAIRS = [{"push", "heat"}, {"cluster", "cool"}, {"spread", "heat"}, {"vibrate", "move_to"}, {"align", "cool"},
                  {"push", "align"}]


# --- slots --------------------------------------------------------------------------------------------------------
def slot_fills(kind: str, language: str, rng: random.Random) -> list[tuple[str, dict[str, str]]]:
    """Return the goals of a kind in random order, as (goal, {slot: words})."""
    k = LANGUAGES.index(language)
    colour = COLOURS[language]

    def number(n: int) -> str:
        in_words = rng.random() < 0.3 and (language, kind) != ("ko", "heat_to")     # Korean writes degrees in digits
        return NUMBERS[n][k] if in_words else str(n)

    match kind:
        case "push":
            table = [(f"push(direction={side})", {"side": names[k], "toside": TO_SIDE[side]})
                     for side, names in SIDES.items()]
        case "push_distance":
            table = [(f"push(direction={side}, distance={n})", {"side": names[k], "toside": TO_SIDE[side],
                                                              "n": number(n)})
                     for side, names in SIDES.items() for n in PIXELS]
        case "heat_to":
            table = [(f"heat(by={n})", {"n": number(n)}) for n in DEGREES]
        case "move_to":
            table = [(f"move_to(region={place})", place_slots(rng.choice(names[k]))) for place, names in PLACES.items()]
        case "align":
            table = [(f"align(axis={axis})", {"axis": names[k], "axisly": names[k] + "ly", "row": f"a {names[2]}",
                                              "line": f"a {names[0]} line"}) for axis, names in LINES.items()]
        case "move_one":
            table = [(f"move_to(id={i}, {bounds})", {"color": colour[i]} | place_slots(names[k], "where"))
                     for i in IDS for bounds, names in WHERE.items()]
        case "move_toward":
            table = [(f"move_toward({i}, {j})", {"color": colour[i], "color2": colour[j]})
                     for i, j in itertools.permutations(IDS, 2)]
        case "cluster_some":
            table = [(f"cluster(ids={list(ids)})", {"them": join_colours([colour[i] for i in ids], language)})
                     for n in (2, 3) for ids in itertools.combinations(IDS, n)]
        case _:
            table = [(f"{kind}()", {})]
    return rng.sample(table, len(table))


def place_slots(place: str, slot: str = "place") -> dict[str, str]:
    """Return the slots of a place: alone and with the Korean particles 로 and 에."""
    last = place[-1]
    ro = "로" if not "가" <= last <= "힣" or final_consonant(last) in (0, 8) else "으로"       # 0: none, 8: ㄹ
    return {slot: place, slot + "로": place + ro, slot + "에": place + "에"}


def final_consonant(syllable: str) -> int:
    """Return the number of a Hangul syllable's final consonant; 0 if there is none."""
    return (ord(syllable) - 0xAC00) % 28


def join_colours(colours: list[str], language: str) -> str:
    """Return the name of several particles."""
    if language == "ko":
        return ", ".join(colours) + " 입자"
    return "the " + " and ".join([", ".join(colours[:-1]), colours[-1]]) + " particles"


def fill(template: str, words: dict[str, str]) -> str:
    """Return a template with its slots filled."""
    return re.sub(r"\{(\w+)\}", lambda slot: words[slot[1]], template)


# --- two goals in one instruction -----------------------------------------------------------------------------------
def combine_clauses(template: dict, clauses: dict, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (goal, instruction) of pairs of simple goals, at once (kind "and") or in order (kind "then").

    `clauses` maps (language, kind) to clause templates.
    """
    kind, language, text = template["kind"], template["language"], template["text"]
    first_letter = min("ab", key=lambda letter: text.index("{" + letter))
    pairs = [(a, b) for a, b in itertools.permutations(SIMPLE, 2)
             if ({kind_of(a), kind_of(b)} in COMPATIBLE_KINDS if kind == "and" else not ends_at_wall(a, b))]
    for a, b in rng.sample(pairs, len(pairs)):
        slots = {}
        for letter, goal in (("a", a), ("b", b)):
            forms = clause_forms(rng.choice(clauses[language, kind_of(goal)]))
            words = dict(slot_fills(kind_of(goal), language, rng))[goal]
            slots |= {letter + form: fill(render_clause(clause, letter != first_letter), words)
                      for form, clause in forms.items()}
        # goals at once are written in the order in which they are said
        first, second = (b, a) if kind == "and" and first_letter == "b" else (a, b)
        instruction = fill(text, slots)
        # "push them right at once" would have another meaning
        instruction = re.sub(r"(?<!the )(?<!and )\bright (?!and\b|corner)", "to the right ", instruction)
        yield str(parse(f"{first} {kind.upper()} {second}")), instruction


def render_clause(clause: str, again: bool) -> str:
    """Return a clause with each "[the dots|them]" resolved: the second form if the object was named before."""
    return re.sub(r"\[(.*?)\|(.*?)\]", lambda names: names[1 + again], clause)


def clause_forms(clause: dict) -> dict[str, str]:
    """Return the forms of a clause by the ending of the slot. The Korean 주세요 and 는 follow from 줘 and 면서."""
    if clause["language"] == "en":
        return {"": clause["text"]}
    stem = clause["면서"].removesuffix("면서")
    if stem[-1] == "으" and final_consonant(stem[-2]):      # 놓으면서: 놓는; 모으면서: 모으는
        stem = stem[:-1]
    elif final_consonant(stem[-1]) == 8:                    # ㄹ is dropped, 밀면서: 미는
        stem = stem[:-1] + chr(ord(stem[-1]) - 8)
    forms = {form: clause[form] for form in ("고", "줘", "다음", "면서")}
    return forms | {"주세요": clause["줘"].removesuffix("줘") + "주세요", "는": stem + "는"}


def ends_at_wall(a: str, b: str) -> bool:
    """Return whether goal a ends at the wall that goal b pushes towards, as in: to a corner, then in its direction."""
    if kind_of(a) != "move_to" or kind_of(b) != "push":
        return False
    corner, direction = re.findall(r"\w+", a)[-1], re.findall(r"\w+", b)[-1]
    return {"up": "top", "down": "bottom"}.get(direction, direction) in corner.split("_")


# --- goals that training must not see -------------------------------------------------------------------------------
def kind_of(goal: str) -> str:
    """Return the kind of a simple goal: push of push(direction=left)."""
    return goal.partition("(")[0]


def combines_held_out_kinds(goal: str) -> bool:
    """Return whether a plan combines two kinds of HELD_OUT_PAIRS."""
    kinds = {kind_of(str(part)) for part in parse(goal).goals}
    return any(pair <= kinds for pair in HELD_OUT_PAIRS)


def other_language_only(goal: str, language: str) -> bool:
    """Return whether training must see a goal in the other language only: a tenth of the per-object goals in each."""
    plan = parse(goal)
    return goal_group(plan) == "per_object" and zlib.crc32(str(plan).encode()) % 10 == LANGUAGES.index(language)


def is_held_out(goal: str, language: str) -> bool:
    """Return whether training must not see a goal in this language."""
    return combines_held_out_kinds(goal) or other_language_only(goal, language)


# --- rows -----------------------------------------------------------------------------------------------------------
def make_row(template: dict, goal: str, text: str, split: str | None = None, source: str = "template") -> dict:
    """Return a row of the corpus; its split is the template's unless given."""
    return {"text": text, "language": template["language"], "goal": str(parse(goal)),
            "split": split or template["split"], "source": source,
            "template_family": f"{template['kind']}: {template['template_family']}"}


def rows_of(template: dict, clauses: dict) -> list[dict]:
    """Return the rows of one template."""
    kind, language, text = template["kind"], template["language"], template["text"]
    rng = random.Random(zlib.crc32(text.encode()))
    if "goal" in template:
        return [make_row(template, template["goal"], text, source="written")]
    if kind in ("and", "then"):
        return rows_of_pairs(template, list(combine_clauses(template, clauses, rng)))
    table = [(goal, fill(text, words)) for goal, words in slot_fills(kind, language, rng)
             if goal != template.get("exclude_goal")]
    if kind not in FILLS:
        source = "template" if "{" in text else "written"
        return [make_row(template, *item, source=source) for item in table]
    trained = [item for item in table if not other_language_only(item[0], language)]
    rows = [make_row(template, *item) for item in trained[:FILLS[kind]]]
    if template["split"] == "train":
        held_out = [item for item in table if item not in trained]
        rows += [make_row(template, *item, "cross_lingual") for item in held_out[:CROSS_LINGUAL_FILLS]]
    return rows


def rows_of_pairs(template: dict, table: list[tuple[str, str]]) -> list[dict]:
    """Return the rows of a template that joins two goals; `table` has (goal, instruction)."""
    is_train = template["split"] == "train"
    count = (TRAIN_FILLS if is_train else FILLS)[template["kind"]]
    held_out = [item for item in table if combines_held_out_kinds(item[0])]
    rows = [make_row(template, *item) for item in table if not combines_held_out_kinds(item[0])][:count]
    if is_train:
        rows += [make_row(template, *item, "compositional") for item in held_out[:COMPOSITIONAL_FILLS]]
    return rows


def training_clauses(templates: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Return the clause templates by (language, kind of goal), without those whose text is a held-out instruction."""
    held_out = {normalise(t["text"]) for t in templates if t["split"] != "train" and t["kind"] != "clause"}
    clauses = {}
    for template in templates:
        if template["kind"] == "clause" and template["split"] == "train":
            text = template.get("text", template.get("줘"))
            if not held_out & {normalise(render_clause(text, again)) for again in (False, True)}:
                clauses.setdefault((template["language"], template["of"]), []).append(template)
    return clauses


def build(templates: list[dict]) -> list[dict]:
    """Return all rows in the order of the templates. Of equal instructions a held-out one is kept, else the first."""
    clauses = training_clauses(templates)
    rows = [row for t in templates if t["kind"] != "clause" for row in rows_of(t, clauses)]
    kept = {}
    for row in sorted(rows, key=lambda row: row["split"] == "train"):       # stable sort: held-out rows come first
        kept.setdefault(re.sub(r"\W", "", normalise(row["text"])), row)
    trained = {(row["language"], row["goal"]) for row in kept.values() if row["split"] == "train"}
    other = {"en": "ko", "ko": "en"}
    chosen = {id(row) for row in kept.values()
              if row["split"] != "cross_lingual" or (other[row["language"]], row["goal"]) in trained}
    return [row for row in rows if id(row) in chosen]


def main() -> None:
    """Read the templates and write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, default=ROOT / "data/templates.jsonl", help="templates to fill")
    parser.add_argument("--output", type=Path, default=ROOT / "data/goal_commands.jsonl", help="corpus to write")
    args = parser.parse_args()
    rows = build([json.loads(line) for line in args.templates.read_text(encoding="utf-8").splitlines()])
    args.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows written to {args.output}")


if __name__ == "__main__":
    main()
