"""Scripted policies that see the state: the expert (teacher and upper baseline), no-op and random (lower ones).

The expert asks of every particle a velocity that serves the goal, and pulls or pushes at a point chosen for the goal
with the strength that brings the velocities nearest to those in the least-squares sense. It is careful rather than
fast, and what it does can be told from a picture.
"""
import numpy as np

from simulator.action_operator import ActionType
from simulator.goals import AXES, DIRECTIONS, REGIONS

SPEED = 1.5         # px/step asked of a particle, at most
STRENGTH = 3.0      # of one push or pull, at most
AHEAD = 16.0        # how far ahead of the group a pull is placed, px
REACH, NARROW = 64.0, 40.0     # radius of a pull or push, px; of one that is to move few particles


def wanted_velocity(goal, position, now, start, size):
    """The velocity [b,N,2], px/step, that each particle should have."""
    centroid = now.centroid[:, None]
    towards = lambda points, slowness: (points - position) / slowness      # noqa: E731
    match goal.kind:
        case "push":
            direction = np.array(DIRECTIONS[goal.argument])
            moved = now.centroid - start.centroid
            sideways = moved - (moved @ direction)[:, None] * direction
            want = SPEED * direction - 0.2 * sideways[:, None] + towards(centroid, 40)
        case "cluster":
            want = towards(centroid, 8)
        case "spread":
            want = -towards(centroid, 6)
        case "vibrate":
            outwards = np.where(now.spread < 1.3 * start.spread, -1.0, 1.0)
            want = outwards[:, None, None] * towards(centroid, 2)
        case "move_to":
            target = np.array(REGIONS[goal.argument]) * size
            step = (target - now.centroid)[:, None]
            slow = np.minimum(1, 8 * SPEED / np.linalg.norm(step, axis=-1, keepdims=True))
            want = step / 8 * slow + towards(centroid, 20)
        case "align":
            along = AXES[goal.argument]
            want = towards(centroid, 8)
            short = 3 * now.extent[:, 1 - along] + 4 - now.extent[:, along]      # how much length the line lacks, px
            want[..., along] *= -0.5 * np.clip(short / 10, 0, 1)[:, None]
    limit = SPEED * (2.3 if goal.kind == "vibrate" else 1.5)
    speed = np.linalg.norm(want, axis=-1, keepdims=True)
    return want * np.minimum(1, limit / np.maximum(speed, 1e-9))


def points_and_sign(goal, now, start, size):
    """Where the expert may act for a goal, [b,P,2], whether it pushes (1) or pulls (-1) there, and how wide."""
    centroid = now.centroid
    match goal.kind:
        case "spread" | "vibrate":
            return centroid[:, None], 1, REACH
        case "cluster":
            return centroid[:, None], -1, REACH
        case "push":
            direction = np.array(DIRECTIONS[goal.argument])
            moved = centroid - start.centroid
            way = direction - 0.1 * (moved - (moved @ direction)[:, None] * direction)
            return (centroid + AHEAD * way / np.linalg.norm(way, axis=-1, keepdims=True))[:, None], -1, REACH
        case "move_to":
            way = np.array(REGIONS[goal.argument]) * size - centroid
            far = np.linalg.norm(way, axis=-1, keepdims=True)
            return (centroid + way / far * np.minimum(AHEAD, far + 4))[:, None], -1, REACH
        case "align":
            side = np.linspace(0, 1, 5)
            grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * size
            return np.repeat(grid[None], len(centroid), 0), 1, NARROW


def best_impulse(want, position, velocity, mass, points, sign, reach):
    """Of pushes (sign 1) or pulls (-1) at `points` [b,P,2], the one that brings `velocity` nearest to `want`:
    -> point [b,2], strength [b]."""
    away = position[:, None] - points[:, :, None]                                                   # [b,P,N,2]
    distance = np.linalg.norm(away, axis=-1, keepdims=True)
    effect = sign * away / np.maximum(distance, 1e-9) * np.maximum(0, 1 - distance / reach) / mass[:, None, :, None]
    power = (effect**2).sum((-1, -2)) + 1e-9
    along = (effect * (want - velocity)[:, None]).sum((-1, -2))
    strength = np.clip(along / power, 0, STRENGTH)                                                  # [b,P]
    best = (2 * strength * along - strength**2 * power).argmax(1)
    rows = np.arange(len(best))
    return points[rows, best], strength[rows, best]


def expert_actions(worlds):
    """Actions [B,7] for all worlds of a `goal_env.Worlds`, from its true state."""
    sim, size, n = worlds.sim, worlds.size, worlds.n_particles     # goals look at the particles of the start only
    actions = noop_actions(worlds)
    for goal in set(worlds.goals):
        b = np.flatnonzero([g == goal for g in worlds.goals])
        now, start = worlds.now[b], worlds.start[b]
        if goal.kind in ("heat", "cool"):
            kind, point, reach = ActionType.APPLY_HEAT, now.centroid, REACH
            strength = 2.0 if goal.kind == "heat" else -2.0
        else:
            position, velocity = sim.position[b, :n], sim.velocity[b, :n]
            points, sign, reach = points_and_sign(goal, now, start, size)
            want = wanted_velocity(goal, position, now, start, size)
            points = np.clip(points, 0, size)
            point, strength = best_impulse(want, position, velocity, sim.mass[b, :n], points, sign, reach)
            kind = ActionType.APPLY_FORCE if sign > 0 else ActionType.APPLY_ATTRACTION
        actions[b, 0], actions[b, 2:4], actions[b, 4], actions[b, 5] = kind, point, strength, reach
    return actions


def noop_actions(worlds):
    """Actions [B,7] that do nothing."""
    actions = np.zeros((len(worlds.goals), 7), np.float32)
    actions[:, 1], actions[:, 5] = -1, 1
    return actions


def random_actions(worlds, rng):
    """Actions [B,7], uniform over the types and over every parameter's range."""
    low, high = worlds.action_low, worlds.action_high
    actions = rng.uniform(low, high, (len(worlds.goals), 7)).astype(np.float32)
    for column in (0, 1, 6):
        actions[:, column] = rng.integers(low[column], high[column] + 1, len(actions))
    return actions
