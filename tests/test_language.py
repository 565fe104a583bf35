"""The sentences that ship, the reader that scores free ones, and the font that writes them."""
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from PIL import ImageFont

from simulator.language import GOALS, SENTENCES, load_sentences, read_goal

ROWS = load_sentences()
TRAIN = {row["text"]: row["goal"] for row in ROWS if row["split"] == "train"}
FONT = Path(__file__).resolve().parent.parent / "data" / "fonts" / "FlexibleWorldSansKR-Regular.ttf"


def key(text):
    """The sentence without case, punctuation and spaces."""
    return re.sub(r"[\W_]", "", text.casefold())


def words(text):
    return set(re.findall(r"[\w']+", text.casefold()))


# The sentences


def test_every_goal_has_20_train_and_6_held_out_sentences_in_each_language():
    counts = Counter((row["goal"], row["language"], row["split"]) for row in ROWS)
    expected = {"train": 20, "held_out": 6}
    assert counts == {(goal, language, split): expected[split]
                      for goal in GOALS for language in ("ko", "en") for split in expected}
    assert len(GOALS) == 16 and len(ROWS) == 832


def test_no_sentence_occurs_twice():
    assert [text for text, count in Counter(key(row["text"]) for row in ROWS).items() if count > 1] == []


def test_held_out_families_are_not_in_train():
    families = {split: {(row["language"], row["family"]) for row in ROWS if row["split"] == split}
                for split in ("train", "held_out")}
    assert families["train"].isdisjoint(families["held_out"])


def test_held_out_sentences_use_mostly_words_known_from_their_goal():
    known = {}
    for row in ROWS:
        if row["split"] == "train":
            known.setdefault((row["goal"], row["language"]), set()).update(words(row["text"]))
    for row in ROWS:
        ours = words(row["text"])
        assert len(ours & known[row["goal"], row["language"]]) >= 0.5 * len(ours), row["text"]


def test_sentences_are_in_the_language_they_say():
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
    ({"text": " "}, "text must be"), ({"goal": 3}, "goal must be"), ({"goal": "left"}, "goal must look like"),
    ({"extra": "1"}, "expected an object with text, language"),
])
def test_a_malformed_row_is_one_line_with_its_number(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (ROWS[0], ROWS[1] | change)), encoding="utf-8")
    with pytest.raises(ValueError, match=f"line 2: {re.escape(message)}") as error:
        load_sentences(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", [b'{"text": ', b"[1, 2]", b"\xff\xfe"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(SENTENCES.read_bytes().splitlines()[0] + b"\n\n" + line)
    with pytest.raises(ValueError, match="line 3: "):
        load_sentences(path)


# The reader


def test_the_reader_is_right_or_silent_on_every_sentence():
    answers = [(read_goal(row["text"]), row) for row in ROWS]
    assert [(answer, row["text"]) for answer, row in answers if answer not in (None, row["goal"])] == []
    assert sum(answer is None for answer, _ in answers) < 0.05 * len(ROWS)


@pytest.mark.parametrize("text, goal", [
    ("Can you take the heat out of the particles?", "cool()"), ("turn the temperature up", "heat()"),
    ("upper-right corner!", "move_to(region=top_right)"),
    ("Why don't you push it RIGHT?", "push(direction=right)"),
    ("they\u2019re too close, spread them out", "spread()"), ("go left right now", "push(direction=left)"),
    ("gather in the center", "cluster()"), ("move closer to the center", "move_to(region=center)"),
    ("stack them vertically", "align(axis=vertical)"), ("shake them up", "vibrate()"),
    ("공을왼쪽으로밀어줘", "push(direction=left)"), ("왼쪽위로 옮겨줘", "move_to(region=top_left)"),
    ("공들을 아래로 떨어뜨려", "push(direction=down)"), ("온도 좀 내려", "cool()"), ("열을 올려", "heat()"),
    ("흩어진 입자들을 모아줘", "cluster()"), ("위아래로 흔들어", "vibrate()"),
    ("줄을 가로로 서", "align(axis=horizontal)"),
    (unicodedata.normalize("NFD", "입자들을 오른쪽으로"), "push(direction=right)"),
])
def test_free_sentences(text, goal):
    assert read_goal(text) == goal


@pytest.mark.parametrize("text", [
    # no goal
    "", "?!", "hello", "안녕", "move everything", "미안한데",
    # what not to do
    "don't move left", "stop shaking", "never heat them", "keep the dots from spreading",
    "왼쪽 말고 오른쪽으로", "왼쪽으로 가지 마", "식히지 마", "안 뜨겁게 해 줘", "왼쪽이 아니라 오른쪽으로",
    "왼쪽으로 옮기면 안 돼", "중앙에서 벗어나게 해",
    # two goals, or half of one
    "left or right", "왼쪽이나 오른쪽으로", "heat them and move them up", "왼쪽으로 밀고 나서 식혀",
    "spread left to right", "gather in the top left corner", "왼쪽에 모아줘",
    "move to corner", "왼쪽 구석으로", "line up", "일렬로 세워", "가로로 밀어 줄래?", "위아래로",
    # how things are
    "why did they go left?", "are the balls hot?", "the dots are hot", "왜 다 왼쪽에 있어?", "너무 뜨거워",
    "입자들이 왼쪽으로 갔어",
    # some of the particles
    "move particle 1 to the left", "only the red dots left", "공만 위로", "뜨거운 공들을 왼쪽으로",
    # other things
    "that's right", "turn left", "speed up", "속도를 올려", "크기를 키워", "make a circle",
])
def test_unclear_sentences_get_no_goal(text):
    assert read_goal(text) is None


# The font


def glyph(font, character):
    """The character's picture, as bytes."""
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def test_the_font_has_hangul_and_latin():
    font = ImageFont.truetype(str(FONT), 16)
    missing = glyph(font, "\ue000")     # private use: no font of ours has it
    needed = sorted(set("".join(row["text"] for row in ROWS)) - {" "})
    pictures = {character: glyph(font, character) for character in needed + list("뷁쀍힣ㅋ·→—")}
    assert [character for character, picture in pictures.items() if picture == missing] == []
    assert len({pictures[syllable] for syllable in needed if "가" <= syllable <= "힣"}) > 100


def test_the_font_is_small_and_carries_its_licence():
    assert FONT.stat().st_size < 1_800_000
    assert ImageFont.truetype(str(FONT), 16).getname()[0] == "FlexibleWorld Sans KR"
    licence = (FONT.parent / "OFL.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE" in licence and "Copyright" in licence and "Modified Version" in licence
