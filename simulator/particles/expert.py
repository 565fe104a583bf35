"""Scripted policies that read the true state: the expert (upper baseline), no-op and random (lower baselines).

A goal kind says which velocity every particle should have, and at which point to pull or push. The expert chooses the
strength that brings the velocities nearest to these, in the least-squares sense. Its actions follow from the
image and tolerate points that are some pixels off, so a learner can imitate it.

`task` is an env.ParticleTask of B environments; actions are float32 [B,7] (see actions.py).
"""
from typing import Any

import numpy as np

from simulator.particles.actions import ActionType, PropertyType
from simulator.particles.goal_kind import PUSH, kind_of
from simulator.particles.grammar import Goal

FORCE_RADIUS = 64.0     # radius of a push, a pull or a heating, px
SET_SPEED = 4.0         # largest velocity set for a single particle, px/step


def expert_actions(task: Any) -> np.ndarray:
    """Return the expert's actions [B,7]."""
    actions = noop_actions(task)
    envs_by_goal: dict[Goal, list[int]] = {}
    for b, (plan, number) in enumerate(zip(task.goals, active_goal_index(task), strict=True)):
        envs_by_goal.setdefault(plan.goals[number], []).append(b)
    for goal, envs in envs_by_goal.items():
        act_for_goal(goal, task, np.array(envs), actions)
    return actions


def noop_actions(task: Any) -> np.ndarray:
    """Return actions [B,7] that do nothing."""
    actions = np.zeros((len(task.goals), 7), np.float32)
    actions[:, 1] = -1
    actions[:, 5] = 1
    return actions


def random_actions(task: Any, rng: np.random.Generator) -> np.ndarray:
    """Return actions [B,7], uniform over the types and over the range of every parameter."""
    low, high = task.action_low, task.action_high
    actions = rng.uniform(low, high, (len(task.goals), 7)).astype(np.float32)
    for column in (0, 1, 6):
        actions[:, column] = rng.integers(low[column], high[column] + 1, len(actions))
    return actions


def active_goal_index(task: Any) -> np.ndarray:
    """Return the index in `plan.goals` of the goal that the expert serves in each environment, int [B].

    Of goals that must hold at once it is the first, by expert_rank, that is unsatisfied, or the last.
    """
    index = np.zeros(len(task.goals), int)
    for b, (plan, stage) in enumerate(zip(task.goals, task.stage, strict=True)):
        ranked = sorted(enumerate(plan.phases[stage]), key=lambda item: kind_of(item[1]).expert_rank)
        *others, last = ranked
        first_unsatisfied = (i for i, goal in others if is_unsatisfied(goal, task, [b])[0])
        index[b] = sum(map(len, plan.phases[:stage])) + next(first_unsatisfied, last[0])
    return index


def is_unsatisfied(goal: Goal, task: Any, envs: list[int]) -> np.ndarray:
    """Return whether the expert must serve this goal before another one that must hold at once, bool [b]."""
    kind = kind_of(goal)
    current, initial = task.current[envs], task.initial[envs]
    threshold = kind.handover_target(goal, initial, task.size, task.sim.radius[envs, :task.n_particles])
    return kind.progress(goal, current, initial, task.size) < threshold


def act_for_goal(goal: Goal, task: Any, envs: np.ndarray, actions: np.ndarray) -> None:
    """Write the actions that serve one goal in the environments `envs` [b] into `actions` [B,7]."""
    kind = kind_of(goal)
    if kind.moves_one_particle:
        _set_velocity(goal, task, envs, actions)
    elif kind.heat_strength is not None:
        center = task.current[envs].centroid
        _apply(actions, envs, ActionType.APPLY_HEAT, center, kind.heat_strength)
    else:
        _apply_force(goal, task, envs, actions)


def least_squares_strength(target_velocity: np.ndarray, position: np.ndarray, velocity: np.ndarray, mass: np.ndarray,
                           point: np.ndarray, sign: int,
                           max_strength: float = 3.0) -> np.ndarray:
    """Return the strength [b], from 0 to `max_strength`, that brings `velocity` [b,N,2] nearest to `target_velocity`.

    It is that of a push (sign 1) or pull (sign -1) at `point` [b,2]; `mass` is [b,N]. NaN in `target_velocity`
    excludes a particle.
    """
    away = position - point[:, None]                                    # [b,N,2]
    distance = np.linalg.norm(away, axis=-1, keepdims=True)             # [b,N,1]
    falloff = np.maximum(0, 1 - distance / FORCE_RADIUS)
    effect = sign * away / np.maximum(distance, 1e-9) * falloff / mass[..., None]
    effect = np.where(np.isnan(target_velocity), 0, effect)
    along = (effect * np.nan_to_num(target_velocity - velocity)).sum((-1, -2))
    return np.clip(along / ((effect**2).sum((-1, -2)) + 1e-9), 0, max_strength)


def _set_velocity(goal: Goal, task: Any, envs: np.ndarray, actions: np.ndarray) -> None:
    """Set the velocity of one particle, along the axis on which it is farther from its target."""
    offset = kind_of(goal).offset_to_target(goal, task.current[envs])
    axis = np.abs(offset).argmax(1)
    speed = offset[np.arange(len(envs)), axis] / 2
    actions[envs, 0] = ActionType.SET_PROPERTY
    actions[envs, 2:4] = task.sim.position[envs, goal.ids[0]]
    actions[envs, 4] = np.clip(speed, -SET_SPEED, SET_SPEED)
    actions[envs, 6] = PropertyType.VELOCITY_X + axis


def _apply_force(goal: Goal, task: Any, envs: np.ndarray, actions: np.ndarray) -> None:
    """Push or pull all particles at the point that the goal kind chooses."""
    kind, sim, n = kind_of(goal), task.sim, task.n_particles    # goals look at the particles of the start only
    current, initial = task.current[envs], task.initial[envs]
    position = sim.position[envs, :n]
    point, sign = kind.action_point(goal, current, initial, task.size)
    point = np.clip(point, 0, task.size)
    target_velocity = kind.target_velocity(goal, position, current, initial, task.size)
    speed = np.linalg.norm(target_velocity, axis=-1, keepdims=True)
    target_velocity = target_velocity * np.minimum(1, kind.max_speed / np.maximum(speed, 1e-9))
    velocity, mass = sim.velocity[envs, :n], sim.mass[envs, :n]
    strength = least_squares_strength(target_velocity, position, velocity, mass, point, sign,
                                      kind.max_strength)
    action_type = ActionType.APPLY_FORCE if sign == PUSH else ActionType.APPLY_ATTRACTION
    _apply(actions, envs, action_type, point, strength)


def _apply(actions: np.ndarray, envs: np.ndarray, action_type: ActionType, point: np.ndarray,
           strength: np.ndarray | float) -> None:
    actions[envs, 0] = action_type
    actions[envs, 2:4] = point
    actions[envs, 4] = strength
    actions[envs, 5] = FORCE_RADIUS
