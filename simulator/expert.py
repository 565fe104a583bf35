"""Scripted policies that see the state: the expert (teacher and upper baseline), no-op and random (lower ones).

The expert asks of every particle a velocity that serves the goal, then chooses, among pushes and pulls at the
points of a grid, the one that brings the velocities nearest to those in the least-squares sense.
"""
import numpy as np

from simulator.action_operator import ActionType
from simulator.goals import AXES, DIRECTIONS, REGIONS

SPEED = 1.5         # px/step asked of a particle, at most
STRENGTH = 3.0      # of one push or pull, at most
REACH = 32.0        # radius of a push or pull, px


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
            want = step / 8 * np.minimum(1, 8 * SPEED / np.linalg.norm(step, axis=-1, keepdims=True)) + towards(centroid, 20)
        case "align":
            along = AXES[goal.argument]
            want = towards(centroid, 8)
            short = 3.5 * now.extent[:, 1 - along] + 6 - now.extent[:, along]      # how much length the line lacks, px
            want[..., along] *= -0.5 * np.clip(short / 10, 0, 1)[:, None]
    limit = SPEED * (2.3 if goal.kind == "vibrate" else 1.5)
    speed = np.linalg.norm(want, axis=-1, keepdims=True)
    return want * np.minimum(1, limit / np.maximum(speed, 1e-9))


def best_impulse(want, position, velocity, mass, size):
    """The push or pull that brings `velocity` nearest to `want`: type [b], point [b,2], strength [b]."""
    side = np.linspace(0.0, 1.0, 7)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * size                            # [P,2]
    away = position[:, None] - points[:, None]                                                      # [b,P,N,2]
    distance = np.linalg.norm(away, axis=-1, keepdims=True)
    effect = away / np.maximum(distance, 1e-9) * np.maximum(0, 1 - distance / REACH) / mass[:, None, :, None]   # px/step per unit
    lacking = (want - velocity)[:, None]
    power = (effect**2).sum((-1, -2)) + 1e-9
    strength = np.clip((effect * lacking).sum((-1, -2)) / power, -STRENGTH, STRENGTH)               # [b,P]
    gain = (2 * strength * (effect * lacking).sum((-1, -2)) - strength**2 * power)
    best = gain.argmax(1)
    strength = np.take_along_axis(strength, best[:, None], 1)[:, 0]
    kind = np.where(strength > 0, ActionType.APPLY_FORCE, ActionType.APPLY_ATTRACTION)
    return np.where(np.abs(strength) < 0.1, ActionType.NOOP, kind), points[best], np.abs(strength)


def expert_actions(worlds):
    """Actions [B,7] for all worlds of a `goal_env.Worlds`, from its true state."""
    sim, size, n = worlds.sim, worlds.size, worlds.n_particles     # goals look at the particles of the start only
    actions = np.zeros((len(worlds.goals), 7), np.float32)
    actions[:, 1] = -1
    for goal in set(worlds.goals):
        b = np.flatnonzero([g == goal for g in worlds.goals])
        now, start = worlds.now[b], worlds.start[b]
        position, velocity = sim.position[b, :n], sim.velocity[b, :n]
        if goal.kind in ("heat", "cool"):
            weight = sim.temperature[b, :n] + 0.1 if goal.kind == "cool" else np.ones((len(b), n))
            point = (position * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
            kind = np.full(len(b), ActionType.APPLY_HEAT)
            strength, radius = np.full(len(b), 2.0 if goal.kind == "heat" else -2.0), REACH
        else:
            want = wanted_velocity(goal, position, now, start, size)
            kind, point, strength = best_impulse(want, position, velocity, sim.mass[b, :n], size)
            radius = REACH
        actions[b, 0], actions[b, 2:4], actions[b, 4], actions[b, 5] = kind, point, strength, radius
    return actions


def noop_actions(worlds):
    """Actions [B,7] that do nothing."""
    actions = np.zeros((len(worlds.goals), 7), np.float32)
    actions[:, 1] = -1
    return actions


def random_actions(worlds, rng):
    """Actions [B,7], uniform over the types and over every parameter's range."""
    low, high = worlds.action_low, worlds.action_high
    actions = rng.uniform(low, high, (len(worlds.goals), 7)).astype(np.float32)
    for column in (0, 1, 6):
        actions[:, column] = rng.integers(low[column], high[column] + 1, len(actions))
    return actions
