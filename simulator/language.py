"""Sentences and goals: the sentences that ship, and a reader by rules for Korean and English.

`load_sentences()` gives the rows of data/goal_commands.jsonl. `read_goal(sentence)` says which goal a free
sentence asks for, so that an episode with it can be scored; it answers None rather than guess.

How the reader works:
1. A sentence is refused if it says what not to do, tells or asks how things are, or is about some of the
   particles only.
2. The patterns of ENGLISH and KOREAN are tried in order, idioms first. What a pattern matches is taken out,
   so that "heat up" leaves no "up" and "top left" no "left" behind.
3. RECIPES say which parts make a goal, MAY what else it may come with. One goal must account for every part.
"""
import json
import re
import unicodedata
from pathlib import Path

SENTENCES = Path(__file__).resolve().parent.parent / "data" / "goal_commands.jsonl"
FIELDS = ("text", "language", "goal", "split", "source", "family")
ALLOWED = {"language": ("ko", "en"), "split": ("train", "held_out")}

LEFT, RIGHT, UP, DOWN = (f"push(direction={way})" for way in ("left", "right", "up", "down"))
CLUSTER, SPREAD, HEAT, COOL, VIBRATE = "cluster()", "spread()", "heat()", "cool()", "vibrate()"
ROW, COLUMN = "align(axis=horizontal)", "align(axis=vertical)"
CENTER, TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = (
    f"move_to(region={at})" for at in ("center", "top_left", "top_right", "bottom_left", "bottom_right"))
CORNERS = {TOP_LEFT: {UP, LEFT}, TOP_RIGHT: {UP, RIGHT}, BOTTOM_LEFT: {DOWN, LEFT},
           BOTTOM_RIGHT: {DOWN, RIGHT}}
GOALS = (LEFT, RIGHT, UP, DOWN, CLUSTER, SPREAD, HEAT, COOL, VIBRATE, CENTER, *CORNERS, ROW, COLUMN)

# Parts of a sentence that make no goal by themselves.
CORNER, ACROSS, UPRIGHT, LINE, SET = "corner", "horizontal", "vertical", "line", "put or arrange"
OTHER = "other"        # understood, and no goal of ours: in no recipe, so there is no answer
NOTHING = None         # only looks like a part: taken out

RECIPES = [
    *((goal, {goal}) for goal in GOALS),
    *((goal, {CORNER, *ways}) for goal, ways in CORNERS.items()),        # "the left corner at the top"
    (ROW, {ACROSS, LINE}), (ROW, {ACROSS, SET}), (COLUMN, {UPRIGHT, LINE}), (COLUMN, {UPRIGHT, SET}),
]
MAY = {
    **{goal: {SET} for goal in GOALS},
    **{goal: {SET, CORNER, *ways} for goal, ways in CORNERS.items()},    # "up into the top left corner"
    CLUSTER: {SET, CENTER}, VIBRATE: {ACROSS, UPRIGHT},
    ROW: {SET, ACROSS, LINE}, COLUMN: {SET, UPRIGHT, LINE},
}

# A clause that complains says where things are, not where they should go: "too hot, cool them off".
COMPLAINT = re.compile(r"\btoo\b|너무")
# Requests that look like negations: "why don't you move left", "위로 올려 주면 안 돼?"
POLITE = re.compile(r"\bwhy (don't|not)( you| we)?\b|\b(can't|couldn't|won't|wouldn't) you\b"
                    r"|\bif you don't mind\b|(?<=주)시?면 안 ?[돼되될]\w*")
_SOME = r"(dots?|balls?|particles?|ones?|them|those|these)"
_KO_SOME = "(입자|알갱이|공|점)"
REFUSED = re.compile("|".join([
    # what not to do
    r"n't\b|\b(dont|not|cannot|never|no|nor|neither|without|stop|avoid|prevent|hate|undo|cancel)\b",
    r"\b(instead|rather|except|but|unless|opposite|reverse|upside)\b|\b(keep|hold)( \w+){1,4} from\b",
    r"\b(away|far|farther|further) from (?!each other|one another)|\bfrom (the )?(cent|middle|corner)",
    r"\bout of (?!the (dots|balls|particles)\b|them\b|everything\b)",
    r"말고|말아|지 ?마(?!구)|지 ?말|\b안 |안 ?[돼된되]|\b못|않|아니|없이|대신|빼고|제외|금지|그만",
    r"멈[추춰]|반대|거꾸로|벗어나|바깥|밖|싫|취소",
    # how things are or were, and why
    r"(^|, )(what(?! i )|why|where|who|when|which|whose|how (?!about )|were|did|does|has|had)\b",
    r"(^|, )(is (?!it possible)|are (?!you able)|do (?!you think|me ))|\balready\b",
    r"(\b(was|is|are)|(?<!let)'s|'re) (left|right|up|down|hot|cold|warm|cool|hotter|colder|warmer|cooler)\b",
    r"\b왜\b|\b이미\b|\b벌써\b|\b어디|\b뭐|\b무슨",
    r"((?<!수)(?<!수 )있|[갔했됐졌왔렸])(다|어|어요|네|네요|나|나요|니|습니다|습니까)$",
    # some of the particles
    rf"\d|\bonly\b|\b(some|half|most|one|two|three|any)( of)?( the| a| my)? {_SOME}\b",
    rf"\b(first|second|third|last|other|big|small|hot|cold|charged) {_SOME}\b",
    rf"\b(red|blue|green|yellow|white|black) {_SOME}\b|빨간|파란|초록|노란|하얀|흰 |검은",
    rf"({_KO_SOME}|것|하나|거|얘|걔)만|\b하나[를씩]|절반|반만|일부|번째|\b\w ?번 {_KO_SOME}",
    r"뜨거운|차가운|따뜻한|\b큰|\b작은",
]))

# Every alternative stands between word ends. "…" is a gap of up to four words of the clause, as in "turn the
# heat right up"; "OF" what may stand inside "the left corner at the top".
ENGLISH = [
    (NOTHING, "all ?right|alright|right (now|away|here|there|in|at|on|into)|(end|hurry)(ing)? up"),
    (NOTHING, "(that's|it's|you're|get it|do it) right|(i|we|you|they|he|she|are|is|that's) left"),
    (OTHER, "right (way|one|answer|thing|place|spot|order|amount|time)|times|twice|on top of(?! another)"),
    (OTHER, r"(speed|slow|calm|settle|shut|give|pick|mix|clean|wake|stir)\w* (\w+ ){0,2}(up|down)"),
    (NOTHING, "scattered (?=(dots|balls|particles))"),
    # temperature
    (COOL, "(turn|bring|dial)… (heat|temperature)… (down|off)|(turn|dial) down the (heat|temperature)"),
    (COOL, "(take|remove|reduce|drain)… heat( out of)?|less (heat|hot|warm)|lower temperature"),
    (COOL, r"(lower|drop|reduce|bring down)… temperature|temperature… (down|lower\w*|drop\w*|fall\w*)"),
    (COOL, r"(cool|chill)\w*… (down|off|out)|(cool|chill|cold|freez|frozen|icy)\w*"),
    (HEAT, "(turn|bring|dial|crank)… (heat|temperature)… up|(turn|dial|crank) up the (heat|temperature)"),
    (HEAT, r"(raise|increase|boost|up)… temperature|temperature… (up|higher|ris\w*)|higher temperature"),
    (HEAT, r"add… heat|(heat|warm)\w*… up|(heat|warm)\w*|hot(ter|test)?"),
    # places
    (TOP_LEFT, "(top|upper)(most)? ?(hand )?left|leftOF (top|upper)"),
    (TOP_RIGHT, "(top|upper)(most)? ?(hand )?right|rightOF (top|upper)"),
    (BOTTOM_LEFT, "(bottom|lower)(most)? ?(hand )?left|leftOF (bottom|lower)"),
    (BOTTOM_RIGHT, "(bottom|lower)(most)? ?(hand )?right|rightOF (bottom|lower)"),
    (CORNER, "corners?"),
    (CENTER, "(closer? to the (very )?)?(center(ed)?|centred?|middle)"),
    # lines
    (COLUMN, "one (above|below|over|on top of) (the other|another)|column|vertical row"),
    (ROW, "side by side|(at|to) the same height|row"),
    (LINE, r"lin(e|ed|ing)… up|line|lined|align\w*|straight"),
    (ACROSS, "horizontal(ly)?|sideways"),
    (UPRIGHT, "vertical(ly)?"),
    (SET, r"stack\w*… up|(arrang|organi[sz]|stack)\w*"),
    (OTHER, r"rows|columns|lines|diagonal\w*|groups|clusters|piles|outwards?|inwards?"),
    # apart and together
    (SPREAD, r"(spread|fan|spac)\w*… out|(break|split)… up|(spread|scatter|dispers|separat)\w*|everywhere"),
    (SPREAD, "(apart|away|far|farther|further) from (each other|one another)|apart|more (space|room)"),
    (CLUSTER, r"(bunch|clump|huddle|pile|group)\w*… up|closer?( to (each other|one another))?|together"),
    (CLUSTER, r"(cluster|group|gather|bunch|clump|huddl|pack|squish|crowd|collect)\w*"),
    (CLUSTER, "(one|a|a single) (pile|spot|place)"),
    # shaking
    (VIBRATE, r"shak\w*… up|(vibrat|shak|jiggl|trembl|wobbl|rattl|quiver|jitter|shiver)\w*"),
    # directions
    (LEFT, "left(wards?)?"),
    (RIGHT, "right(wards?)?"),
    (UP, "up(wards?|per)?|higher|top|lift|raise|raising|rise|rising"),
    (DOWN, "down(wards?)?|lower|bottom|drop|sink"),
    (OTHER, r"(turn|rotat|spin|flip|circ|orbit|speed|temperature|charge|mass|gravity|remov|delet|shape)\w*"),
]

# "…" is a particle and words of degree: "온도를 좀 더 낮춰"; L, R, T, B are the words for the four sides.
KOREAN = [
    (NOTHING, "(흩어져|떨어져|퍼져|모여|뭉쳐|붙어) 있는|흩어진|떨어진|퍼진|모인|뭉친"),
    # temperature
    (COOL, r"온도…(낮|내[려리릴]|떨[어구궈]|줄[여이])|(낮춰|내려)( \w+)?, (\w+ )?온도"),
    (COOL, r"\b열…(빼|뺏|식|내[려리보]|없)|\b식[혀히힐어었게]|\b얼[려리릴어었게]"),
    (COOL, r"차갑게|차가[워웠]|시원|냉각"),
    (HEAT, r"온도…(올[려리릴라]|높)|(높여|올려)( \w+)?, (\w+ )?온도"),
    (HEAT, r"\b열…(가[해하할]|더[해하할]|넣|올[려리릴])|가열|\b데[워우울웠]|\b덥[혀히힐게]|\b달[궈구굴]"),
    (HEAT, r"\b불…(올[려리]|지[펴피]|때)|뜨겁게|뜨거[워웠]|뜨끈|따뜻|따끈|후끈"),
    # lines
    (ROW, r"높이…((모두|전부) )?(똑?같|맞[추춰])|횡대"),
    (COLUMN, r"종대"),
    (LINE, r"(?<=가로)줄|(?<=세로)줄|한 ?줄|줄 ?(로|을|지|세|맞|서|좀 세)|늘어[서선섰놓]"),
    (LINE, r"정렬|나란|일렬|일직선|배열"),
    (ACROSS, r"가로(?!질|막|채|등|수)|수평|옆으로|좌우|양옆"),
    (UPRIGHT, r"세로|수직|위아래|상하|기둥"),
    (SET, r"세[우워울웠]|놓|놔|맞[추춰출]|배치"),
    # places
    (TOP_LEFT, r"L( |의 )?T|T( |의 )?L|좌상단?"),
    (TOP_RIGHT, r"R( |의 )?T|T( |의 )?R|우상단?"),
    (BOTTOM_LEFT, r"L( |의 )?B|B( |의 )?L|좌하단?"),
    (BOTTOM_RIGHT, r"R( |의 )?B|B( |의 )?R|우하단?"),
    (CORNER, r"구석|모서리|코너|귀퉁이|모퉁이"),
    (CENTER, r"(중앙|가운데|중심)에( 더| 좀)* 가까이|중앙|가운데|중심|복판|센터"),
    # apart and together
    (DOWN, r"(아래|밑|바닥)쪽?으?로( \w+)? ?떨어[뜨트]\w*"),
    (SPREAD, r"(간격|사이|거리)…(넓|벌|띄|떼|늘)|흩[어뿌날]|흐트|퍼[뜨트지져졌진]|\b벌[려리릴렸어]|분산"),
    (SPREAD, r"떨어[뜨트지져졌질]|띄엄|멀[리찍어]|사방|넓[게히]|널리|뿔뿔이"),
    (CLUSTER, r"(간격|사이|거리)…(좁|줄)|모[아여으을음이였]|뭉[치쳐칠쳤]|붙[여이일게]|똘똘|덩어리"),
    (CLUSTER, r"한 ?곳|한 ?군데|\b한 ?데\b|한자리|가까[이워웠]|가깝게|옹기종기|다닥다닥|밀집|집합|집결"),
    # shaking
    (VIBRATE, r"진동|흔[들드]|떨[게리려렸림]|부르르|덜덜|파르르|바들|부들|요동|들썩|덜컹"),
    # directions
    (LEFT, "L"),
    (RIGHT, "R"),
    (UP, r"위로|위쪽|윗쪽|위에|(더|맨|좀) 위\b|상단|꼭대기|올[려리릴라]|띄[워우울]|떠[오올]"),
    (DOWN, r"아래|밑(으로|에|쪽|\b)|하단|바닥|내[려리릴]|가라앉|하강"),
    (OTHER, r"온도|속도|빠르기|크기|\b색|전하|질량|중력|소리|밝기|추가|삭제|지워|없애"),
    (OTHER, r"돌[려리]|회전|원형|동그|둥글|모양"),
]


def _compile(table, shorthand, bound=""):
    """[(part, compiled pattern)] of a table, its shorthand written out."""
    def spell(pattern):
        return bound + "(" + re.sub("…|[A-Z]+", lambda match: shorthand[match[0]], pattern) + ")" + bound
    return [(part, re.compile(spell(pattern))) for part, pattern in table]


PARTS = [
    *_compile(ENGLISH, bound=r"\b", shorthand={
        "…": r"( (?!and\b|then\b)\w+){0,4}",
        "OF": "( hand)?( (side|part|corner|edge))?( (at|of|on|in))?( the)?( very)?"}),
    *_compile(KOREAN, shorthand={
        "…": "[를을가이도]?( (더|좀|조금|많이|확|쭉|다))* ?",
        "L": "(왼쪽|왼편|좌측)", "R": "(오른쪽|오른편|우측)",
        "T": "(맨 ?)?(위쪽|윗쪽|위(?!치)|상단|꼭대기)", "B": "(맨 ?)?(아래쪽|아래|하단|밑쪽|밑)"}),
]


def normalise(sentence):
    """Composed (NFC), lower case, no punctuation, clauses joined by ", "; complaints are left out."""
    text = unicodedata.normalize("NFC", sentence).casefold().replace("\u2019", "'")
    clauses = (" ".join(re.sub(r"[^\w']", " ", clause).split()) for clause in re.split(r"[.,!?;:…\n]", text))
    return ", ".join(clause for clause in clauses if clause and not COMPLAINT.search(clause))


def read_goal(sentence: str) -> str | None:
    """The goal a Korean or English sentence asks for, such as "push(direction=left)"; None if unclear."""
    text = POLITE.sub(" ", normalise(sentence))
    if REFUSED.search(text):
        return None
    found = set()
    for part, pattern in PARTS:
        text, count = pattern.subn(" , ", text)
        if count and part:
            found.add(part)
    goals = {goal for goal, parts in RECIPES if parts <= found <= parts | MAY[goal]}
    return goals.pop() if len(goals) == 1 else None


def load_sentences(path=None) -> list[dict]:
    """The rows of a file of sentences (by default the one that ships), each a dict of the six FIELDS.

    A row that does not fit is a ValueError of one line that names the file's line.
    """
    path = Path(path or SENTENCES)
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                rows.append(_row(line.decode("utf-8")))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return rows


def _row(line):
    """One line of the file, checked."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    if not isinstance(row, dict) or set(row) != set(FIELDS):
        raise ValueError(f"expected an object with {', '.join(FIELDS)}")
    for field in FIELDS:
        if not isinstance(row[field], str) or not row[field].strip():
            raise ValueError(f"{field} must be a non-empty string, not {row[field]!r}")
        if row[field] not in ALLOWED.get(field, (row[field],)):
            raise ValueError(f"{field} must be {' or '.join(ALLOWED[field])}, not {row[field]!r}")
    if not re.fullmatch(r"[a-z_]+\(.*\)", row["goal"]):
        raise ValueError(f"goal must look like push(direction=left) or cluster(), not {row['goal']!r}")
    return row
