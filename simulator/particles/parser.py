"""A reader by rules: which goal of the goal language a Korean or English sentence asks for, if any.

`explain(sentence)` answers with the goal, as in `push(direction=left, distance=12) THEN heat()`, or says why it has
none. It is right or silent: a sentence that it does not understand as a whole gets no goal.

How it works:
1. The patterns of ENGLISH and KOREAN are tried in order, idioms first. What a pattern matches is replaced by a mark
   for the part it stands for, so that "heat up" leaves no "up" and "top left" no "left" behind; what remains of the
   sentence does not matter. OTHER, among the parts, refuses it: negations, facts, things that are no goal of ours.
2. RECIPES say which parts make a goal, MAY what else it may come with. One goal must account for every part.
3. Where something says "at once" or "in order" there must be a place to cut the sentence into two goals.
"""
import itertools
import re
import unicodedata

from simulator.particles.goals import GoalError, parse
from simulator.particles.physics import PALETTE

LEFT, RIGHT, UP, DOWN = (f"push(direction={way})" for way in ("left", "right", "up", "down"))
CLUSTER, SPREAD, HEAT, COOL, VIBRATE = "cluster()", "spread()", "heat()", "cool()", "vibrate()"
ROW, COLUMN = "align(axis=horizontal)", "align(axis=vertical)"
CENTER, TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = (
    f"move_to(region={at})" for at in ("center", "top_left", "top_right", "bottom_left", "bottom_right"))
CORNERS = {TOP_LEFT: {UP, LEFT}, TOP_RIGHT: {UP, RIGHT}, BOTTOM_LEFT: {DOWN, LEFT},
           BOTTOM_RIGHT: {DOWN, RIGHT}}
GOALS = (LEFT, RIGHT, UP, DOWN, CLUSTER, SPREAD, HEAT, COOL, VIBRATE, CENTER, *CORNERS, ROW, COLUMN)
SIDES = {LEFT: "x<16", RIGHT: "x>48", UP: "y<16", DOWN: "y>48"}      # of a picture of 64x64
BOUNDS = SIDES | {corner: ", ".join(sorted(SIDES[way] for way in ways)) for corner, ways in CORNERS.items()}

# Parts of a sentence that make no goal by themselves.
CORNER, EDGE, ACROSS, UPRIGHT, LINE, SET = "corner", "edge", "horizontal", "vertical", "line", "put or arrange"
MEET, STICK_TOGETHER, DISTRIBUTE, INCREASE = "meet", "stick", "distribute", "so much more"
ONLY_THESE = "only these"
REJECT = "other"        # understood, and no goal of ours: in no recipe, so there is no answer
IGNORE = None         # only looks like a part
# Where a sentence may be cut in two, and what that says of the order; the last two look back at what came before.
COMMA, JOIN, AT_ONCE, IN_ORDER = ",", "and", "at once", "in order"
FIRST, SECOND, CAME_FIRST, CAME_SECOND = "first comes", "then comes", "came first", "came second"
ORDERS = {AT_ONCE, IN_ORDER, FIRST, SECOND, CAME_FIRST, CAME_SECOND}
CUT_POINTS = {COMMA, JOIN} | ORDERS

RECIPES = [
    *((goal, {goal}) for goal in GOALS), (CLUSTER, {MEET}), (CLUSTER, {STICK_TOGETHER}), (CLUSTER, {CLUSTER, CENTER}),
    (SPREAD, {DISTRIBUTE}),
    *((goal, {CORNER, *ways}) for goal, ways in CORNERS.items()),        # "the left corner at the top"
    (ROW, {ACROSS, LINE}), (ROW, {ACROSS, SET}), (COLUMN, {UPRIGHT, LINE}), (COLUMN, {UPRIGHT, SET}),
]
OPTIONAL_PARTS = {
    **{goal: {SET} for goal in GOALS},
    **{goal: {SET, STICK_TOGETHER, EDGE} for goal in (LEFT, RIGHT, UP, DOWN)},
    **{goal: {SET, CORNER, MEET, *ways} for goal, ways in CORNERS.items()},    # "up into the top left corner"
    CENTER: {SET, MEET}, CLUSTER: {SET, MEET, STICK_TOGETHER}, VIBRATE: {ACROSS, UPRIGHT},
    ROW: {SET, DISTRIBUTE, ACROSS, LINE}, COLUMN: {SET, DISTRIBUTE, UPRIGHT, LINE},
}
# Kinds of goals that can hold at once: a temperature with anything else, gathering or scattering on the way.
TOGETHER = [*({heat, kind} for heat in ("heat", "cool") for kind in (
                "push", "cluster", "spread", "vibrate", "move_to", "align", "move_toward")),
            *({gather, way} for gather in ("cluster", "spread") for way in ("push", "move_to"))]

ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBERS = {word: n for n, word in enumerate(ONES, 1)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
MAX_LENGTH = 500         # characters of a sentence
# marks of parts are characters for private use, those of parts with a value apart from the others
FIRST_MARK, FIRST_VALUE = 0xE000, 0xF000
DIGITS = "영일이삼사오육칠팔구"
COLOURS = {name: i for i, names in enumerate(PALETTE) for name in names[:2]}
# A clause that complains says where things are, not where they should go: "too hot, cool them off".
COMPLAINT = re.compile(r"\btoo\b|너무")


def _number(text):
    """The number that figures or words say."""
    text = unicodedata.normalize("NFC", text)
    if text.isdigit():
        return int(text)
    if text[0] in DIGITS + "십백":        # "백이십": a digit, 1 if there is none, stands before 백 and 십
        hundreds, tens, ones = re.fullmatch("(?:(.?)백)?(?:(.?)십)?(.?)", text).groups()
        return sum(scale * (DIGITS.index(digit) if digit else scale > 1)
                   for digit, scale in ((hundreds, 100), (tens, 10), (ones, 1)) if digit is not None)
    return sum(NUMBERS[word] for word in text.split())


def _amount(unit):
    return lambda match: (unit, _number(match["n"]))


def _particles(role):
    """The particles of a match, by their colours: ("one", id), ("target", id) or ("some", ids)."""
    def part(match):
        names = re.findall("|".join(COLOURS), unicodedata.normalize("NFC", match[0]))
        ids = sorted({COLOURS[name] for name in names})
        return (role, tuple(ids)) if (len(ids) > 1) == (role == "some") else REJECT
    return part


_SOME = r"(dots?|balls?|particles?|ones?|discs?|circles?|them|those|these)"
# Every alternative stands between word ends. "…" is a gap of up to four words of the clause, as in "turn the heat
# right up"; "OF" what may stand inside "the left corner at the top"; "COLOUR" includes the thing of that colour.
ENGLISH = [
    (IGNORE, r"why (don't|not)( you| we)?|(can't|couldn't|won't|wouldn't|shouldn't) (you|these|they|the)"),
    (IGNORE, "if you don't mind|would you mind|no more, no less|stops? (after|at)(?= NUM pixels)"),
    # at once, or in order
    (IGNORE, r"don't(?= .*\buntil (you|this is done)\b)|only do it(?= after you\b)|and only(?= then\b)"),
    (FIRST, "until this is done|(only )?(right |straight )?(after|once|as soon as|until|till) you('ve| have)?"),
    (AT_ONCE, r"in the same breath|(at|in) (the|that|one and the) (very )?(same )?(time|moment|instant|meantime|"
               "process)|"
               "(both |all )?at once"),
    (AT_ONCE, r"simultaneously|concurrently|in parallel|(and )?meanwhile|(in|as) (one|a single) (go|move|step|action|"
              r"fell swoop)|in sync"),
    (AT_ONCE, r"(and )?(all the )?while( you( do (it|that))?| you're( doing that| at it)?)?|"
               "the whole time"),
    (AT_ONCE, r"as (you( do it)?|that's going on)|along(side| with| the way)( (that|this))?|(do )?both|"
               "as well( as)?|multitask(ing)?( a little)?|in tandem"),
    (AT_ONCE, r"(two things|these two|the two|both)( done)? together|combine (the|these) two|a combo|"
               "two jobs going side by side"),
    (IN_ORDER, "in sequence|(one|first one, then) after the other|in (that|this) order|in order|two steps"),
    (FIRST, "first things first|before (anything else|that)|(to|for) (begin|start)(ers|( with))|for now|but first"),
    (FIRST, r"(the )?(first|start|begin)( (job|thing|step))?( i need)?( is to| with( this)?| as follows| by)"),
    (FIRST, "(step|part|number) one( is to)?|as a first step|to begin|firstly|to start|for starters"),
    (SECOND, "before you( can)?|and then|then|(and |oh |right |straight )*after (that|this)|afterwards?|right after"),
    (SECOND, r"(and )?(once|when|as soon as) (that|this|that's|this is|that is|it's|you're|all that is) ?"
             r"(is )?(all )?(done|finished|complete|over)|next up|(and )?go on to"),
    (SECOND, "(and )?(with )?that (out of the way|done)|done|all set|wait (a|for) ((sec|moment|while|that|to|"
             "finish) ?)+"),
    (SECOND, "(the )?(second|next)(ly)?( (job|thing|step))?( is to| as follows)?(?! to)|"
             "follow(ed)?( (it|that))?( up)? (by|with)( this)?"),
    (SECOND, "(step|part|number) two( is to)?|as a second step|to finish|"
             "finish with( this)?"),
    (SECOND, "finally|lastly|later on|(?<=, )later"),
    (CAME_FIRST, "first(?=,|$)(?<!^first)(?<!, first)|now(?= and .* later)"),
    (FIRST, "first"),
    (CAME_SECOND, "later(?=,|$)"),
    (FIRST, "1(?=,)"), (SECOND, "2(?=,)"),
    # amounts and single particles
    (_amount("pixels"), r"(?<!to )(?<!or )(?<!than )(?<!least )(?<!most )(?P<n>NUM) (pixels?|px)"),
    (_amount("degrees"), r"(?<!to )(?<!or )(?<!than )(?<!least )(?<!most )(?P<n>NUM) degrees?(?! more)"),
    (_amount("more degrees"), "(?P<n>NUM)( more degrees?| degrees? more)"),
    (_particles("some"), "COLOUR(, (the )?COLOUR)*,? and (the )?COLOUR( up(?=$|,| for))?"),
    (REJECT, "(from|not|except|but|than|without) (the )?COLOUR"),
    (_particles("target"), r"((right|straight|up|over|on|in|close|closer|off|across|goes|go) )*"
                           r"(to|towards?|into|against|beside|near|in on|next to|(over|close) by|(head\w*|"
                           r"beeline|straight)"
                           r"( straight)? for|after|joins?|meets?|catch|chases?|follows?|find|touch(es)?|visits?|"
                           r"pay) "
                           r"(where |find |meet |join )?(the )?COLOUR"),
    (_particles("one"), "COLOUR"),
    (ONLY_THESE, "(just|only)(?= (the )?VALUE)|(just|only) (those|that one)|(?<=VALUE )only"),
    (ONLY_THESE, "the (rest wherever|others don't matter)|forget the others"),
    (IGNORE, r"temperature(?=[\w ]*VALUE)|(?<=VALUE )temperature|every (last )?one of|direction( \w+){0,3} is|"
               "(nice|good) and"),
    (IGNORE, r"turn( [\w']+){1,4} into(?= a)|mak(e|ing) up|one and the same|(if|wish)( \w+){1,4} (were|was)"),
    (IGNORE, "(?:(?<=^)|(?<=, ))all right|alright|(ends?|hurry)(ing)? up"),
    (IGNORE, "right (now|away|here|there|where|(?=(in|at|on|into) (the|a|their|its) (?!same|one)))"),
    (IGNORE, "(that's|it's|you're|get it|do it) right|(i|we|you|they|he|she|are|is|that's) left"),
    # what sounds like a negation, or like a fact
    (COOL, "(no|not so|not this|less)( more)? (heat|hot|warm)|don't want… (this|so|that) (hot|warm)"),
    (HEAT, "(red|piping|boiling|steaming|sizzling) hot|fire up( the)?|(turn )?(the )?thermostat up"),
    (COOL, "freezing cold|take thermal energy away from|fever, (get rid|bring… down)|ice… down|temperature, down"),
    (HEAT, "(not so|not this|less) (cold|cool|chilly)|don't want… (this|so|that) (cold|cool)"),
    (CLUSTER, "(no|get rid of the|close the)… (gaps?|space)( left)?( between)?|(cut down|reduce|shrink|"
              "shorten)… distances?"),
    (SPREAD, "no two… near each other|(more|increase|bit of|keep your|some)… distances?"),
    # what not to do
    (REJECT, r"\w+n't|dont|not|cannot|never|no|nor|neither|nobody|anybody|none|without|stop|"
            r"refrain|forget|skip|avoid|prevent|hate|"
             "undo|cancel"),
    (REJECT, r"instead|rather than|except|but not|unless|opposite|reverse|upside|(keep|hold)( \w+){1,4} from"),
    (REJECT, r"(away|far|farther|further) from (?!each other|one another|the others)\w+|from (the )?(cent|middle|"
             r"corner)\w*"),
    (REJECT, r"out of (?!the VALUE|the \w+s\b|them\b|those\b|these\b|all\b|everything\b)\w+"),
    # how things are or were, and why
    (REJECT, r"(?:(?<=^)|(?<=, ))(what(?! i\b|'s)|why|where|who|when(?! you)|which|whose|how (?!about )|were|did|"
             "does|has|had)"),
    (REJECT, r"(?:(?<=^)|(?<=, ))(is (?!it possible)|are (?!you able)|do (?!you think|me ))|already"),
    (REJECT, r"(was|is|are|were|they're|it's) ((now|already|currently|all|both) )*(left|right|up(?! by)|down|hot|"
             "cold|warm|cool|hotter|colder|"
            r"warmer|cooler|at|in|on|near|inside|roasting|freezing|frozen|boiling|running|crowded|scattered|"
            r"bunched|together|"
            r"apart|spread|gathered|packed|shaking|vibrating|aligned|moving|going)|(have|has|got) a fever"),
    (REJECT, r"(?:(?<=^)|(?<=, ))(i|we|you|they|he|she|it|(all )?(the|these|those) [a-z]+s) (\w+ed|went|got|rose|"
             "fell|came)"),
    # some of the particles, or other ones
    (REJECT, rf"(left|right|top|bottom|upper|lower) {_SOME}|bigger|smaller|larger|faster|slower|rounder|brighter"),
    (REJECT, rf"\d+|only|half|(some|most|one|two|three|any)( of)?( the| a| my)? {_SOME}"),
    (REJECT, rf"(first|second|third|last|other|big|small|hot|cold|charged|white|black|orange|gr[ae]y) {_SOME}"),
    (REJECT, "pixels?|degrees?|percent|or so|(NUM|hundred|thousand)(?= VALUE)"),
    (REJECT, "right (way|one|answer|thing|place|spot|order|amount|time)|times|twice|on top of(?! another)"),
    (REJECT, r"(speed|slow|calm|settle|shut|give|pick|mix|clean|wake|stir)\w* (\w+ ){0,2}(up|down)"),
    (REJECT, "(turn|chang|paint|colou?r|swap|exchang|replac|delet|remov|eras|renam|resiz|count|copy|creat|duplicat)"
            r"\w*(?= (the )?(VALUE|them|all))|colou?rs?"),
    (SPREAD, "(grow|enlarge|widen|expand|inflate)\\w*( \\w+)? (group|cloud|swarm|crowd)( of \\w+)?|"
             "(group|cloud|swarm|crowd)( \\w+){0,2} (bigger|larger|wider)|blow… (group|cloud) up"),
    (CLUSTER, "(shrink|squash|tighten|compress|contract)\\w*( up)?( \\w+)? (group|cloud|swarm|crowd)( of \\w+| into a small one)?|"
              "(group|cloud|swarm|crowd)( \\w+){0,2} (smaller|denser|tight|tighter)( and denser)?|knot of \\w+|clump\\w*( up)?"),
    (SPREAD, "(break|split)… up|thin… out|(break|split) up the (group|clump|bunch|pile)|(dissolve|"
             "open) the (cluster|group)"),
    (IGNORE, "scattered (?=(dots|balls|particles))|(bunch|group|set) of|(whole|entire|the|this|that) (group|"
              "bunch|crowd|pile|clump|cluster)"),
    # temperature
    (COOL, "(turn|bring|dial)… (heat|temperature)… (down|off)|(turn|dial|bring) down the (heat|temperature)"),
    (COOL, "(get )?rid of (the |their |all )*(heat|warmth|thermal energy)|(extract|dissipate)\\w* (\\w+ )?(heat|warmth)"),
    (COOL, "(let|make|have)( \\w+){0,3} (heat|warmth)( \\w+)? (escape|go|out|leave)|(less|remove|reduce)… thermal energy|"
           "temperature… (toward|to)s? zero"),
    (COOL, "(take|remove|reduce|drain|quench|kill|ease off on|turn off|los(e|ing))( (?!and)\\w+){0,4} "
           "(heat|warmth|thermal energy)( out of| away from)?|(heat|temperature)… (down|off)"),
    (COOL, r"(lower|drop|reduc|decreas|bring)\w*… (temperature|thermal energy)|drop in temperature|"
            "lower temperature"),
    (COOL, r"heat (out|away)|fever, (get rid|bring… down)|temperature… (down|lower\w*|drop\w*|fall\w*)|"
            "(take)… thermal energy away|less (heat|hot|warm)"),
    (COOL, r"(cool|chill)\w*… (down|off|out)|(cool|chill|cold|freez|icy|icing|frost|refrigerat)\w*|ice( cold)?|"
            "iced?"),
    (COOL, r"(the )?ac|air condition\w*|arctic|fridge|(point a |somebody )?fan (at |those |them ).*"),
    (HEAT, "thaw(ed|ing)?( out)?|(turn|bring|dial|crank|nudge|kick|bump)… (heat|temperature)… up"),
    (HEAT, "(turn|dial|crank|nudge|kick|bump) up the (heat|temperature)|crank the heat|thermostat up|"
           "the thermostat up"),
    (HEAT, r"(rais|increas|boost|up|lift)\w*… (temperature|thermal energy)|temperature… (up|higher|ris\w*|climb|"
            "boost|plus)"),
    (HEAT, r"higher temperature|temperature (increase|boost|rise)|(add|put|more|apply|enough)… (heat|"
            "thermal energy|warmth)"),
    (HEAT, r"(heat|warm)\w*… up|(red |piping |boiling |steaming |sizzling )?(heat|warm)\w*|(red |"
            "piping )?hot(ter|test)?"),
    (HEAT, r"(boil|roast|simmer|sizzl|scorch|steam|cook|microwav|toast|bak)\w*( hot)?|oven|sauna|burner|flames?|"
            "(a )?fever"),
    (HEAT, "summer|thermostat"),
    # places
    (TOP_LEFT, "(top|upper)(most)? ?(hand )?left|leftOF (top|upper)|north[- ]?west(ern|ward)?"),
    (TOP_RIGHT, "(top|upper)(most)? ?(hand )?right|rightOF (top|upper)|north[- ]?east(ern|ward)?"),
    (BOTTOM_LEFT, "(bottom|lower)(most)? ?(hand )?left|leftOF (bottom|lower)|south[- ]?west(ern|ward)?"),
    (BOTTOM_RIGHT, "(bottom|lower)(most)? ?(hand )?right|rightOF (bottom|lower)|south[- ]?east(ern|ward)?"),
    (CORNER, "corners?"), (EDGE, "(very )?(edge|end|border)"),
    (CENTER, "(closer? to the (very )?)?(center(ed)?|centred?|middle|midpoint|bullseye|heart of)"),
    # lines
    (COLUMN, "one (above|below|over|on top of) (the other|another)|column|vertical row"),
    (ROW, "side by side|(at|to) the same height|row"),
    (LINE, r"(lin|queu)(e|ed|ing)… up|line|lined|align\w*|linear|formation|straight|(single )?file|"
            "beads on a string"),
    (ACROSS, "horizontal(ly)?|sideways"),
    (UPRIGHT, "vertical(ly)?"),
    (SET, r"stack\w*… up|(arrang|organi[sz]|stack)\w*"),
    (REJECT, r"rows|columns|lines|diagonal\w*|groups|clusters|piles|inwards?"),
    # apart and together
    (SPREAD, r"(spread|fan|spac|thin)\w*… out|(break|split)… up|(spread|scatter|dispers|separat|sprinkl|"
              r"strew)\w*|everywhere"),
    (SPREAD, "(move |heading |get )?(apart|away|far|farther|further) from (each other|one another|the others)|apart"),
    (SPREAD, r"((more|some|elbow|make) )+(space|room)|all (over|around)( the place)?(?! to)|spars\w+|expand\w*|"
              r"explo\w+|dissolv\w+"),
    (SPREAD, r"(wide(r)?, nice and )?wider?|repel\w*|loosen\w*…( up)?|part ways|(own|separate) ways?|(fill|"
              "cover) the whole screen"),
    (SPREAD, "let… breathe|outwards?|unclump\\w*|puff… out|blow… up|unfold\\w*|fills? (up )?the (whole )?screen"),
    (DISTRIBUTE, r"distribut\w*"),
    (CLUSTER, r"(bunch|clump|huddle|pile|group|gather)\w*… (up|round)|closer?( (to (each other|one another)|in|"
               "together))?"),
    (CLUSTER, r"(cluster|gather|bunch|clump|huddl|pack|squish|squeez|crowd|collect|assembl|converg)\w*"),
    (CLUSTER, r"together|(one|a|a single|one big) (pile|spot|place|heap|blob|ball|group|bunch|location|clump)|"
               r"heap|join\w*"),
    (CLUSTER, r"(join|pile|round|rounding)( up)?(?= (the )?VALUE)|cuddl\w* up|round(ing)?… up|"
               r"attract\w*( (each other|one another))?|drawn to (each other|one another)|(group )?hug|cuddl\w*|"
               r"mash\w*"),
    (CLUSTER, r"tight\w*|touch(ing)?( (each other|one another|in))?|nearer( to)?( (each other|one another|"
               "the others|the rest))?"),
    (CLUSTER, "magnets|pile|group (?=(particles|them|the|these|those|all|every))|up against( one another|"
              " each other)?"),
    (MEET, "meet(s|ing)?( up| the others)?"),
    # shaking
    (VIBRATE, r"shak\w*… up|(vibrat|shak|jiggl|joggl|trembl|wobbl|rattl|quiver|jitter|shiver|wiggl|quak|"
               r"earthquake)\w*"),
    (VIBRATE, r"(agitat|buzz|fidget|hum|judder|oscillat|shimm|shudder|tremor|twitch|caffeinat)\w*|back and forth"),
    # directions
    (IGNORE, "one another|each other"),
    (INCREASE, r"add(ed)?|plus|gain\w*|another|extra|increas\w*|boost\w*|climb\w*"),
    (LEFT, "left(wards?)?|(due )?west(ern|wards?)?"),
    (RIGHT, "right(wards?)?|(due )?east(ern|wards?)?"),
    (UP, "(due )?north(ern|wards?)?|up(wards?|per)?|higher|top|lift|raise|raising|rise|rising"),
    (DOWN, "(due )?south(ern|wards?)?|down(wards?)?|lower|bottom|drop|sink"),
    (REJECT, r"(turn|rotat|spin|flip|circ|orbit|speed|temperature|charge|mass|gravity|remov|delet|"
             r"shape)(?!les?\b)\w*"),
    (REJECT, r"and( [\w']+){3,}(?=$|,)|(?:(?<=^)|(?<=, ))([\w']+ ){3,}and"),      # nothing that is understood
    (JOIN, "and"),
]

# "…" is a particle and words of degree: "온도를 좀 더 낮춰"; L, R, T, B are the words for the four sides; COL is a
# colour, N a thing of that colour. A syllable matches whatever it ends in: 지 also 진, 질, 집.
KOREAN = [
    (IGNORE, r"(?<=주)시?면 안 ?[돼되]\w*|[두놔놓]면 돼"),
    (IGNORE, "(한숨|숨)( 좀)? ?돌|(걸|게|것을?) (보고|보기)"),
    # at once, or in order
    (AT_ONCE, "(따로|하나씩)( 하지)? 말고|어느 쪽도 멈추지 말고|둘 다 놓치지 말고|(둘 중 )?하나라도 빠지면 안 돼|"
              "순서 (없이( 같이)?|따지지 말고)|뭐(부터 할|가 먼저랄) 것 없이"),
    (AT_ONCE, "(그와 |그것도 |물론 )?동시에|면서|는 (동안|중|와중|김)에?|는 내내|같은 순간에|한꺼번에|한 ?번에|"
              "한 ?방에|같이 되게"),
    (AT_ONCE, "둘 다( 같이| 한꺼번에| 되)?|둘을 함께|두 (가지|개)[가를]? ?(모두|다|같이|함께)( 되면)?|멀티|"
              "겸사|거기(에 더해|에다|다)"),
    (SECOND, "(그런|그) ?다음|그담|다음(으로| 차례| 순서)|그 ?(후|뒤)|(뒤|연)이어|이어서|나중에|이따|있다가|"
             "잠시 ?(뒤|후)"),
    (SECOND, "(그게|그거|그 일이|앞의 게|다)? ?(다 )?(되면|됐|잘되면|했으면|끝나|끝났)|됐다 싶|두 번째|2단계로?|"
             "뒤 단계|마지막|마무리"),
    (FIRST, "그 ?전에|먼저|우선|처음(?!보다)|첫 ?번째|일단|1단계로?|앞 단계|시작은|급한 것부터"),
    (CAME_FIRST, "고 ?나서|고 나[면거]|(?<=\u11ab) (다음|후|뒤)에?"),
    (CAME_SECOND, "기 전에"),
    (IN_ORDER, "순서(대로| 지키| 가 중요)|차례(대로|로)|두 단계"),
    (SECOND, r"(?<=, )다음\b"),
    # amounts and single particles
    (_amount("pixels"), r"\b(?P<n>NUM) ?(픽셀|화소|px)(만|쯤|만큼| 정도)?"),
    (_amount("degrees"), r"\b(?P<n>NUM) ?도(?!까지|로|\b 이[상하])(만|쯤|씩|만큼|만큼의|를|가)?( 정도)?\b"),
    (_particles("some"), "COL색?(?:(, | ?N?(와|과|이?랑|하고) )COL색?)+( ?N)?"),
    (REJECT, "COL색?( ?N)?(한테서|에게서|에서|보다)|COL색?으로 (칠|바꾸|바꿔|변)"),
    (_particles("target"), r"COL색? ?N(?=한테|에게|에|까지|( 바로)? ?(옆|쪽|곁|근처)(?!에서)|( 위치| 방향|"
                " 가까이)|(이|가)? ?있는 [데곳]|"
                           r"[와과]의|(을|를)? (쫓|따라|만나|향)|이야|으?로 (가게|가\b|가도|이동|옮|보내|움직|"
                           r"데려|굴|밀|끌|당)|[은는] (가만|그대로))"),
    (_particles("one"), "COL색? ?N( 하나)?|COL색"),
    (IGNORE, "온도(?=[를을가이에도]?,? ?VALUE)|제자리에 돌려|거기로 돌려"),
    (ONLY_THESE, "(나머지|다른 건)\\S*( 어디)?( 그냥)?( 있든)? (두고|놔두고|상관없고|됐고|몰라)|다른 건 신경 쓰지 말고|"
           "얘네(끼리)?만"),
    # how much, and what sounds like a negation
    (COOL, "덜 (뜨거|뜨겁|덥)|더워 보이|덥겠|(뜨거운|더운) (기운|열기)|불…끄|불…(줄이|줄여)( 덜 뜨겁)?|불 꺼"),
    (HEAT, "덜 (차가|차갑|춥)|추워 보이|추워,|(차가운|찬) 기운|(얼어|언) ?(있는|공들|입자들|점들|"
           "알갱이들)?.*녹[이여]|녹[이여]"),
    (CLUSTER, "(빈 ?)?틈[이을]( 다)? (없|메)|하나도 없게 같이"),
    (IGNORE, "많이는 아니고|하나도 빠짐없이|쉬지 않고|(가만있지 |안절부절)못하고|어긋나지 않게|튀어나오지 않게|"
              "싫어,"),
    # what not to do
    (REJECT, r"말고|말아|지(는|도|를|들)? ?마(\b|[라세요십시])|지(는|도|를|들)? ?말|"
            r"필요 ?없|없어도|\b안 |안 ?[돼되]|\b못|않|아니|없이|대신|(?<!열을 )빼고|"
             "제외|금지|그만(?!큼)"),
    (REJECT, "멈[추춰]|반대|거꾸로|벗어나|바깥|밖|싫|취소"),
    # how things are or were, and why
    (REJECT, r"\b왜\b|\b이미\b|\b벌써\b|\b어디|\b뭐|\b무슨"),
    (REJECT, r"((?<!수)(?<!수 )있|[갔했됐졌왔렸])(다|어|어요|네|네요|나|나요|니|습니다|습니까)$"),
    # some of the particles
    (REJECT, r"\d|((입자|알갱이|공|점)|것|하나|거|얘|걔)만|\b하나[를씩]|절반|반만|일부|번째|\b\w ?번 (입자|알갱이|"
             "공|점)"),
    (REJECT, r"(하얀|흰|검은|까만|주황\S*) |나머지|픽셀"),
    (IGNORE, r"(흩어져|떨어져|퍼져|모여|뭉쳐|붙어) 있는|(흩어진|떨어진|퍼진|모인|뭉친|흐트러진|멀리 있는|"
               "넓게 퍼진|한데 몰린"
              r"|모여 있는|붙은|붙어 있는) ?(?=것|걸|거|애|쇠|N|덩어리)"),
    (REJECT, r"뜨거운|차가운|따뜻한|뜨끈한|시원한|식은|달아오른|(추우|더우|뜨거우|차가우)면(?! ?[좋딱])|\b큰|"
             r"\b작은(?! 폭)"),
    # temperature
    (COOL, r"온도…(낮|내[려리]|떨[어구궈]|줄[여이]|하강)|(낮춰|내려)( \w+)?, (\w+ )?온도"),
    (COOL, r"\b열기?…(빼|뺏|식|내[려리보]|없|가라앉)|\b식[혀히어었게도]|\b얼[리려어었게음]|\b춥|냉[동장기]|"
            "에어컨|찬물|부채질"),
    (COOL, r"(온기|따뜻함|열에너지|열)[을를]? ?(다 )?(없애|제거|걷어|빼|줄[여이]|뺏|빼앗)|온도를 (영|0)에|차갑게|차가[워웠]|시원|냉각|서늘|싸늘|차디"),
    (HEAT, r"(온기|열에너지|열)[을를]? ?(더[해하]|불어넣|공급|늘[려리])|온도…(올[려리라랐]|높|상승|증가|플러스|오르|끌어올)|(높여|올려)( \w+)?, (\w+ )?온도|온도에"),
    (HEAT, r"\b열…(가[해하]|더[해하]|넣|올[려리])|열에너지|가열|\b데[워우울웠]|\b덥[혀히게]|\b달[궈구]|달아오|"
            "더웠|난방|고온"),
    (HEAT, r"\b불…(올[려리]|지[펴피]|때|넣|쬐)|뜨겁게|뜨거[워웠우]|뜨끈|따뜻|따끈|후끈|\b끓|\b구[워우]|익[혀히]|"
            "난로|찜질방|볕"),
    # lines
    (ROW, r"높이…((모두|전부) )?(똑?같|맞[추춰])|횡대"),
    (COLUMN, r"종대"),
    (LINE, r"(?<=가로)줄|(?<=세로)줄|한 ?줄|줄 ?(로|을|은|지|세|맞|서|좀 세)|늘어[서섰놓놔]|(?<=가로)선|"
            r"(?<=세로)선|\b선[을이]? |가지런"),
    (LINE, r"정렬|나란|일렬|일직선( 위에)?|배열|막대( 하나)?( 모양)?|길게|대형으로|반듯|꿰"),
    (ACROSS, r"가로(?!질|막|채|등|수)|수평|옆으로|좌우|양옆"),
    (UPRIGHT, r"세로|수직|위아래|상하|기둥"),
    (SET, r"세[우워웠]|놓|놔|맞[추춰]|배치|똑바로"),
    # places
    (TOP_LEFT, r"L( |의 )?T|T( |의 )?L|좌상단?|북서쪽?"),
    (TOP_RIGHT, r"R( |의 )?T|T( |의 )?R|우상단?|북동쪽?"),
    (BOTTOM_LEFT, r"L( |의 )?B|B( |의 )?L|좌하단?|남서쪽?"),
    (BOTTOM_RIGHT, r"R( |의 )?B|B( |의 )?R|우하단?|남동쪽?"),
    (CORNER, r"구석(?!구석)|모서리|코너|귀퉁이|모퉁이"),
    (EDGE, r"(?<=쪽) ?끝"),
    (IGNORE, "벽…(에 )?가까[이워]"),
    (CENTER, r"(중앙|가운데|중심)에( 더| 좀)* 가까이|중앙|가운데|중심|복판|센터"),
    # apart and together
    (DOWN, r"(아래|밑|바닥)쪽?으?로( \w+)? ?떨어[뜨트]\w*"),
    (SPREAD, r"(간격|사이|거리|주변)…(더 )?(넓|벌|띄|떼|늘|멀|두기|여유|빈자리|에 여유)|거리를 두|흩[어뿌날]|"
              r"흐트|퍼[뜨트지져졌]|\b벌[려리렸어]|분산"),
    (SPREAD, r"떨어[뜨트지져졌]|띄엄|멀[리찍어었]|사방|넓[게히]|널리|뿔뿔이|뿌[리려]|펼[쳐치]|해산|헤[쳐치]|갈라|"
              "떼어|떼 놔|(덩어리를 |떡 진 것 좀 )?풀[어고]|밀어내게|깔아"),
    (SPREAD, r"밀쳐|터져|듬성듬성|부풀[려리]|(무리|떼|구름)[를을가이]? ?(더 |크게 |넓게 )*(넓|키[워우]|펼|부풀)|화면을 꽉 채우"),
    (CLUSTER, r"(무리|떼|구름)[를을가이]? ?(더 |작게 |조그맣게 |바짝 )*(좁|줄[여이]|오므|조[여이]|만들)|오밀조밀|조밀"),
    (CLUSTER, r"(간격|사이|거리)…(좁|줄)|모[아여으음이였]|뭉[치쳐쳤]|똘똘|덩어리|무더기|더미|무리|옹기종기|"
               "다닥다닥|밀집|군집|집[합결]|합[쳐치]"),
    (CLUSTER, r"한 ?곳|한 ?군데|\b한 ?데\b|한자리|가까[이워웠우]|가깝|빽빽|끌어당기|서로…끌리|서로에게 끌|맞닿|"
               "만나|만났|묶|같이 있|껴안|껌|떼를|떼 지어"),
    (STICK_TOGETHER, r"붙[여이어게]"),
    # shaking
    (VIBRATE, r"진동|흔[들드]|떨[게리려렸림었어]|떠는|떨 |부르르|드르르|덜덜|달달|파르르|바들|부들|후들|요동|"
               "들썩|덜컹|씰룩|움찔|파닥|달그락|지진|왔다 갔다|쉐킷"),
    # directions
    (LEFT, "L"),
    (RIGHT, "R"),
    (INCREASE, r"더[해하]|플러스|증가|오르|올랐|높[이여게]|상승|끌어올"),
    (UP, r"북쪽|위로|위쪽|윗쪽|위에|(더|맨|좀) 위\b|상단|꼭대기|올[려리라]|띄[워우]|떠[오올]"),
    (DOWN, r"남쪽|아래|밑(으로|에|쪽|\b)|하단|(?<!손)바닥(?! 쓸)|내[려리]|가라앉|하강"),
    (REJECT, r"온도|속도|빠르기|크기|\b색|전하|질량|중력|소리|밝기|추가|삭제|지워|없애|바꿔 칠|칠해"),
    (REJECT, r"돌[려리]|회전|원형|동그(?!라미)|둥글|모양"),
    (REJECT, r"(?:(?<=^)|(?<=, ))[\w ]*(?<!끌)(?<!데리)(?<!몰)(?<!밀)(?<!들)(?<!잡)(?<!가지)고(?= )"),
    (JOIN, r"고(?=[ ,]|$)"),
]

_NAMES = [f"({'|'.join(names)})" for names in list(zip(*PALETTE, strict=True))[:2]]
VALUE = "[\uf000-\uf8ff]"
SHORTHAND = {
    "en": {"…": r"( (?!and\b|then\b)[\w']+){0,4}",
           "OF": "( hand)?( (side|part|corner|edge))?( (at|of|on|in))?( the)?( very)?",
           "COLOUR": _NAMES[0] + "(?! hot)( (particle|dot|ball|disc|circle|one|guy|thing)s?)?",
           "NUM": rf"(\d+|({'|'.join(TENS)})( ({'|'.join(ONES[:9])}))?|{'|'.join(ONES)})",
           "VALUE": VALUE, "SIDE": "(left|right|up|down)"},
    "ko": {"…": "[를을가이도]?( (더|좀|조금|많이|확|쭉|다|쑥|뚝|팍|살짝만|서로))* ?",
           "L": "(왼쪽|왼편|좌측|서쪽)", "R": "(오른쪽|오른편|우측|동쪽)",
           "T": "(맨 ?)?(위쪽|윗쪽|위(?!치)|상단|꼭대기)", "B": "(맨 ?)?(아래쪽|아래|하단|밑쪽|밑)",
           "VALUE": VALUE, "COL": _NAMES[1], "N": "(입자|알갱이|공|점|구슬|동그라미|녀석|것|거|애)들?",
           "NUM": rf"(\d+|(?=[{DIGITS}십백])([{DIGITS}]?백)?([{DIGITS}]?십)?[{DIGITS}]?)"},
}


def _compile(table, language):
    """[(part, compiled pattern)] of a table, its shorthand written out."""
    def spell(pattern):
        pattern = re.sub("…|[A-Z]+", lambda match: SHORTHAND[language].get(match[0], match[0]), pattern)
        if language == "en":
            return rf"\b({pattern})\b"
        pattern = re.sub(r"\[([가-힣]+)\]|([가-힣])(?=[?*+])", lambda m: f"({'|'.join(m[1] or m[2])})", pattern)
        return unicodedata.normalize("NFD", pattern)       # 지 is then the beginning of 진, 질, 집
    return [(part, re.compile(spell(pattern))) for part, pattern in table]


PARTS = {"en": _compile(ENGLISH, "en"), "ko": _compile(KOREAN, "ko")}


def normalise(instruction):
    """Composed (NFC), lower case, no punctuation, clauses joined by ", "; complaints are left out."""
    text = unicodedata.normalize("NFC", instruction).casefold().replace("\u2019", "'")
    clauses = (" ".join(re.sub(r"[^\w']", " ", clause).split()) for clause in re.split(r"[.,!?;:…\n]", text))
    return ", ".join(clause for clause in clauses if clause and not COMPLAINT.search(clause))


def instruction_to_goal(instruction: str) -> str | None:
    """The goal a Korean or English sentence asks for, such as "push(direction=left)"; None if unclear."""
    return parse_instruction(instruction)[0]


def parse_instruction(instruction: str) -> tuple[str | None, str]:
    """What a sentence asks for: (goal, "understood"), or (None, "unknown") where it names no goal of ours, or
    (None, "ambiguous") where it names several, but neither at once nor in order, or contradictory ones."""
    parts = _parts(instruction)
    if REJECT in parts:
        return None, "unknown"
    readings = _plans(parts) if ORDERS & set(parts) else _single(parts)
    if len(readings) == 1:
        return readings.pop(), "understood"
    named = {goal for goal, needed in RECIPES if needed <= set(parts)}
    return None, "ambiguous" if len(readings | named) > 1 else "unknown"


def _parts(instruction):
    """The parts of a sentence in their order; a part with a value, an amount or particles, is a pair."""
    if len(instruction) > MAX_LENGTH or re.search(r"[-−]\s?\d|\bminus\b|마이너스", instruction):
        return []
    text, marks = unicodedata.normalize("NFD", normalise(instruction)), {",": COMMA}
    tables = [PARTS[language] for language, letters in (("en", "[a-z]"), ("ko", "[\u1100-\u1112]"))
              if re.search(letters, text)]
    for part, pattern in itertools.chain(*tables):
        def mark(match, part=part):
            found = part(match) if callable(part) else part
            character = chr((FIRST_VALUE if isinstance(found, tuple) else FIRST_MARK) + len(marks))
            marks[character] = found
            return character
        text = pattern.sub(mark, text)
    return [marks[character] for character in text if marks.get(character)]


def _clause(parts):
    """The one goal that the parts of a clause make, else None."""
    values = [part for part in parts if isinstance(part, tuple)]
    parts = {part for part in parts if isinstance(part, str)} - CUT_POINTS
    match sorted(values):
        case []:
            return _plain(parts)
        case [("pixels", n)]:
            goal = _plain(parts)
            text = f"{goal[:-1]}, distance={n})" if goal in SIDES else None
        case [("degrees" | "more degrees" as unit, n)]:
            if unit == "more degrees":
                parts.add(INCREASE)
            text = f"heat(by={n})" if parts and parts <= {HEAT, INCREASE, UP} else None
        case [("one", (i,))]:
            place = _plain(parts - {ONLY_THESE, EDGE, STICK_TOGETHER})
            there = place in CORNERS or EDGE in parts and place in SIDES
            text = f"move_to(id={i}, {BOUNDS[place]})" if there else None
        case [("one", (i,)), ("target", (j,))] if i != j:
            text = f"move_toward({i}, {j})" if parts <= {ONLY_THESE, STICK_TOGETHER, SET, CLUSTER, MEET, ACROSS} else None
        case [("some", ids)]:
            text = f"cluster(ids={list(ids)})" if _plain(parts - {ONLY_THESE}) == CLUSTER and CENTER not in parts else None
        case _:
            text = None
    try:
        return text and str(parse(text))
    except GoalError:           # an amount out of range
        return None


def _plain(parts):
    goals = {goal for goal, needed in RECIPES if needed <= parts <= needed | OPTIONAL_PARTS[goal]}
    return goals.pop() if len(goals) == 1 else None


def _single(parts):
    """The goals that a sentence asks for that says nothing of once or of order: one, unless "and" joins several."""
    joined = {goal for _, a, b in _halves(parts, {JOIN}) for goal in (a, b)}
    return joined or {_clause(parts)} - {None}


def _halves(parts, cuts):
    """(place, goal before, goal after) of all cuts between two goals."""
    places = [i for i, part in enumerate(parts) if part in cuts]
    halves = [(i, _clause(parts[:i]), _clause(parts[i + 1:])) for i in places]
    return [half for half in halves if half[1] and half[2]]


def _plans(parts):
    """The plans of two goals, at once or in order, that a sentence may ask for."""
    halves = _halves(parts, CUT_POINTS)
    pairs = {(a, b) for _, a, b in halves}
    if len(pairs) != 1:
        return {f"{a} ? {b}" for a, b in pairs}
    a, b = pairs.pop()
    start, end = halves[0][0], halves[-1][0] + 1
    before, between, after = set(parts[:start]), set(parts[start:end]), set(parts[end:])
    forward = FIRST in before or between & {SECOND, CAME_FIRST} or CAME_SECOND in after
    backward = SECOND in before or between & {FIRST, CAME_SECOND} or CAME_FIRST in after
    if AT_ONCE in parts:
        fits = not (forward or backward or IN_ORDER in parts) and _together(parse(a).goals[0], parse(b).goals[0])
        return {f"{a} AND {b}"} if fits else {a, b, "contradictory"}
    if forward and backward or after & {FIRST, SECOND}:
        return {a, b, "contradictory"}
    return {f"{b} THEN {a}" if backward else f"{a} THEN {b}"}


def _together(a, b):
    """Whether two goals can hold at once."""
    if a.ids and b.ids:
        return not set(a.ids) & set(b.ids)
    return {a.kind, b.kind} in TOGETHER and (not (a.ids or b.ids) or bool({a.kind, b.kind} & {"heat", "cool"}))
