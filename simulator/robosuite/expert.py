"""Scripted experts for the robosuite tasks: the next action from the true state, without memory.

`target_motion` returns a motion of the gripper. `expert_action` converts it to the env's action space: the named
action along the axis with the largest error, or a proportional 7-vector.
"""
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simulator.robosuite.env_config import CLOSE_GRIPPER, OPEN_GRIPPER
from simulator.robosuite.tasks import CARRY_HEIGHT, GOALS, PushGoal

if TYPE_CHECKING:
    from simulator.robosuite.env import RobosuiteEnv

# below this height above the target, in metres, an opening gripper goes on opening; above every release height
RELEASE_HEIGHT = 0.16
OPEN, NO_CHANGE, CLOSE = -1, 0, 1
UP = (0, 0, 0.1)


class Motion(NamedTuple):
    """`move` [3]: metres, world frame. `turn`: rad about the vertical. `grip`: OPEN, NO_CHANGE or CLOSE."""
    move: np.ndarray
    turn: float = 0.0
    grip: int = NO_CHANGE


def expert_action(env: "RobosuiteEnv", goal: str) -> int | np.ndarray:
    """Return the expert's action for `goal`: an index of ACTIONS, or float32 [7]."""
    move, turn, grip = target_motion(env, goal)
    if env.discrete:
        if grip != NO_CHANGE:
            return CLOSE_GRIPPER if grip == CLOSE else OPEN_GRIPPER
        axis = int(np.argmax(np.abs(move)))
        return (1, 3, 4)[axis] if move[axis] > 0 else (0, 2, 5)[axis]
    # an action of 1 moves 12 mm and 0.12 rad per control step, and a little after the last one
    reach = 0.012 * env.settings.action_repeat + 0.008
    vector = np.zeros(7)
    vector[:3] = move / reach
    vector[5] = turn / (10 * reach)
    vector[6] = grip
    return np.clip(vector, -1, 1).astype(np.float32)


def position_tolerance(env: "RobosuiteEnv") -> float:
    """Return how exactly the end effector can be placed, metres: about half of what a named action moves it."""
    return max(0.008, 0.0035 * env.settings.action_repeat) if env.discrete else 0.008


def target_motion(env: "RobosuiteEnv", goal: str) -> Motion:
    """Return the next motion for `goal`."""
    if isinstance(GOALS[goal], PushGoal):
        return push(env)
    target = env.target(goal)
    if env.grasped() and gripper_command(env) > 0.99:
        return Motion(np.array(UP)) if target is None else carry(env, GOALS[goal].aligned, target)
    if target is not None and env.above_target(goal) and env.object_pos()[2] < target[2] + RELEASE_HEIGHT:
        return hold_still(OPEN) if gripper_command(env) > -0.99 else Motion(np.array([0, 0, 1.0]))
    return grasp(env)


def hold_still(grip: int) -> Motion:
    """Return a motion of the fingers only."""
    return Motion(np.zeros(3), grip=grip)


def gripper_command(env: "RobosuiteEnv") -> float:
    """Return the gripper's current command, from -1 (open) to 1 (closed)."""
    return -float(env.gripper.current_action[0])


def grasp_yaw_error(env: "RobosuiteEnv") -> float:
    """Return the turn in rad after which the fingers close across the object. 0 for named actions: they cannot turn."""
    if env.discrete:
        return 0.0
    site = env.sim_env.robots[0].eef_site_id["right"]
    fingers = env.sim.data.site_xmat[site].reshape(3, 3)[:, 1]
    if env.task.grasp_site:
        handle = env.grasp_pos() - env.object_pos()
        grasp_yaw, period = np.arctan2(handle[1], handle[0]) + np.pi / 2, np.pi
    elif env.task.round_object:
        return 0.0
    else:
        grasp_yaw, period = object_yaw(env), np.pi / 2
    return wrap_angle(grasp_yaw - np.arctan2(fingers[1], fingers[0]), period)


def object_yaw(env: "RobosuiteEnv") -> float:
    """Return the object's angle about the vertical, rad."""
    rotation = env.object_rotation()
    return np.arctan2(rotation[1, 0], rotation[0, 0])


def wrap_angle(angle: float, period: float) -> float:
    """Return the angle in [-period / 2, period / 2)."""
    return float((angle + period / 2) % period - period / 2)


def grasp(env: "RobosuiteEnv") -> Motion:
    """Move above the object, open, move down, close."""
    offset = env.grasp_pos() - env.eef_pos()
    lateral = np.abs(offset[:2])
    turn = grasp_yaw_error(env)
    tolerance = position_tolerance(env)
    grasp_depth = 0.02 if env.task.round_object else 0.008
    if (lateral < 1.5 * tolerance).all() and abs(turn) < 0.15 and offset[2] > -grasp_depth:
        return hold_still(CLOSE)
    if gripper_command(env) > -0.99:
        return hold_still(OPEN)
    if (lateral > tolerance).any() or abs(turn) > 0.1:
        if offset[2] > -0.05 and (lateral > 3 * tolerance).any():      # low and beside it: it would push the object
            return Motion(np.array([0, 0, 1.0]))
        vertical = 0 if env.discrete else offset[2] + 0.08
        return Motion(np.array([*np.where(lateral > tolerance, offset[:2], 0), vertical]), turn)
    return Motion(np.array([0, 0, offset[2]]), turn)


def carry(env: "RobosuiteEnv", aligned: bool, target: np.ndarray) -> Motion:
    """Move the grasped object up, over the target, down, then release it. `aligned`: turn it to fit the target."""
    offset = target - env.object_pos()
    lateral = np.abs(offset[:2])
    height = -offset[2]         # of the object above its target
    turn = fit_yaw_error(env) if aligned else 0.0
    tolerance = 0.003 if aligned else max(0.03, position_tolerance(env))
    release_height = 0.118 if aligned else 0.14
    if (lateral > tolerance).any() or abs(turn) > 0.03:
        if height < CARRY_HEIGHT - 0.05 and (lateral > 0.06).any():
            return Motion(np.array(UP))
        return Motion(np.array([*np.where(lateral > tolerance / 2, offset[:2], 0), 0]), turn)
    if height > release_height + 0.008:
        return Motion(np.array([*(offset[:2] * (not env.discrete)), release_height - height]), turn)
    return hold_still(OPEN)


def fit_yaw_error(env: "RobosuiteEnv") -> float:
    """Return the turn in rad that aligns the square nut with its peg. 0 for named actions."""
    return 0.0 if env.discrete else -wrap_angle(object_yaw(env), np.pi / 2)


def push(env: "RobosuiteEnv") -> Motion:
    """Close the fingers, move behind the cube, down, forward."""
    offset = env.object_pos() - env.eef_pos()
    tolerance = position_tolerance(env)
    if gripper_command(env) < 0.99:
        return hold_still(CLOSE)
    behind = offset[0] - 0.06           # to the start position, 6 cm behind the cube
    is_low = offset[2] > -0.026
    if is_low and offset[0] > 0 and abs(offset[1]) < 2 * tolerance:
        return Motion(np.array([0.1, 0, 0]))
    if abs(offset[1]) > tolerance or abs(behind) > tolerance:
        if offset[2] > -0.06:
            return Motion(np.array(UP))
        errors = np.array([behind, offset[1], 0])
        return Motion(np.where(np.abs(errors) > tolerance, errors, 0))
    return Motion(np.array([0, 0, offset[2]]))
