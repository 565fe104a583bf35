"""The parts that the patterns of a lexicon stand for.

A lexicon is a list of (part, regular expression). A part is one of
    a goal in the goal language    "push(direction=left)"
    a name below                   a part that makes a goal only together with others, or a place between two goals
    Amount, Particles              a part with a value, which the parser takes from the match
    REJECT                         the instruction asks for none of our goals
    IGNORE                         the text only looks like a part
"""
from dataclasses import dataclass

LEFT, RIGHT, UP, DOWN = (f"push(direction={direction})" for direction in ("left", "right", "up", "down"))
CLUSTER, SPREAD, HEAT, COOL, VIBRATE = "cluster()", "spread()", "heat()", "cool()", "vibrate()"
ROW, COLUMN = "align(axis=horizontal)", "align(axis=vertical)"
CENTER, TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = (
    f"move_to(region={region})" for region in ("center", "top_left", "top_right", "bottom_left", "bottom_right"))

CORNER, EDGE = "corner", "edge"
ACROSS, UPRIGHT, LINE = "horizontal", "vertical", "line"
SET = "put or arrange"
MEET_UP, STICK_TOGETHER, DISTRIBUTE = "meet", "stick", "distribute"
INCREASE = "more"
ONLY_THESE = "only these"
REJECT = "reject"
IGNORE = None

# Places at which an instruction may be split into two goals, and what they say of the order.
COMMA, JOIN, AT_ONCE, IN_ORDER = ",", "and", "at once", "in order"
FIRST, SECOND = "first", "second"                               # of what follows
CAME_FIRST, CAME_SECOND = "came first", "came second"           # of what precedes
ORDERS = {AT_ONCE, IN_ORDER, FIRST, SECOND, CAME_FIRST, CAME_SECOND}
SPLIT_POINTS = {COMMA, JOIN} | ORDERS


@dataclass(frozen=True)
class Amount:
    """A number with a unit: "pixels", "degrees" or "more degrees". The pattern has a group `n`."""
    unit: str


@dataclass(frozen=True)
class Particles:
    """Particles named by their colours, as the "one" that moves, the "target" of the way, or "some"."""
    role: str
