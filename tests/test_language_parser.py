"""The rule-based parser of free instructions."""
import json
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from language_helpers import ROWS

from simulator.commands import corrupt_text
from simulator.particles.goals import parse
from simulator.particles.parser import instruction_to_goal, parse_instruction


@pytest.fixture(scope="module")
def readings():
    """Return [(row, goal that the parser reads or None)] of the shipped corpus."""
    return [(row, instruction_to_goal(row["text"])) for row in ROWS]


def test_the_parser_is_right_or_silent_on_every_instruction(readings):
    assert [row["text"] for row, goal in readings if goal not in (None, row["goal"])] == []


def test_the_parser_reads_most_training_instructions_of_every_kind(readings):
    read, total = Counter(), Counter()
    for row, goal in readings:
        if row["split"] == "train":
            kind = row["template_family"].split(":")[0], row["language"]
            read[kind] += goal is not None
            total[kind] += 1
    assert {kind: read[kind] / total[kind] for kind in total if read[kind] < 0.8 * total[kind]} == {}


def test_no_template_family_loses_an_instruction(readings):
    """The file has the number of unread instructions of each family; it is 0 for all families that it does not name.

    A synonym that the corpus needs cannot be removed from a lexicon without a failure here.
    """
    allowed = json.loads((Path(__file__).parent / "data" / "unread_instructions.json").read_text("utf-8"))
    unread = Counter((row["language"], row["template_family"]) for row, goal in readings if goal is None)
    assert {family: count for family, count in unread.items() if count > allowed[family[0]].get(family[1], 0)} == {}


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
def test_free_instructions(text, goal):
    assert instruction_to_goal(text) == goal


@pytest.mark.parametrize("text, goal", [
    # compass
    ("move everything north", "push(direction=up)"), ("go west", "push(direction=left)"),
    ("Head east with all of them", "push(direction=right)"), ("due south, please", "push(direction=down)"),
    ("head southeast", "move_to(region=bottom_right)"), ("동쪽으로 밀어", "push(direction=right)"),
    ("남쪽으로 옮겨 줘", "push(direction=down)"), ("북서쪽으로", "move_to(region=top_left)"),
    # the screen
    ("shift them to the top edge", "push(direction=up)"), ("bottom edge of the screen", "push(direction=down)"),
    ("화면 상단으로 옮겨", "push(direction=up)"), ("입자들을 하단으로", "push(direction=down)"),
    ("왼쪽 상단으로", "move_to(region=top_left)"), ("우측 하단으로 보내", "move_to(region=bottom_right)"),
    ("센터로", "move_to(region=center)"), ("복판으로 보내", "move_to(region=center)"),
    ("한복판으로", "move_to(region=center)"), ("무리를 한가운데로 데려와 줄래?", "move_to(region=center)"),
    ("up and left, all the way into the corner", "move_to(region=top_left)"),
    # shapes and temperature
    ("clump them", "cluster()"), ("clump up", "cluster()"), ("shrink the cloud", "cluster()"),
    ("옹기종기 모여", "cluster()"), ("전부 뿔뿔이 보내 줘", "spread()"), ("무리를 키워", "spread()"),
    ("get rid of the warmth please", "cool()"), ("remove thermal energy", "cool()"),
    ("remove the thermal energy", "cool()"), ("열에너지를 제거해 줘", "cool()"),
    # thanks and order
    ("move left, thanks", "push(direction=left)"), ("Thanks! Now push them right.", "push(direction=right)"),
    ("왼쪽으로 옮겨 주시면 감사하겠습니다", "push(direction=left)"),
    ("Take them to the top left corner; after you get there, heat them.", "move_to(region=top_left) THEN heat()"),
    ("모두 합쳐서 한꺼번에 아래쪽으로 내려 줘", "push(direction=down)"),
])
def test_everyday_words(text, goal):
    assert instruction_to_goal(text) == goal


@pytest.mark.parametrize("text, goal", [
    ("psuh evrything rihgt", "push(direction=right)"), ("haet up teh particles pleas", "heat()"),
    ("lien them up verticaly", "align(axis=vertical)"), ("move evrything lfet plz", "push(direction=left)"),
    ("pusch the prticles donw", "push(direction=down)"),
    ("put evreything in the midle please", "move_to(region=center)"),
    ("movve all to the tpo left cornr", "move_to(region=top_left)"),
    ("Take teh particles to the lwer right cornr", "move_to(region=bottom_right)"),
    ("spraed the partciles appart", "spread()"), ("coool teh particels dwon plz", "cool()"),
    ("psuh them left adn heat them at the same tiem", "push(direction=left) AND heat()"),
])
def test_typing_errors_are_corrected(text, goal):
    assert instruction_to_goal(text) == goal


@pytest.mark.parametrize("text", [
    "don't mvoe left", "do not psuh them rihgt", "rather not", "my father is hotheaded", "the lather is on the folder",
    "hover over the otter", "muddle the riddle", "order an article", "a hitter and a potter", "arise",
])
def test_corrections_make_no_goal_of_other_words(text):
    assert instruction_to_goal(text) is None


def test_perturbed_instructions_are_rarely_read_wrongly():
    rng = np.random.default_rng(0)
    rows = ROWS[::16]
    goals = [instruction_to_goal(corrupt_text(row["text"], rng)) for row in rows]
    assert sum(goal not in (None, row["goal"]) for goal, row in zip(goals, rows, strict=True)) <= 0.01 * len(rows)
    assert sum(goal == row["goal"] for goal, row in zip(goals, rows, strict=True)) >= 0.8 * len(rows)


@pytest.mark.parametrize("text", [
    # no goal
    "", "?!", "hello", "안녕", "move everything", "미안한데",
    # what not to do
    "don't move left", "stop shaking", "never heat them", "keep the dots from spreading",
    "왼쪽 말고 오른쪽으로", "왼쪽으로 가지 마", "식히지 마", "안 뜨겁게 해 줘", "왼쪽이 아니라 오른쪽으로",
    "왼쪽으로 옮기면 안 돼", "중앙에서 벗어나게 해",
    # two goals, or half of one
    "left or right", "왼쪽이나 오른쪽으로", "heat them and move them up", "왼쪽으로 밀고 식혀",
    "spread left to right", "gather in the top left corner", "왼쪽에 모아줘",
    "move to corner", "왼쪽 구석으로", "line up", "일렬로 세워", "가로로 밀어 줄래?", "위아래로",
    # how things are
    "why did they go left?", "are the balls hot?", "the dots are hot", "왜 다 왼쪽에 있어?", "너무 뜨거워",
    "입자들이 왼쪽으로 갔어",
    # some of the particles
    "move particle 1 to the left", "only the red dots left", "공만 위로", "뜨거운 공들을 왼쪽으로",
    # thanks, reports and other rooms
    "Thanks, you did a great job with pushing them left earlier!", "I left my keys on the right side of the table.",
    "I left my keys on the right.", "I left the house, go right", "thank you for moving them left",
    "아까 오른쪽으로 잘 옮겨줘서 고마워!", "왼쪽으로 옮겨 주셔서 감사합니다",
    "어제 먹은 왼쪽 가게 냉면이 참 시원했어",
    "move left and right", "make it nice", "order a pizza and play some jazz",
    # other actions
    "that's right", "turn left", "speed up", "속도를 올려", "크기를 키워", "make a circle",
])
def test_unclear_instructions_get_no_goal(text):
    assert instruction_to_goal(text) is None


@pytest.mark.parametrize("text, goal", [
    ("move everything left by 12 pixels", "push(direction=left, distance=12)"),
    ("twelve pixels to the right, please", "push(direction=right, distance=12)"),
    ("move them down twenty-five pixels", "push(direction=down, distance=25)"),
    ("모두 왼쪽으로 12픽셀 옮겨 줘", "push(direction=left, distance=12)"),
    ("전부 위로 십이 픽셀 밀어", "push(direction=up, distance=12)"),
    ("아래로 백이십 픽셀", "push(direction=down, distance=120)"),
    ("heat everything by 3 degrees", "heat(by=3)"),
    ("warm them up four degrees", "heat(by=4)"),
    ("3도 더 데워 줘", "heat(by=3)"),
    ("온도를 5도 올려 줘", "heat(by=5)"),
    ("raise the temperature by two degrees", "heat(by=2)"),
    ("move the red ball to the left edge", "move_to(id=0, x<16)"),
    ("put the cyan particle in the top right corner", "move_to(id=5, x>48, y<16)"),
    ("빨간 공을 왼쪽 위 구석으로 옮겨", "move_to(id=0, x<16, y<16)"),
    ("하늘색 점을 아래쪽 끝으로", "move_to(id=5, y>48)"),
    ("하늘색을 아래쪽 끝으로", "move_to(id=5, y>48)"),
    ("send the blue one toward the pink one", "move_toward(2, 6)"),
    ("bring blue close to red", "move_toward(2, 0)"),
    ("to the red particle, send the blue one", "move_toward(2, 0)"),
    ("파란 공을 빨간 공 쪽으로 밀어 줘", "move_toward(2, 0)"),
    ("빨간 점 옆으로 노란 점을 옮겨", "move_toward(3, 0)"),
    ("보라색 입자가 갈색 입자에게 다가가게 해 줘", "move_toward(4, 7)"),
    ("gather the red and blue particles", "cluster(ids=[0,2])"),
    ("bring the pink, green and red ones together", "cluster(ids=[0,1,6])"),
    ("빨간 입자와 파란 입자를 모아 줘", "cluster(ids=[0,2])"),
    ("노란색, 초록색 공을 모아 줘", "cluster(ids=[1,3])"),
    ("move left and heat up at the same time", "push(direction=left) AND heat()"),
    ("heat up while you move left", "heat() AND push(direction=left)"),
    ("모으면서 식혀 줘", "cluster() AND cool()"),
    ("동시에 위로 밀고 데워 줘", "push(direction=up) AND heat()"),
    ("first move left, then heat up", "push(direction=left) THEN heat()"),
    ("heat up, but first move left", "push(direction=left) THEN heat()"),
    ("heat up, but move left first", "push(direction=left) THEN heat()"),
    ("before you cool them, gather them", "cluster() THEN cool()"),
    ("gather them before you cool them", "cluster() THEN cool()"),
    ("cool them after you gather them", "cluster() THEN cool()"),
    ("after you gather them, cool them", "cluster() THEN cool()"),
    ("don't cool them until you gather them", "cluster() THEN cool()"),
    ("move left and then move right", "push(direction=left) THEN push(direction=right)"),
    ("왼쪽으로 밀고 나서 식혀 줘", "push(direction=left) THEN cool()"),
    ("식혀 줘, 왼쪽으로 밀고 나서", "push(direction=left) THEN cool()"),
    ("식히기 전에 왼쪽으로 밀어 줘", "push(direction=left) THEN cool()"),
    ("모은 다음에 위로 올려", "cluster() THEN push(direction=up)"),
    ("먼저 모으고 그다음에 흩어 줘", "cluster() THEN spread()"),
    ("move left by 10 pixels, then heat by 2 degrees", "push(direction=left, distance=10) THEN heat(by=2)"),
    ("move the red ball to the left edge and then gather the blue and green balls",
     "move_to(id=0, x<16) THEN cluster(ids=[1,2])"),
    ("heat them up and move the red one to the top edge at the same time", "heat() AND move_to(id=0, y<16)"),
    ("why don't you move everything left?", "push(direction=left)"),
    ("먼저 빨간 공을 왼쪽 끝으로 보내고 그다음에 파란 공을 빨간 공 쪽으로 보내",
     "move_to(id=0, x<16) THEN move_toward(2, 0)"),
])
def test_the_whole_goal_language_is_read(text, goal):
    assert parse_instruction(text) == (goal, "understood")
    assert str(parse(goal)) == goal


@pytest.mark.parametrize("text", [
    "don't move left", "왼쪽으로 가지 마", "is the red particle on the left?", "빨간 입자가 왼쪽에 있어?",
    "빨간 입자가 왼쪽 끝에 있어?", "is the red particle at the left edge?", "the red particle is at the left edge",
    "the dots are in the top left corner", "rotate", "rotate left", "make them red", "delete the red particle",
    "half of the particles left", "the red particle and move left", "heat the red particle", "빨간 공을 데워 줘",
    "push the red ball left", "빨간 공을 왼쪽으로 밀어", "cool by 3 degrees", "cool them by three degrees",
    "3도 식혀 줘", "온도를 3도 낮춰 줘", "온도를 3도 내려", "spread by 10 pixels", "10 픽셀 모아",
    "heat to 3 degrees", "3도까지 데워 줘", "move 12 pixels", "left by 12",
    "move left twelve thirteen pixels", "왼쪽으로 이이십 픽셀",
    "왼쪽으로 가지는 마", "데우지도 마", "식힐 필요 없어", "refrain from moving left", "skip the heating",
    "heat by -3 degrees",
    "heat by 500 degrees", "move left by at least 12 pixels", "move left 3 or 4 pixels",
    "move left by 12 pixels and 3 degrees", "move the red ball away from the blue ball",
    "빨간 공을 파란 공에서 멀리", "swap red and blue", "the red and blue", "the red ball", "빨간 공",
    "paint the red ball blue", "turn the red particle blue", "gather the red particle",
    "gather the red and blue particles in the corner", "spread the red and blue particles",
    "빨간, 파란 공을 흩어 줘", "move the red ball to the center", "move all but the red ball to the left edge",
    "do not move the red ball to the left edge", "빨간 공을 왼쪽 끝으로 옮기지 마",
    "빨간 공 말고 파란 공을 왼쪽 끝으로", "move left and sing a song", "노래를 부르고 왼쪽으로 가",
    "dance a little bit and move left", "don't heat them and then move left", "첫 번째 입자를 왼쪽으로",
    "move the second particle left", "move left then", "who moved left?", "did they go left?",
    "the dots moved left", "왼쪽으로 갔어", "왜 왼쪽이야", "everything except the red particle left",
    "move red to red", "빨간 공을 빨간 공 쪽으로", "move the orange ball to the left edge",
    "주황색 공을 왼쪽 끝으로", "move the red ball 12 pixels left", "move half a pixel left",
    "add a particle to the left", "make the left ones bigger", "make it bigger", "count the red ones",
    "how many are on the left?", "where is the red ball?", "what is the temperature?",
    "I moved the red ball to the left edge", "blue follows red or red follows blue",
    "the red ball is followed by the blue ball", "red from blue to green",
    "if the red ball is at the left edge, move up", "데우지 말고 왼쪽으로", "push to the left of the red ball",
    "왼쪽 아니면 오른쪽", "온도가 몇 도야?", "지금 3도야?", "are they hot or cold?", "make the hot ones cold",
    "move only three of them left", "더 크게 만들어", "빨갛게 만들어", "빨간색으로 칠해",
    "파란 공을 빨간색으로 바꿔", "파란 공 지워", "3도 돌려", "rotate by 3 degrees", "rotate 90 degrees left",
    "왼쪽으로 90도 돌려", "stay where you are", "stop", "nothing", "아무것도 하지 마", "가만히 있어",
    "do not heat, but move left", "never mind the heat, move left", "red up", "파란 공 위로", "빨간 공과 파란 공",
    "move left unless they are hot", "move left if they are cold", "추우면 데워 줘",
    "when they are cold, heat them", "move left after 3 seconds", "3초 후에 왼쪽으로", "undo that",
    "move back to where they were", "move left slowly then stop", "keep them apart from the wall",
    "don't let them spread", "do the opposite of moving left",
])
def test_what_is_no_goal_of_ours_is_unknown(text):
    goal, reason = parse_instruction(text)
    assert goal is None and reason in ("unknown", "refused")


@pytest.mark.parametrize("text", [
    "move left and up", "move left and right", "move up, left", "왼쪽 위쪽 아래쪽으로",
    "heat and cool at the same time",
    "move left and right at the same time", "모으면서 흩어 줘", "식히면서 데워 줘", "move left and heat up",
    "왼쪽으로 밀고 데워 줘", "모으고 식혀 줘", "gather and cool", "왼쪽 또는 오른쪽으로",
    "send the red ball to the left or right edge", "then move left and gather and heat",
    "first left, then right, then up", "before you heat, cool, then move",
    "left first, but before that right, then", "모으거나 흩어 줘", "left!right!",
    "왼쪽으로 오른쪽으로", "everything to the left edge and right edge",

    "gather the red ones left",
])
def test_several_or_contradictory_goals_are_ambiguous(text):
    assert parse_instruction(text) == (None, "ambiguous")
