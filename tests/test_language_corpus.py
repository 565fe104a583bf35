"""The shipped instructions: splits, languages, spelling, and errors of malformed rows."""
import json
import re
import unicodedata
from collections import Counter

import pytest
from language_helpers import ROWS

from scripts.build_corpus import HELD_OUT_PAIRS, build
from simulator.particles.commands import COMMANDS_FILE, load_instructions
from simulator.particles.goals import parse
from simulator.particles.parser import normalise

TEMPLATES = [json.loads(line) for line in (COMMANDS_FILE.parent / "templates.jsonl").read_text("utf-8").splitlines()]
GOAL_SYNTAX = [template for template in TEMPLATES if template["kind"] != "clause"]
FILLED = ("왼쪽", "오른쪽", "위쪽", "아래쪽", "가운데", "중앙", "구석", "모서리", "끝", "입자", "공", "점", "가로",
          "세로")
TRAIN = {row["text"]: row["goal"] for row in ROWS if row["split"] == "train"}


def key(text):
    """Return the instruction without case, punctuation and spaces."""
    return re.sub(r"[\W_]", "", text.casefold())


def test_the_corpus_is_what_the_templates_make():
    assert build(TEMPLATES) == ROWS


def test_every_kind_has_60_templates_in_each_language_and_a_fifth_of_their_families_held_out():
    counts, families = Counter(), {}
    for template in GOAL_SYNTAX:
        kind = template["kind"], template["language"]
        counts[kind] += 1
        families.setdefault(kind, {}).setdefault(template["split"] == "train", set()).add(template["template_family"])
    assert {kind: count for kind, count in counts.items() if count < 60} == {}
    assert len(counts) == 30
    for kind, split in families.items():
        assert split[True].isdisjoint(split[False]), kind
        assert len(split[False]) >= (len(split[True]) + len(split[False])) / 5, kind


def test_no_instruction_occurs_twice():
    assert [text for text, count in Counter(key(row["text"]) for row in ROWS).items() if count > 1] == []
    assert [text for text, count in Counter(key(normalise(row["text"])) for row in ROWS).items() if count > 1] == []


def test_training_shows_nothing_of_the_held_out_families():
    families, texts = {}, {}
    for row in ROWS:
        held = row["split"] in ("held_out", "unseen_words")
        families.setdefault(held, set()).add((row["language"], row["template_family"]))
        if held or row["split"] == "train":
            texts.setdefault(held, set()).add(key(normalise(row["text"])))
    assert families[True].isdisjoint(families[False])
    assert texts[True].isdisjoint(texts[False])


def test_training_never_combines_the_kinds_of_the_split_composition():
    def combined(split):
        return {frozenset(goal.kind for goal in parse(row["goal"]).goals) for row in ROWS
                if row["split"] == split and row["template_family"].startswith(("and:", "then:"))}
    assert combined("compositional") == set(map(frozenset, HELD_OUT_PAIRS))
    assert combined("compositional").isdisjoint(combined("train") | combined("held_out"))


def test_training_sees_the_goals_of_the_split_pair_in_the_other_language_only():
    goals = {(split, language): {row["goal"] for row in ROWS if (row["split"], row["language"]) == (split, language)}
             for split in ("train", "cross_lingual") for language in ("en", "ko")}
    for language, other in (("en", "ko"), ("ko", "en")):
        cross_lingual = goals["cross_lingual", language]
        assert cross_lingual and cross_lingual <= goals["train", other] - goals["train", language]


def test_goals_are_written_in_one_way():
    for goal in {row["goal"] for row in ROWS}:
        assert str(parse(goal)) == goal


def test_korean_particles_fit_the_words_before_them():
    """Of the pairs, the first follows a consonant (은/는: 입자는, 공은), 로 also follows ㄹ."""
    wrong = []
    for row in ROWS:
        pattern = rf"({'|'.join(FILLED)})(으로|로|은|는|이|가|을|를|과|와)(?![가-힣])"
        for word, particle in re.findall(pattern, row["text"]):
            final = (ord(word[-1]) - 0xAC00) % 28
            if particle in ("으로", "로"):
                fits = (particle == "로") == (final in (0, 8))
            else:
                fits = (particle in "은이을과") == (final > 0)
            wrong += [] if fits else [row["text"]]
    assert wrong == []


def test_instructions_are_in_their_language():
    for row in ROWS:
        assert bool(re.search("[가-힣]", row["text"])) == (row["language"] == "ko"), row["text"]
        assert row["text"] == unicodedata.normalize("NFC", row["text"]).strip()


@pytest.mark.parametrize("text, goal", [
    ("입자들을 왼쪽으로 이동시켜", "push(direction=left)"), ("move left", "push(direction=left)"),
    ("입자들을 오른쪽으로", "push(direction=right)"), ("push up", "push(direction=up)"),
    ("입자들을 모아줘", "cluster()"), ("가운데로 모아", "cluster()"), ("cluster together", "cluster()"),
    ("group particles", "cluster()"), ("scatter", "spread()"), ("흩어지게 해", "spread()"),
    ("spread apart", "spread()"), ("heat up", "heat()"), ("가열해", "heat()"),
    ("make it vibrate", "vibrate()"), ("중앙으로", "move_to(region=center)"),
])
def test_the_examples_of_the_spec_are_trained_on(text, goal):
    assert TRAIN[text] == goal


@pytest.mark.parametrize("change, message", [
    ({"language": "fr"}, "language must be ko or en, not 'fr'"), ({"split": "test"}, "split must be"),
    ({"text": " "}, "text must be"), ({"goal": 3}, "goal must be"), ({"goal": "left"}, "cannot read the goal 'left'"),
    ({"extra": "1"}, "expected an object with text, language"),
])
def test_a_malformed_row_is_one_line_with_its_number(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (ROWS[0], ROWS[1] | change)), encoding="utf-8")
    with pytest.raises(ValueError, match=f"line 2: {re.escape(message)}") as error:
        load_instructions(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", [b'{"text": ', b"[1, 2]", b"\xff\xfe"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(COMMANDS_FILE.read_bytes().splitlines()[0] + b"\n\n" + line)
    with pytest.raises(ValueError, match="line 3: "):
        load_instructions(path)
