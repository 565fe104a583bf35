"""The English lexicon of the rule-based parser: patterns in the order in which they are tried.

Every pattern stands between word ends. Its shorthand is
    …       a gap of up to four words of the clause, as in "turn the heat right up"
    OF      what may stand inside "the left corner at the top"
    COLOUR  a colour, with the noun after it
    NUM     a number in digits or words
    VALUE   a place where an amount or particles were found before
"""
from simulator.particles.lexicon_parts import (
    ACROSS,
    AT_ONCE,
    BOTTOM_LEFT,
    BOTTOM_RIGHT,
    CAME_FIRST,
    CAME_SECOND,
    CENTER,
    CLUSTER,
    COLUMN,
    COOL,
    CORNER,
    DISTRIBUTE,
    DOWN,
    EDGE,
    FIRST,
    HEAT,
    IGNORE,
    IN_ORDER,
    INCREASE,
    JOIN,
    LEFT,
    LINE,
    MEET_UP,
    ONLY_THESE,
    REJECT,
    RIGHT,
    ROW,
    SECOND,
    SET,
    SPREAD,
    TOP_LEFT,
    TOP_RIGHT,
    UP,
    UPRIGHT,
    VIBRATE,
    Amount,
    Particles,
)
from simulator.particles.physics import PALETTE

ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBERS = {word: n for n, word in enumerate(ONES, 1)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
SHORTHAND = {
    "…": r"( (?!and\b|then\b)[\w']+){0,4}",
    "OF": "( hand)?( (side|part|corner|edge))?( (at|of|on|in))?( the)?( very)?",
    "COLOUR": f"({'|'.join(name for name, *_ in PALETTE)})(?! hot)( (particle|dot|ball|disc|circle|one|guy|"
             "thing)s?)?",
    "NUM": rf"(\d+|({'|'.join(TENS)})( ({'|'.join(ONES[:9])}))?|{'|'.join(ONES)})",
}

_SOME = r"(dots?|balls?|particles?|ones?|discs?|circles?|them|those|these)"
PATTERNS = [
    (IGNORE, r"why (don't|not)( you| we)?|(can't|couldn't|won't|wouldn't|shouldn't) (you|these|they|the)"),
    (IGNORE, "if you don't mind|would you mind|no more, no less|stops? (after|at)(?= NUM pixels)"),
    # at once, or in order
    (IGNORE, r"don't(?= .*\buntil (you|this is done)\b)|only do it(?= after you\b)|and only(?= then\b)"),
    (SECOND, r"(after|once|when|as soon as) (you|they|you're|they're|you've|they've)( are| get| got)? there"),
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
    (Amount("pixels"), r"(?<!to )(?<!or )(?<!than )(?<!least )(?<!most )(?P<n>NUM) (pixels?|px)"),
    (Amount("degrees"), r"(?<!to )(?<!or )(?<!than )(?<!least )(?<!most )(?P<n>NUM) degrees?(?! more)"),
    (Amount("more degrees"), "(?P<n>NUM)( more degrees?| degrees? more)"),
    (Particles("some"), "COLOUR(, (the )?COLOUR)*,? and (the )?COLOUR( up(?=$|,| for))?"),
    (REJECT, "(from|not|except|but|than|without) (the )?COLOUR"),
    (Particles("target"), r"((right|straight|up|over|on|in|close|closer|off|across|goes|go) )*"
                           r"(to|towards?|into|against|beside|near|in on|next to|(over|close) by|(head\w*|"
                           r"beeline|straight)"
                           r"( straight)? for|after|joins?|meets?|catch|chases?|follows?|find|touch(es)?|visits?|"
                           r"pay) "
                           r"(where |find |meet |join )?(the )?COLOUR"),
    (Particles("one"), "COLOUR"),
    (ONLY_THESE, "(just|only)(?= (the )?VALUE)|(just|only) (those|that one)|(?<=VALUE )only"),
    (ONLY_THESE, "the (rest wherever|others don't matter)|forget the others"),
    (IGNORE, r"temperature(?=[\w ]*VALUE)|(?<=VALUE )temperature|every (last )?one of|direction( \w+){0,3} is|"
               "(nice|good) and"),
    (IGNORE, r"turn( [\w']+){1,4} into(?= a)|mak(e|ing) up|one and the same|(if|wish)( \w+){1,4} (were|was)"),
    (IGNORE, "(?:(?<=^)|(?<=, ))all right|alright|(ends?|hurry)(ing)? up"),
    (IGNORE, "right (now|away|here|there|where|(?=(in|at|on|into) (the|a|their|its) (?!same|one)))"),
    (IGNORE, "(that's|it's|you're|get it|do it) right|(i|we|you|they|he|she|are|is|that's) left"
             "(?! (my|your|his|her|our|their|the|an?|some)\\b)"),
    # what sounds like a negation, or like a fact
    (COOL, "(no|not so|not this|less)( more)? (heat|hot|warm)|don't want… (this|so|that) (hot|warm)"),
    (HEAT, "(red|piping|boiling|steaming|sizzling) hot|fire up( the)?|(turn )?(the )?thermostat up"),
    (COOL, "freezing cold|take thermal energy away from|fever, (get rid|bring… down)|ice… down|temperature, down"),
    (HEAT, "(not so|not this|less) (cold|cool|chilly)|don't want… (this|so|that) (cold|cool)"),
    (CLUSTER, "(no|get rid of the|close the)… (gaps?|space)( left)?( between)?|(cut down|reduce|shrink|"
              "shorten)… distances?"),
    (SPREAD, "no two… near each other|(more|increase|bit of|keep your|some)… distances?"),
    # what not to do
    (REJECT, "(anywhere|anything|everything|any way|all) but"),
    (REJECT, r"\w+n't|dont|not|cannot|never|no|nor|neither|nobody|anybody|none|without|stop|"
            r"refrain|forget|skip|avoid|prevent|hate|"
             "undo|cancel"),
    (REJECT, r"instead|rather than|except|but not|unless|opposite|reverse|upside|(keep|hold)( \w+){1,4} from"),
    (REJECT, r"(away|far|farther|further) from (?!each other|one another|the others)\w+|from (the )?(cent|middle|"
             r"corner)\w*"),
    (REJECT, r"out of (?!the VALUE|the \w+s\b|them\b|those\b|these\b|all\b|everything\b)\w+"),
    # how things are or were, and why
    (REJECT, r"did (an? )?(\w+ )?(job|work)|(job|work) (with|on|of|at)|earlier|yesterday|thanks for|thank you for"),
    (REJECT, "(i|we|you|they|he|she) (left|lost|forgot) (my|your|his|her|our|their|the|an?|some)|"
             "side of the (table|desk|bed|room|house|road|street)"),
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
    (CLUSTER, "(shrink|squash|tighten|compress|contract)\\w*( up)?( \\w+)? (group|cloud|swarm|crowd)( of \\w+|"
             " into a small one)?|"
              "(group|cloud|swarm|crowd)( \\w+){0,2} (smaller|denser|tight|tighter)( and denser)?|knot of \\w+|"
             "clump\\w*( up)?"),
    (SPREAD, "(break|split)… up|thin… out|(break|split) up the (group|clump|bunch|pile)|(dissolve|"
             "open) the (cluster|group)"),
    (IGNORE, "scattered (?=(dots|balls|particles))|(bunch|group|set) of|(whole|entire|the|this|that) (group|"
              "bunch|crowd|pile|clump|cluster)"),
    # temperature
    (COOL, "(turn|bring|dial)… (heat|temperature)… (down|off)|(turn|dial|bring) down the (heat|temperature)"),
    (COOL, "(get )?rid of (the |their |all )*(heat|warmth|thermal energy)|(extract|dissipate)\\w* (\\w+ )?(heat|"
             "warmth)"),
    (COOL, "(let|make|have)( \\w+){0,3} (heat|warmth)( \\w+)? (escape|go|out|leave)|(less|remove|"
             "reduce)… thermal energy|"
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
    (MEET_UP, "meet(s|ing)?( up| the others)?"),
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

# Words to which typing errors are corrected.
TYPO_TARGETS = """
    align aligned apart arrange bottom center chill cluster clump colder column cool cooler corner degrees down
    downward everything gather group heat higher horizontal hotter left leftward line lower middle move particle
    particles pixels push raise right rightward scatter separate shake shiver spread squeeze temperature together
    tremble upper upward upwards vertical vibrate warm warmer and same time then top
"""
# English words that the rules of typing errors would take for one of these.
NOT_TYPOS = """
    arise article articles bather bluster bolder clutter colter cooked cooker cooper corned cornet enter father former
    folder hatter hither hitter holder hover lather leftover maligned meddle muddle operate otter piddle potter rather
    renter riddle rotter sake scanner shatter shaver sliver smatter solder totter treble trembled vibrato
"""
