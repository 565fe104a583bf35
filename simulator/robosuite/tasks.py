"""Tasks and goals of the robot arm.

A task is a robosuite scene with one object. `GOALS` holds one entry per goal. A goal object defines success, stages,
the target position and the shaped value. It reads the true state of the env that it is given and keeps no state.

| goal | task | success |
|---|---|---|
| lift_cube | Lift | robosuite's own check: the cube is 4 cm above the table |
| push_cube | Lift | the cube is more than 8 cm farther from the robot and still on the table |
| place_can | PickPlaceCan | robosuite's own check: the can is in its own compartment, the far one |
| place_can_near | PickPlaceCan | the same check for the compartment near the robot |
| place_nut | NutAssemblySquare | robosuite's own check: the nut is on the square peg |
| lift_nut | NutAssemblySquare | the gripper holds the nut more than 8 cm above its start |
"""
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulator.registry import EnvError

if TYPE_CHECKING:
    from simulator.robosuite.env import RobosuiteEnv

STAGES = ("reach", "grasp", "lift", "hover")
REACH_DISTANCE = 0.03           # metres
LIFTED_HEIGHT = 0.04            # metres above the start
CARRY_HEIGHT = 0.25             # metres above the start, as in robosuite's staged rewards
PUSH_DISTANCE = 0.08            # metres


class GoalError(EnvError):
    """An unknown goal. The message names the nearest one."""


def check_choice(kind: str, name: str, choices: Iterable[str], error: type[EnvError] = EnvError) -> None:
    """Raise `error` with the nearest name if `name` is not one of `choices`."""
    choices = list(choices)
    if name not in choices:
        nearest = difflib.get_close_matches(str(name), choices, n=1, cutoff=0)[0]
        raise error(f"unknown {kind} {name!r}: did you mean {nearest}? Choose from {', '.join(choices)}")


def _reach_value(env: "RobosuiteEnv") -> float:
    """Return the value of the first stage, in [0, 0.1]: how near the end effector is to the grasp position."""
    return 0.1 * (1 - np.tanh(10 * _grasp_distance(env)))


def _grasp_distance(env: "RobosuiteEnv") -> float:
    return np.linalg.norm(env.eef_pos() - env.grasp_pos())


def _lift_value(env: "RobosuiteEnv", height: float) -> float:
    """Return the value of a grasped object, in [0.35, 0.5]: how near it is to `height` metres above its start."""
    missing = max(env.object_start[2] + height - env.object_pos()[2], 0)
    return 0.35 + 0.15 * (1 - np.tanh(15 * missing))


def _is_lifted(env: "RobosuiteEnv") -> bool:
    return bool(env.object_pos()[2] - env.object_start[2] > LIFTED_HEIGHT)


class Goal:
    """A goal about the task's object. By default robosuite judges success, and the goal has no target."""

    def is_success(self, env: "RobosuiteEnv") -> bool:
        """Return whether the goal holds now."""
        return bool(env.sim_env._check_success())

    def target(self, env: "RobosuiteEnv") -> np.ndarray | None:
        """Return the position [3] where the object should be placed, metres; None for goals without one."""
        return None

    def above_target(self, env: "RobosuiteEnv") -> bool:
        """Return whether the object is horizontally over the target. False for goals without a target."""
        return False

    def stages(self, env: "RobosuiteEnv") -> dict[str, bool]:
        """Return which of the goal's STAGES hold now."""
        reached = bool(_grasp_distance(env) < REACH_DISTANCE)
        return {"reach": reached, "grasp": env.grasped(), "lift": _is_lifted(env)}

    def partial_value(self, env: "RobosuiteEnv") -> float:
        """Return the progress towards the goal, in [0, 0.7], before success."""
        raise NotImplementedError

    def shaped_value(self, env: "RobosuiteEnv") -> float:
        """Return the progress towards the goal, in [0, 1]; 1 at success (after robosuite's `staged_rewards`)."""
        return 1.0 if self.is_success(env) else self.partial_value(env)


@dataclass(frozen=True)
class LiftGoal(Goal):
    """Lift the object to `height` metres above its start. robosuite judges success."""
    height: float

    def partial_value(self, env: "RobosuiteEnv") -> float:
        return float(_lift_value(env, self.height) if env.grasped() else _reach_value(env))


@dataclass(frozen=True)
class LiftNutGoal(LiftGoal):
    """Hold the nut `height` metres above its start. robosuite has no check for it."""

    def is_success(self, env: "RobosuiteEnv") -> bool:
        return bool(env.grasped() and env.object_pos()[2] - env.object_start[2] > self.height)


@dataclass(frozen=True)
class PushGoal(Goal):
    """Push the object `distance` metres away from the robot, along +x, on the table."""
    distance: float

    def is_success(self, env: "RobosuiteEnv") -> bool:
        pos, start = env.object_pos(), env.object_start
        on_table = pos[2] < start[2] + 0.02
        return bool(on_table and pos[0] - start[0] > self.distance)

    def stages(self, env: "RobosuiteEnv") -> dict[str, bool]:
        return {"reach": bool(np.linalg.norm(env.eef_pos() - env.object_pos()) < 2 * REACH_DISTANCE)}

    def partial_value(self, env: "RobosuiteEnv") -> float:
        pushed = (env.object_pos()[0] - env.object_start[0]) / self.distance
        return _reach_value(env) + 0.6 * float(np.clip(pushed, 0, 1))


class PlaceGoal(Goal):
    """Place the object at a target. Subclasses say where."""
    aligned = False     # whether the object must be turned to fit its target

    def margin(self, env: "RobosuiteEnv") -> np.ndarray | float:
        """Return how far from the target, in x and y, the object still counts as above it, metres."""
        raise NotImplementedError

    def above_target(self, env: "RobosuiteEnv") -> bool:
        offset = np.abs(env.object_pos() - self.target(env))
        return bool((offset[:2] < self.margin(env)).all())

    def stages(self, env: "RobosuiteEnv") -> dict[str, bool]:
        stages = super().stages(env)
        return stages | {"hover": stages["lift"] and self.above_target(env)}

    def partial_value(self, env: "RobosuiteEnv") -> float:
        above = self.above_target(env)
        if not env.grasped():
            # an object released above its target falls: it keeps the value of having been brought there
            return max(_reach_value(env), 0.5 if above and _is_lifted(env) else 0)
        distance = np.linalg.norm((self.target(env) - env.object_pos())[:2])
        lift = 0.5 if above else _lift_value(env, CARRY_HEIGHT)
        return float(lift + 0.2 * (1 - np.tanh(10 * distance)))


@dataclass(frozen=True)
class PlaceCanGoal(PlaceGoal):
    """Place the can in its own compartment of the bin, the far one. robosuite judges success."""
    compartment: int = 3        # index into robosuite's target_bin_placements

    def target(self, env: "RobosuiteEnv") -> np.ndarray:
        return env.sim_env.target_bin_placements[self.compartment].copy()

    def margin(self, env: "RobosuiteEnv") -> np.ndarray:
        return env.sim_env.bin_size[:2] / 4


@dataclass(frozen=True)
class PlaceCanNearGoal(PlaceCanGoal):
    """Place the can in the compartment near the robot, judged as robosuite judges the can's own compartment."""
    compartment: int = 2

    def is_success(self, env: "RobosuiteEnv") -> bool:
        pos = env.object_pos()
        in_bin = not env.sim_env.not_in_bin(pos, self.compartment)
        closeness = 1 - np.tanh(10 * np.linalg.norm(env.eef_pos() - pos))
        return bool(in_bin and closeness < 0.6)


class PlaceNutGoal(PlaceGoal):
    """Place the nut on the square peg. robosuite judges success."""
    aligned = True

    def target(self, env: "RobosuiteEnv") -> np.ndarray:
        return env.sim.data.body_xpos[env.sim_env.peg1_body_id].copy()

    def margin(self, env: "RobosuiteEnv") -> float:
        return 0.03


GOALS = {
    "lift_cube": LiftGoal(0.04),
    "push_cube": PushGoal(PUSH_DISTANCE),
    "place_can": PlaceCanGoal(),
    "place_can_near": PlaceCanNearGoal(),
    "place_nut": PlaceNutGoal(),
    "lift_nut": LiftNutGoal(0.08),
}


@dataclass(frozen=True)
class Task:
    """A robosuite scene with one object that all its goals are about."""
    goals: tuple[str, ...]      # keys of GOALS; the first is the default
    body: str                   # MuJoCo body of the object
    grasp_site: str = ""        # MuJoCo site that the gripper grasps; default: the body's position
    round_object: bool = False  # a round object can be grasped at any angle


TASKS = {
    "Lift": Task(("lift_cube", "push_cube"), "cube_main"),
    "PickPlaceCan": Task(("place_can", "place_can_near"), "Can_main", round_object=True),
    "NutAssemblySquare": Task(("place_nut", "lift_nut"), "SquareNut_main", "SquareNut_handle_site"),
}
