"""Scripted policies that see the state: the expert (teacher and upper baseline), no-op and random (lower ones).

The expert asks of every particle a velocity that serves the goal, and pulls or pushes at one point chosen for the goal
with the strength that brings the velocities nearest to those in the least-squares sense. What it does can be told
from a picture, and works with points some pixels off: a learner can copy it.
"""
import numpy as np

from simulator.particles.actions import ActionType, PropertyType
from simulator.particles.goals import AXES, DIRECTIONS, REGIONS, offset_to_target, progress, target

SPEED = 1.5         # px/step asked of a particle, at most
STRENGTH = 3.0      # of one push or pull, at most
LOOKAHEAD_DIRECTION, LOOKAHEAD_REGION = 28.0, 16.0     # how far ahead of the group it is pulled in a direction, or to a place, px
PUSH_FROM = 40.0       # how far behind the group a push is placed that sweeps it to a wall, px
FORCE_RADIUS = 64.0        # radius of a pull or push, px
SET_SPEED = 4.0     # px/step given to a single particle, at most


def target_velocity(goal, position, current, initial, size):
    """The velocity [b,N,2], px/step, that each particle should have."""
    centroid, limit = current.centroid[:, None], 1.5 * SPEED
    towards = lambda points, slowness: (points - position) / slowness      # noqa: E731
    match goal.kind:
        case "push":
            direction = np.array(DIRECTIONS[goal.argument])
            moved = current.centroid - initial.centroid
            sideways = moved - (moved @ direction)[:, None] * direction
            want = SPEED * direction - 0.2 * sideways[:, None] + towards(centroid, 40)
        case "cluster":
            want = towards(centre(goal, current)[:, None], 8)
            if goal.ids:        # the others do not matter
                want[:, np.setdiff1d(np.arange(want.shape[1]), goal.ids)] = np.nan
        case "spread":
            want = -towards(centroid, 6)
        case "vibrate":
            outwards = np.where(current.spread < 1.1 * initial.spread, -1.0, 1.0)
            want, limit = outwards[:, None, None] * towards(centroid, 2), 3 * SPEED
        case "move_to":
            target = np.array(REGIONS[goal.argument]) * size
            step = (target - current.centroid)[:, None]
            slow = np.minimum(1, 8 * SPEED / np.linalg.norm(step, axis=-1, keepdims=True))
            want = step / 8 * slow + towards(centroid, 20)
        case "align":      # swept against the nearer wall, and a little apart along it
            along, across = AXES[goal.argument], 1 - AXES[goal.argument]
            wall = nearer_wall(current.centroid, across, size)
            short = 3 * current.extent[:, across] + 4 - current.extent[:, along]      # how much length the line lacks, px
            want, limit = -towards(centroid, 16) * np.clip(short / 10, 0, 1)[:, None, None], 2 * SPEED
            want[..., across] = (wall[:, None] - position[..., across]) / 4
    speed = np.linalg.norm(want, axis=-1, keepdims=True)
    return want * np.minimum(1, limit / np.maximum(speed, 1e-9))


def centre(goal, at):
    """The centroid [b,2] of the particles that a goal means."""
    return at.position[:, list(goal.ids)].mean(1) if goal.ids else at.centroid


def nearer_wall(centroid, axis, size):
    """The coordinate [b] along `axis` of the wall that the group is nearer to."""
    return np.where(centroid[:, axis] > size[axis] / 2, size[axis], 0.0)


def choose_point(goal, current, initial, size):
    """Where the expert acts for a goal, [b,2], and whether it pushes (1) or pulls (-1) there."""
    centroid = current.centroid
    match goal.kind:
        case "spread" | "vibrate":
            return centroid, 1
        case "cluster":
            return centre(goal, current), -1
        case "push":
            direction = np.array(DIRECTIONS[goal.argument])
            moved = centroid - initial.centroid
            way = direction - 0.1 * (moved - (moved @ direction)[:, None] * direction)
            return centroid + LOOKAHEAD_DIRECTION * way / np.linalg.norm(way, axis=-1, keepdims=True), -1
        case "move_to":
            way = np.array(REGIONS[goal.argument]) * size - centroid
            far = np.linalg.norm(way, axis=-1, keepdims=True)
            return centroid + way / far * np.minimum(LOOKAHEAD_REGION, far + 4), -1
        case "align":
            point, across = centroid.copy(), 1 - AXES[goal.argument]
            point[:, across] -= np.where(nearer_wall(centroid, across, size) > 0, PUSH_FROM, -PUSH_FROM)
            return point, 1


def least_squares_strength(want, position, velocity, mass, point, sign, least=0.0):
    """The strength [b] of a push (sign 1) or pull (-1) at `point` [b,2] that brings `velocity` nearest to `want`, where
    that is not NaN."""
    away = position - point[:, None]                                                                # [b,N,2]
    distance = np.linalg.norm(away, axis=-1, keepdims=True)
    effect = sign * away / np.maximum(distance, 1e-9) * np.maximum(0, 1 - distance / FORCE_RADIUS) / mass[..., None]
    effect = np.where(np.isnan(want), 0, effect)
    along = (effect * np.nan_to_num(want - velocity)).sum((-1, -2))
    return np.clip(along / ((effect**2).sum((-1, -2)) + 1e-9), least, STRENGTH)


PRIORITY = ("heat", "cool", "move_to", "cluster", "spread")     # of goals at once, those that least undo others


def unsatisfied(goal, task, b):
    """Whether a goal, bool [b], must come farther before the expert serves another one that must hold at once. What the
    picture tells decides: a learner does not see how the episode began."""
    current, initial = task.current[b], task.initial[b]
    threshold = target(goal, initial, task.size)
    match goal.kind:
        case "heat":
            threshold = np.maximum(threshold, 4.5)
        case "cool":
            threshold = np.maximum(threshold, -0.4)
        case "spread":
            threshold = np.maximum(threshold, 0.28 * min(task.size))
        case "cluster":
            threshold = -1.75 * np.sqrt((task.sim.radius[b, :task.n_particles] ** 2).sum(1))
    return progress(goal, current, initial, task.size) < threshold


def active_goal_index(task):
    """Which of `plan.goals` the expert serves now in each world, int [B]: of those that must hold at once, in the order
    of SERVED_FIRST, the first that `lacks` something, or the last."""
    rank = lambda goal: (*PRIORITY, goal.kind).index(goal.kind)
    numbers = np.zeros(len(task.goals), int)
    for b, (plan, stage) in enumerate(zip(task.goals, task.stage, strict=True)):
        *others, last = sorted(enumerate(plan.phases[stage]), key=lambda item: rank(item[1]))
        lacking = (n for n, goal in others if unsatisfied(goal, task, [b])[0])
        numbers[b] = sum(map(len, plan.phases[:stage])) + next(lacking, last[0])
    return numbers


def expert_actions(task):
    """Actions [B,7] for all worlds of a `ParticleTask`, from its true state."""
    actions, table = noop_actions(task), {}
    for b, (plan, number) in enumerate(zip(task.goals, active_goal_index(task), strict=True)):
        table.setdefault(plan.goals[number], []).append(b)
    for goal, b in table.items():
        act_for_goal(goal, task, np.array(b), actions)
    return actions


def act_for_goal(goal, task, b, actions):
    """Writes the actions that serve one goal in worlds `b`."""
    sim, size, n = task.sim, task.size, task.n_particles     # goals look at the particles of the start only
    current, initial, position, velocity = task.current[b], task.initial[b], sim.position[b, :n], sim.velocity[b, :n]
    if goal.kind in ("move_to", "move_toward") and goal.ids:       # gives the particle itself a velocity
        way = offset_to_target(goal, current)
        axis = np.abs(way).argmax(1)
        actions[b, 0], actions[b, 2:4] = ActionType.SET_PROPERTY, position[:, goal.ids[0]]
        actions[b, 4] = np.clip(way[np.arange(len(b)), axis] / 2, -SET_SPEED, SET_SPEED)
        actions[b, 6] = PropertyType.VELOCITY_X + axis
        return
    if goal.kind in ("heat", "cool"):
        kind, point = ActionType.APPLY_HEAT, current.centroid
        strength = 2.0 if goal.kind == "heat" else -2.0
    else:
        point, sign = choose_point(goal, current, initial, size)
        point = np.clip(point, 0, size)
        want = target_velocity(goal, position, current, initial, size)
        strength = least_squares_strength(want, position, velocity, sim.mass[b, :n], point, sign,
                                 -STRENGTH if goal.kind == "vibrate" else 0.0)
        kind = ActionType.APPLY_FORCE if sign > 0 else ActionType.APPLY_ATTRACTION
    actions[b, 0], actions[b, 2:4], actions[b, 4], actions[b, 5] = kind, point, strength, FORCE_RADIUS


def noop_actions(task):
    """Actions [B,7] that do nothing."""
    actions = np.zeros((len(task.goals), 7), np.float32)
    actions[:, 1], actions[:, 5] = -1, 1
    return actions


def random_actions(task, rng):
    """Actions [B,7], uniform over the types and over every parameter's range."""
    low, high = task.action_low, task.action_high
    actions = rng.uniform(low, high, (len(task.goals), 7)).astype(np.float32)
    for column in (0, 1, 6):
        actions[:, column] = rng.integers(low[column], high[column] + 1, len(actions))
    return actions
