"""Draw the target of a particle goal on an image for people: a thin outline of where the particles should go."""
import numpy as np
from PIL import ImageDraw

from simulator.particles import goals as G

COLOR = (120, 220, 120)      # light green: no particle has it


def draw_targets(draw: ImageDraw.ImageDraw, goal: str, size: tuple[float, float],
                 box: tuple[int, int, int, int]) -> None:
    """Draw the targets of all goals of a plan.

    goal: text in the goal language; other text draws nothing. size: width and height of the env, px.
    box: left, top, width and height of the image in the frame, pixels.
    """
    try:
        plan = G.parse(goal)
    except G.GoalError:
        return
    for part in plan.goals:
        _draw_target(draw, part, np.array(size, float), np.array(box[:2], float), box[2] / size[0])


def _draw_target(draw, goal, size, origin, scale):
    """Draw one goal: a circle (a region), lines (bounds of one particle) or an arrow (a direction)."""
    if goal.kind == "push":
        direction = np.array(G.DIRECTIONS[goal.argument])
        start, length = size / 2, G.target(goal, None, size)
        _draw_arrow(draw, origin + scale * start, origin + scale * (start + length * direction), direction)
    elif goal.kind == "move_to" and goal.ids:
        for axis, _, bound in goal.bounds:
            ends = np.array([[0.0, 0.0], size])
            ends[:, axis] = bound
            draw.line([tuple(origin + scale * end) for end in ends], COLOR, 2)
    elif goal.kind == "move_to":
        center = origin + scale * size * np.array(G.REGIONS[goal.argument])
        draw.circle(tuple(center), -scale * G.target(goal, None, size), outline=COLOR, width=2)


def _draw_arrow(draw, start, end, direction):
    """Draw an arrow between two pixels [2]."""
    draw.line([tuple(start), tuple(end)], COLOR, 2)
    sideways = direction[::-1]
    for side in (-8, 8):
        draw.line([tuple(end), tuple(end - 12 * direction + side * sideways)], COLOR, 2)
