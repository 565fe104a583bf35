"""The instruction corpus of the robot arm and its rule-based parser."""
import itertools
import json
import re
import unicodedata
from collections import Counter

import pytest

from simulator.commands import ALLOWED_CHARS
from simulator.robosuite.commands import (
    GOAL_PATTERNS,
    instruction_rows,
    instructions_by_goal,
    parse_by_keywords,
    parse_instruction,
)
from simulator.robosuite.tasks import TASKS

SCENE = {goal: task.goals for task in TASKS.values() for goal in task.goals}


def test_every_goal_has_instructions_in_both_languages():
    assert set(GOAL_PATTERNS) == set(SCENE)
    counts = Counter((row["goal"], row["language"], row["split"]) for row in instruction_rows())
    for goal, language in itertools.product(SCENE, ("ko", "en")):
        assert 250 <= counts[goal, language, "train"] <= 260 and counts[goal, language, "held_out"] == 15
    for split, total in ("train", 3103), ("held_out", 180):
        assert sum(map(len, instructions_by_goal(split).values())) == total
        either = [instructions_by_goal(split, language)["lift_nut"] for language in ("ko", "en")]
        assert sorted(sum(either, [])) == sorted(instructions_by_goal(split)["lift_nut"])


def test_instructions_are_unique_up_to_case_spaces_and_punctuation():
    counts = Counter(re.sub(r"[\W_]", "", row["text"].casefold()) for row in instruction_rows())
    assert [text for text, count in counts.items() if count > 1] == []


def test_template_families_of_the_splits_are_disjoint():
    for goal in SCENE:
        for language in ("ko", "en"):
            families = {"train": set(), "held_out": set()}
            for row in instruction_rows():
                if (row["goal"], row["language"]) == (goal, language):
                    families[row["split"]].add(row["template_family"])
            assert len(families["train"]) >= 8 and len(families["held_out"]) >= 3
            assert families["train"].isdisjoint(families["held_out"])


def test_instructions_match_their_language_and_the_allowed_characters():
    for row in instruction_rows():
        assert bool(re.search("[가-힣]", row["text"])) == (row["language"] == "ko"), row["text"]
        assert row["text"] == unicodedata.normalize("NFC", row["text"]).strip()
        assert set(row["text"]) <= ALLOWED_CHARS and len(row["text"]) <= 500


@pytest.mark.parametrize("text, goal", [
    ("캔을 집어서 옮겨줘", "place_can"), ("Pick up the can and place it in a different location.", "place_can"),
    ("캔을 먼 칸에 넣어줘", "place_can"), ("캔을 가까운 칸에 넣어줘", "place_can_near"),
])
def test_fixed_instructions_are_in_the_training_split(text, goal):
    assert text in instructions_by_goal()[goal]


@pytest.mark.parametrize("change, message", [
    ({"goal": "push()"}, "unknown goal .*did you mean push_cube"), ({"language": "fr"}, "language must be"),
    ({"text": ""}, "text must be"), ({"template_family": 3}, "template_family must be"),
])
def test_a_malformed_row_is_one_line_with_its_number(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    first, second = instruction_rows()[:2]
    path.write_text("\n".join(json.dumps(row) for row in (first, second | change)), encoding="utf-8")
    with pytest.raises(ValueError, match=f"line 2: {message}") as error:
        instruction_rows(path)
    assert "\n" not in str(error.value)


def test_every_corpus_instruction_is_parsed_in_any_case_spacing_and_ending():
    for row in instruction_rows():
        typed = "  " + unicodedata.normalize("NFD", row["text"].rstrip(".?").upper().replace(" ", "  ")) + "!! "
        assert parse_instruction(typed, SCENE[row["goal"]]) == parse_instruction(typed, tuple(SCENE)) == row["goal"]
        assert parse_instruction(typed, [goal for goal in SCENE if goal != row["goal"]]) is None


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_keywords_alone_parse_nine_in_ten_and_none_wrongly(split):
    for language in ("ko", "en"):
        pairs = [(text, goal) for goal, texts in instructions_by_goal(split, language).items() for text in texts]
        answers = [parse_by_keywords(text, SCENE[goal]) for text, goal in pairs]
        wrong = [(text, answer) for (text, goal), answer in zip(pairs, answers, strict=True)
                 if answer not in (None, goal)]
        assert wrong == []
        missed = [text for (text, _), answer in zip(pairs, answers, strict=True) if answer is None]
        assert len(missed) <= 0.1 * len(pairs), missed


@pytest.mark.parametrize("text, goal", [
    ("why don't you lift that little cube?", "lift_cube"), ("큐브 조금만 들어 볼까", "lift_cube"),
    ("give it a shove", "push_cube"), ("블록을 테이블 위로 쭉 밀어", "push_cube"),
    ("lift the can and put it in the far compartment", "place_can"), ("캔을 다른 상자로 옮겨 놔", "place_can"),
    ("go ahead and put it into the bin", "place_can"),
    ("the can goes into the compartment nearest you", "place_can_near"), ("캔 가까운 쪽으로 옮겨", "place_can_near"),
    ("lift the nut and put it on the peg", "place_nut"), ("너트를 들어서 기둥에 끼워", "place_nut"),
    ("ease the block along the table, will you", "push_cube"), ("캔을 네 곁에 놔", "place_can_near"),
    ("drop the soda by your foot", "place_can_near"), ("캔은 맨 뒷줄에 놓자", "place_can"),
    ("slip the washer over the square rod", "place_nut"), ("너트를 네모난 봉에 얹어", "place_nut"),
    ("get the nut higher than the pegs, up in the air", "lift_nut"),
    ("put the soda can where it belongs", "place_can"),
    ("would you mind raising the nut", "lift_nut"), ("너트를 번쩍 들어라", "lift_nut"),
])
def test_free_instructions(text, goal):
    assert parse_instruction(text, SCENE[goal]) == goal


@pytest.mark.parametrize("text, goal", [
    # no goal, or another one
    ("", "lift_cube"), ("hello", "place_can"), ("move the cube", "lift_cube"), ("큐브를 예쁘게 만들어", "lift_cube"),
    ("push the cube to the left", "push_cube"), ("push the cube back", "push_cube"), ("큐브를 당겨", "push_cube"),
    ("lift the can", "place_can"), ("캔을 들어 올려", "place_can"), ("put the can in a compartment", "place_can"),
    ("put the can back where it was", "place_can"),
    ("bring your hand close to the can", "place_can_near"), ("손을 캔 가까이 가져가", "place_can_near"),
    ("leave the can where it is", "place_can_near"),
    ("put the nut on the round peg", "place_nut"), ("put the nut on the round pole", "place_nut"),
    ("put the nut next to the square peg", "place_nut"), ("너트를 기둥 옆에 놓아", "place_nut"),
    ("take the nut off the square peg", "place_nut"), ("lift the blue cube", "lift_cube"),
    ("lift the cube, then put it down", "lift_cube"),
    # another task's object
    ("lift the can", "lift_cube"), ("너트를 들어 올려 봐", "lift_cube"),
    ("put the cube in the far compartment", "place_can"),
    # contradictory
    ("lift the cube and push it forward", "lift_cube"), ("큐브를 들어서 앞으로 밀어", "push_cube"),
    ("put the can in the near compartment, or the far one", "place_can"), ("캔을 가까운 칸이나 먼 칸에", "place_can"),
    ("move the can away from the near compartment", "place_can"),
    # negations, questions and statements
    ("don't lift the cube", "lift_cube"), ("큐브를 밀지 마", "push_cube"), ("캔을 멀지 않은 칸에 넣어", "place_can"),
    ("not in the near compartment", "place_can"), ("is the can in the far compartment?", "place_can"),
    ("캔이 먼 칸에 있어?", "place_can"),
    ("큐브 들지도 밀지도 마", "push_cube"), ("그만 밀어", "push_cube"), ("큐브를 로봇 쪽으로 밀어", "push_cube"),
    ("take the can out of the bin", "place_can"), ("which compartment is near the robot?", "place_can_near"),
    ("how heavy is the cube?", "lift_cube"), ("너트가 기둥에 끼워졌어?", "place_nut"), ("힘들어", "lift_cube"),
    ("you already pushed the cube", "push_cube"), ("the can was in the far bin", "place_can"),
    # other objects, and the arm itself
    ("lift the peg", "lift_nut"), ("나사를 들어", "lift_nut"), ("우유를 먼 칸에 넣어", "place_can"),
    ("move the arm forward", "push_cube"), ("go forward", "push_cube"), ("팔을 들어", "lift_cube"),
    ("I pushed the cube forward", "push_cube"), ("너트를 기둥에 걸었어", "place_nut"),
])
def test_unclear_instructions_get_no_goal(text, goal):
    assert parse_instruction(text, SCENE[goal]) is None
