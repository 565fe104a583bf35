"""Scripted experts for the robosuite tasks: what to do next, from the true state and without memory.

`intent` says which way the hand should move and turn and what the fingers should do; `expert_action` says it in the
environment's action space: the named action along the worst axis, or a 7-vector in proportion.
"""
import numpy as np

CARRY = 0.25        # metres above the target's floor at which a thing is carried
RELEASE = 0.16      # metres above it below which fingers that have begun to open go on: more than `carry` comes down to
OPEN, NO_CHANGE, CLOSE = -1, 0, 1


def expert_action(env, goal):
    """What the expert does for `goal` in a RobosuiteEnv: an index of ACTIONS, or float32 [7]."""
    move, turn, grip = intent(env, goal)
    if env.discrete:
        if grip != NO_CHANGE:
            return 6 if grip == CLOSE else 7
        axis = int(np.argmax(np.abs(move)))
        return (1, 3, 4)[axis] if move[axis] > 0 else (0, 2, 5)[axis]
    # what an action of 1 comes to while it is held, and a little after it: 12 mm and 0.12 rad in a control step
    reach = 0.012 * env.settings.action_repeat + 0.008
    vector = np.zeros(7)
    vector[:3], vector[5], vector[6] = move / reach, turn / (10 * reach), grip
    return np.clip(vector, -1, 1).astype(np.float32)


def tolerance(env):
    """How well the hand can be placed: about half of what a named action moves it."""
    return max(0.008, 0.0035 * env.settings.action_repeat) if env.discrete else 0.008


def intent(env, goal):
    """-> (move [3], metres, world frame; turn about the vertical, rad; OPEN, KEEP or CLOSE)."""
    if goal == "push_cube":
        return push(env)
    target = env.target(goal)
    if env.grasped() and closed(env) > 0.99:
        return lift_up(env) if target is None else carry(env, goal, target)
    if target is not None and env.above_target(goal) and env.object_pos()[2] < target[2] + RELEASE:
        return hold_still(OPEN) if closed(env) > -0.99 else (np.array([0, 0, 1.0]), 0, NO_CHANGE)        # it is there: let go
    return grasp(env)


def hold_still(grip):
    return np.zeros(3), 0.0, grip


def closed(env):
    """The fingers' command, from -1, open, to 1, closed."""
    return -float(env.gripper.current_action[0])


def yaw_error(env):
    """How far the hand should turn for its fingers to close across what they are to hold, rad; named actions cannot."""
    if env.discrete:
        return 0.0
    site = env.sim_env.robots[0].eef_site_id["right"]
    fingers = env.sim.data.site_xmat[site].reshape(3, 3)[:, 1]
    if env.task.grasp_site:
        handle = env.grasp_pos() - env.object_pos()
        wanted, period = np.arctan2(handle[1], handle[0]) + np.pi / 2, np.pi
    else:
        body = env.sim.data.body_xmat[env.sim.model.body_name2id(env.task.body)].reshape(3, 3)
        wanted, period = np.arctan2(body[1, 0], body[0, 0]), np.pi / 2
        if env.task.goals[0] == "place_can":        # round
            return 0.0
    return wrap(wanted - np.arctan2(fingers[1], fingers[0]), period)


def wrap(angle, period):
    return float((angle + period / 2) % period - period / 2)


def grasp(env):
    """Above the thing, open, down, close."""
    away, turn, near = env.grasp_pos() - env.eef_pos(), yaw_error(env), tolerance(env)
    aside = np.abs(away[:2])
    tall = 0.02 if env.task.goals[0] == "place_can" else 0.008
    if (aside < 1.5 * near).all() and abs(turn) < 0.15 and away[2] > -tall:
        return hold_still(CLOSE)
    if closed(env) > -0.99:
        return hold_still(OPEN)
    if (aside > near).any() or abs(turn) > 0.1:
        if away[2] > -0.05 and (aside > 3 * near).any():        # low and beside it: first up, or it is pushed about
            return np.array([0, 0, 1.0]), 0.0, NO_CHANGE
        return np.array([*np.where(aside > near, away[:2], 0), 0 if env.discrete else away[2] + 0.08]), turn, NO_CHANGE
    return np.array([0, 0, away[2]]), turn, NO_CHANGE


def lift_up(env):
    return np.array([0, 0, 0.1]), 0.0, NO_CHANGE


def carry(env, goal, target):
    """Up, over the target, down, let go."""
    away, nut = target - env.object_pos(), goal == "place_nut"
    aside, turn = np.abs(away[:2]), nut_turn(env, nut)
    near, low = (0.003, 0.118) if nut else (max(0.03, tolerance(env)), 0.14)
    high = -away[2]         # of the thing above its target
    if (aside > near).any() or abs(turn) > 0.03:
        if high < CARRY - 0.05 and (aside > 0.06).any():
            return np.array([0, 0, 0.1]), 0.0, NO_CHANGE
        return np.array([*np.where(aside > near / 2, away[:2], 0), 0]), turn, NO_CHANGE
    if high > low + 0.008:
        return np.array([*(away[:2] * (not env.discrete)), low - high]), turn, NO_CHANGE
    return hold_still(OPEN)


def nut_turn(env, nut):
    """How far the nut is from sitting square to its peg, rad."""
    if not nut or env.discrete:
        return 0.0
    body = env.sim.data.body_xmat[env.sim.model.body_name2id(env.task.body)].reshape(3, 3)
    return -wrap(np.arctan2(body[1, 0], body[0, 0]), np.pi / 2)


def push(env):
    """Closed fingers behind the cube, down, forward."""
    away, near = env.object_pos() - env.eef_pos(), tolerance(env)
    if closed(env) < 0.99:
        return hold_still(CLOSE)
    behind = away[0] - 0.06
    low = away[2] > -0.026
    if low and away[0] > 0 and abs(away[1]) < 2 * near:
        return np.array([0.1, 0, 0]), 0.0, NO_CHANGE
    if abs(away[1]) > near or abs(behind) > near:
        if away[2] > -0.06:
            return np.array([0, 0, 0.1]), 0.0, NO_CHANGE
        return np.array([behind if abs(behind) > near else 0, away[1] if abs(away[1]) > near else 0, 0]), 0.0, NO_CHANGE
    return np.array([0, 0, away[2]]), 0.0, NO_CHANGE
