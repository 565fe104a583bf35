"""Configuration and spaces of the robot arm environments: actions, proprioception, `RobosuiteConfig`."""
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from simulator.registry import EnvError
from simulator.robosuite.tasks import TASKS, GoalError, check_choice
from simulator.spaces import InstructionSpace, NamedDiscrete

ACTIONS = ("backward", "forward", "left", "right", "up", "down", "close gripper", "open gripper")
CLOSE_GRIPPER, OPEN_GRIPPER = 6, 7
ACTION_VECTORS = np.zeros((8, 7), np.float32)
ACTION_VECTORS[range(6), [0, 0, 1, 1, 2, 2]] = [-0.5, 0.5, -0.5, 0.5, 0.5, -0.5]   # 0.5: 2.5 cm per control step
ACTION_VECTORS[[CLOSE_GRIPPER, OPEN_GRIPPER], 6] = 1, -1

# robomimic's names of the parts of `proprio` and their sizes: position (m), quaternion (xyzw), finger joints (m)
PROPRIO = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
PROPRIO_LOW = np.array([-1, -1, 0, -1, -1, -1, -1, -0.05, -0.05], np.float32)
PROPRIO_HIGH = np.array([1, 1, 2, 1, 1, 1, 1, 0.05, 0.05], np.float32)

MAX_INSTRUCTION_LENGTH = 500        # characters
CAMERAS = ("robot0_eye_in_hand", "agentview", "frontview", "birdview", "sideview", "robot0_robotview")
ROBOTS = ("Panda", "Sawyer", "IIWA", "Jaco", "Kinova3", "UR5e")
ACTION_SPACES = ("discrete", "continuous")
REWARDS = ("progress", "shaped", "sparse")
LIMITS = {"resolution": 1024, "control_freq": 500, "action_repeat": 1000, "gripper_repeat": 1000, "max_steps": 10**6}


def _as_tuple(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


@dataclass(frozen=True)
class RobosuiteConfig:
    """The configuration of a robot arm environment. EnvError for a wrong value, GoalError for a wrong goal."""
    task: str = "PickPlaceCan"
    robot: str = "Panda"
    cameras: tuple = ("robot0_eye_in_hand",)
    resolution: int = 84            # pixels, the sides of each camera's image
    control_freq: int = 20          # control steps per second
    action_space: str = "discrete"
    action_repeat: int = 1          # control steps per action
    gripper_repeat: int = 1         # control steps per named gripper action
    proprioception: bool = False
    reward: str = "progress"
    max_steps: int = 200            # actions per episode
    goals: tuple = ()               # default: the task's first goal

    def __post_init__(self):
        check_choice("task", self.task, TASKS)
        task_goals = TASKS[self.task].goals
        object.__setattr__(self, "goals", _as_tuple(self.goals) or task_goals[:1])
        object.__setattr__(self, "cameras", _as_tuple(self.cameras))
        for goal in self.goals:
            check_choice("goal", goal, task_goals, GoalError)
        for camera in self.cameras:
            check_choice("camera", camera, CAMERAS)
        if not self.cameras:
            raise EnvError(f"cameras is empty: choose at least one from {', '.join(CAMERAS)}")
        check_choice("robot", self.robot, ROBOTS)
        check_choice("action space", self.action_space, ACTION_SPACES)
        check_choice("reward", self.reward, REWARDS)
        for name, largest in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= largest:
                raise EnvError(f"{name} must be a whole number from 1 to {largest}, not {value!r}")

    @property
    def discrete(self) -> bool:
        """Whether actions are named ones (indices into ACTIONS)."""
        return self.action_space == "discrete"

    def spaces(self) -> tuple[spaces.Dict, spaces.Space]:
        """Return the observation space and the action space."""
        image_shape = (self.resolution, self.resolution * len(self.cameras), 3)
        observation = {"image": spaces.Box(0, 255, image_shape, np.uint8),
                       "goal": InstructionSpace()}
        if self.proprioception:
            observation["proprio"] = spaces.Box(PROPRIO_LOW, PROPRIO_HIGH)
        action = NamedDiscrete(ACTIONS) if self.discrete else spaces.Box(-1, 1, (7,), np.float32)
        return spaces.Dict(observation), action
