"""Fills the templates of data/templates.jsonl: writes data/goal_commands.jsonl, the corpus of training and evaluation.

    python scripts/build_corpus.py             # after a change of templates.jsonl; data/README.md explains the slots

What a template is filled with follows from its own text alone, so that a new template changes no other row. A row's
split is its template's (train, held_out, new_words), but for goals that training must never see: `composition`, plans
of two kinds of goals that are never combined in training, and `pair`, goals that training sees in the other language
only.
"""
import argparse
import itertools
import json
import random
import re
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from simulator.particles.goals import GOALS, goal_group, parse  # noqa: E402
from simulator.particles.parser import TOGETHER, normalise  # noqa: E402
from simulator.particles.physics import PALETTE  # noqa: E402

SIMPLE = [str(goal) for goal in GOALS]
# words of the slots, English and Korean
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
WORDS = re.compile(r"\w+")
DEGREES, PIXELS = (3, 4, 5, 6), (12, 15, 18, 20, 22, 24)
COLOURS = {"en": [name for name, _, _ in PALETTE],
           "ko": [name.replace("하늘", "하늘색") for _, name, _ in PALETTE]}
IDS = range(len(PALETTE))
FILLS = {"move_one": 8, "move_toward": 8, "cluster_some": 6, "push_distance": 4, "heat_to": 4, "and": 8, "then": 8}
TRAIN_FILLS = {"and": 24, "then": 24}       # of templates for training: how goals are joined is learned from many pairs
# kinds of goals that training never combines, whether at once or in order
HELD_OUT_PAIRS = [{"push", "heat"}, {"cluster", "cool"}, {"spread", "heat"}, {"vibrate", "move_to"}, {"align", "cool"},
         {"push", "align"}]


def slot_fills(kind, language, rng):
    """Goals of a kind in a random order, as (goal, words for the slots)."""
    k = ("en", "ko").index(language)
    any_of = lambda names: rng.choice(names[k]) if isinstance(names[k], tuple) else names[k]
    colour = COLOURS[language]

    def number(n):      # Korean writes degrees in figures
        return NUMBERS[n][k] if rng.random() < 0.3 and (language, kind) != ("ko", "heat_to") else str(n)

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
            table = [(f"move_to(region={place})", at(any_of(names))) for place, names in PLACES.items()]
        case "align":
            table = [(f"align(axis={axis})", {"axis": names[k], "axisly": names[k] + "ly", "row": f"a {names[2]}",
                                              "line": f"a {names[0]} line"}) for axis, names in LINES.items()]
        case "move_one":
            table = [(f"move_to(id={i}, {bounds})", {"color": colour[i]} | at(names[k], "where"))
                     for i in IDS for bounds, names in WHERE.items()]
        case "move_toward":
            table = [(f"move_toward({i}, {j})", {"color": colour[i], "color2": colour[j]})
                     for i, j in itertools.permutations(IDS, 2)]
        case "cluster_some":
            table = [(f"cluster(ids={list(ids)})", {"them": group([colour[i] for i in ids], language)})
                     for n in (2, 3) for ids in itertools.combinations(IDS, n)]
        case _:
            table = [(f"{kind}()", {})]
    return rng.sample(table, len(table))


def at(place, slot="place"):
    """A place with the particles that follow it in Korean: all of them end in a vowel or in ㄹ, ㄱ, ㄴ, ㅌ."""
    batchim = (ord(place[-1]) - 0xAC00) % 28 if "가" <= place[-1] <= "힣" else 0
    return {slot: place, slot + "로": place + ("로" if batchim in (0, 8) else "으로"), slot + "에": place + "에"}


def group(colours, language):
    """Particles of these colours, as one says it."""
    if language == "ko":
        return ", ".join(colours) + " 입자"
    return "the " + " and ".join([", ".join(colours[:-1]), colours[-1]]) + " particles"


def kind_of(goal):
    return goal.partition("(")[0]


def combine_clauses(template, clauses, rng):
    """Pairs of simple goals at once (and) or in order (then), as (goal, sentence)."""
    kind, language, text = template["kind"], template["language"], template["text"]
    spoken_first = min("ab", key=lambda letter: text.index("{" + letter))
    pairs = [(a, b) for a, b in itertools.permutations(SIMPLE, 2)
             if ({kind_of(a), kind_of(b)} in TOGETHER if kind == "and" else not at_the_wall(a, b))]
    for a, b in rng.sample(pairs, len(pairs)):
        slots = {}
        for letter, goal in (("a", a), ("b", b)):
            forms = clause_forms(rng.choice(clauses[language, kind_of(goal)]))
            words = dict(slot_fills(kind_of(goal), language, rng))[goal]
            slots |= {letter + form: fill(render_clause(clause, letter != spoken_first), words)
                      for form, clause in forms.items()}
        first, second = (b, a) if kind == "and" and spoken_first == "b" else (a, b)     # at once: as it is spoken
        instruction = fill(text, slots)
        # "push them right at once" would mean something else
        instruction = re.sub(r"(?<!the )(?<!and )\bright (?!and\b|corner)", "to the right ", instruction)
        yield str(parse(f"{first} {kind.upper()} {second}")), instruction


def render_clause(clause, again):
    """A clause, its "[the dots|them]" said for the first time or again."""
    return re.sub(r"\[(.*?)\|(.*?)\]", lambda names: names[1 + again], clause)


def clause_forms(clause):
    """A clause's forms by the slot's ending; Korean 주세요, 는 follow from 줘, 면서."""
    if clause["language"] == "en":
        return {"": clause["text"]}
    stem = clause["면서"].removesuffix("면서")
    batchim = lambda at: (ord(stem[at]) - 0xAC00) % 28      # 0: none
    if stem[-1] == "으" and batchim(-2):        # 놓으면서: 놓는; 모으면서: 모으는
        stem = stem[:-1]
    elif batchim(-1) == 8:        # 밀면서: 미는
        stem = stem[:-1] + chr(ord(stem[-1]) - 8)
    return {form: clause[form] for form in ("고", "줘", "다음", "면서")} | {
        "주세요": clause["줘"].removesuffix("줘") + "주세요", "는": stem + "는"}


def at_the_wall(a, b):
    """Whether a leaves no way to go for b: to a corner, then on in its direction."""
    corner, way = WORDS.findall(a)[-1], WORDS.findall(b)[-1]
    way = {"up": "top", "down": "bottom"}.get(way, way)
    return kind_of(a) == "move_to" and kind_of(b) == "push" and way in corner.split("_")


def fill(template, words):
    return re.sub(r"\{(\w+)\}", lambda slot: words[slot[1]], template)


def combines_held_out_kinds(goal):
    """Whether a plan combines two kinds that training keeps apart."""
    kinds = {kind_of(str(part)) for part in parse(goal).goals}
    return any(pair <= kinds for pair in HELD_OUT_PAIRS)


def other_language_only(goal, language):
    """Whether training must see a goal, one of single particles, in the other language only: a tenth in each."""
    plan = parse(goal)
    return goal_group(plan) == "per_object" and zlib.crc32(str(plan).encode()) % 10 == ("en", "ko").index(language)


def is_held_out(goal, language):
    """Whether training must not see a goal in this language."""
    return combines_held_out_kinds(goal) or other_language_only(goal, language)


def rows_of(template, clauses):
    """The rows of one template."""
    kind, language, split = template["kind"], template["language"], template["split"]
    rng = random.Random(zlib.crc32(template["text"].encode()))
    row = lambda goal, text, split=split, source="template": {
        "text": text, "language": language, "goal": str(parse(goal)), "split": split, "source": source,
        "template_family": f"{kind}: {template['template_family']}"}
    if "goal" in template:
        return [row(template["goal"], template["text"], source="written")]
    if kind not in ("and", "then"):
        table = [item for item in slot_fills(kind, language, rng) if item[0] != template.get("exclude_goal")]
        if kind not in FILLS:
            source = "template" if "{" in template["text"] else "written"
            return [row(goal, fill(template["text"], words), source=source) for goal, words in table]
        trained = [item for item in table if not other_language_only(item[0], language)]
        rows = [row(goal, fill(template["text"], words)) for goal, words in trained[:FILLS[kind]]]
        if split == "train":
            rows += [row(goal, fill(template["text"], words), "cross_lingual")
                     for goal, words in [item for item in table if item not in trained][:2]]
        return rows
    table = list(combine_clauses(template, clauses, rng))
    count = TRAIN_FILLS[kind] if split == "train" else FILLS[kind]
    rows = [row(goal, text) for goal, text in table if not combines_held_out_kinds(goal)][:count]
    if split == "train":
        rows += [row(goal, text, "compositional") for goal, text in table if combines_held_out_kinds(goal)][:4]
    return rows


def build(templates):
    """All rows, in the order of the templates; of equal sentences the held-out ones stay, else the first."""
    held = {normalise(t["text"]) for t in templates if t["split"] != "train" and t["kind"] != "clause"}
    clauses = {}
    for t in templates:
        if t["kind"] == "clause" and t["split"] == "train" and not held & {
                normalise(render_clause(t.get("text", t.get("줘")), again)) for again in (False, True)}:
            clauses.setdefault((t["language"], t["of"]), []).append(t)
    rows = [row for t in templates if t["kind"] != "clause" for row in rows_of(t, clauses)]
    kept = {}
    for row in sorted(rows, key=lambda row: row["split"] == "train"):       # stable: held-out rows first
        kept.setdefault(re.sub(r"\W", "", normalise(row["text"])), row)
    trained = {(row["language"], row["goal"]) for row in kept.values() if row["split"] == "train"}
    other = {"en": "ko", "ko": "en"}
    chosen = {id(row) for row in kept.values()
              if row["split"] != "cross_lingual" or (other[row["language"]], row["goal"]) in trained}
    return [row for row in rows if id(row) in chosen]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, default=ROOT / "data/templates.jsonl")
    parser.add_argument("--output", type=Path, default=ROOT / "data/goal_commands.jsonl")
    args = parser.parse_args()
    rows = build([json.loads(line) for line in args.templates.read_text(encoding="utf-8").splitlines()])
    args.output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows written to {args.output}")


if __name__ == "__main__":
    main()
