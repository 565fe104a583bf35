"""A robosuite arm as a Gymnasium environment, controlled from camera images and an instruction.

Tasks and goals: see `simulator/robosuite/tasks.py`. The first goal of a task is its default.

| observation | type | content |
|---|---|---|
| image | uint8 [H,W*n,3] | the images of the n `cameras` side by side, upright |
| goal | str, at most 500 characters, NFC | the instruction |
| proprio | float32 [9] | see below; with `proprioception` only |

`proprio`: position of the end effector [3] (m, world frame), its quaternion [4] (xyzw), finger joints [2] (m).

| action | type | content |
|---|---|---|
| discrete | index of `ACTIONS` | six moves (2.5 cm commanded per control step), close gripper, open gripper |
| continuous | float32 [7] in [-1, 1] | move [3] (1: 5 cm), rotation vector [3] (1: 0.5 rad), gripper [1] |

The gripper's number closes it if positive and opens it if negative; 0 changes nothing. Actions are in the robot's base
frame. An action is repeated for `action_repeat` control steps of 1 / `control_freq` s, a named gripper action for
`gripper_repeat` ones. After 10 control steps the fingers are fully open or closed. After fewer, the image does not show
how firmly they hold, and a policy without memory keeps closing them.

| reward | value of a step |
|---|---|
| progress | the change of the shaped value; an episode's return is at most 1 |
| shaped | the shaped value in [0, 1]; it rewards waiting before the goal |
| sparse | 1 at success, else 0 |

The shaped value follows robosuite's: reach up to 0.1, grasp 0.35, lift up to 0.5, hover up to 0.7, success 1.
An instruction that matches no goal gets no reward and no success.

Start: robosuite's own distribution of the object and the arm. Episode k after `reset(seed)` depends on (seed, k) and
its actions only; its start does not depend on the goal.
Endings: success terminates the episode; `max_steps` actions truncate it.

`info` holds `success`, `goal` (None if the instruction matches no goal) and `note` (the last stage reached). At an
episode's end `info["episode_metrics"]` holds `success`, `goal`, `stage_reach`, `stage_grasp`, `stage_lift`,
`stage_hover` (1 or 0, NaN for a stage that the goal does not have) and, with the option `monitor_goal`,
`monitor_success`: whether that goal held after some step.

Images omit the reflection in the floor, which is faint. Shadows are off because no light of robosuite casts any. Both
render passes cost most of the time.
"""
import re
from typing import Any

import gymnasium
import numpy as np

from simulator.commands import clean_instruction
from simulator.registry import EnvError
from simulator.robosuite.commands import instructions_by_goal, parse_instruction, sample_instruction
from simulator.robosuite.env_config import (
    ACTION_VECTORS,
    ACTIONS,
    CLOSE_GRIPPER,
    RobosuiteConfig,
)
from simulator.robosuite.expert import expert_action
from simulator.robosuite.simulation import RobosuiteSim
from simulator.robosuite.tasks import GOALS, STAGES, GoalError, check_choice

RESET_OPTIONS = ("goal", "instruction", "monitor_goal")
GOAL_NAME = re.compile("[a-z]+(_[a-z]+)+")      # an instruction is never written like this



class RobosuiteEnv(RobosuiteSim, gymnasium.Env):
    """One robot arm, see the top of this file. Registered as FlexibleWorld/Robosuite-v0.

    `settings` are the fields of RobosuiteConfig. `instructions` maps each goal to its instructions; by default those
    of the training split. `reset(options={"goal": a goal or an instruction, "instruction": the text to show,
    "monitor_goal": a goal})`; by default the goal and its instruction are sampled.
    """
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, task: str = "PickPlaceCan", *, render_mode: str | None = None,
                 instructions: dict[str, list[str]] | None = None, render_images: bool = True, **settings: Any):
        config = RobosuiteConfig(task, **settings)
        self.goals = config.goals
        self.discrete = config.discrete
        self.render_mode = render_mode
        self.instructions = instructions_by_goal() if instructions is None else instructions
        self.observation_space, self.action_space = config.spaces()
        self.seed, self.episode = None, -1
        self.action_history: list | None = None
        super().__init__(config, render_images)

    # --- goal ---------------------------------------------------------------------------------------------------
    def target(self, goal: str | None = None) -> np.ndarray | None:
        """Return where the object should be placed [3], metres; None for goals that do not place it."""
        return GOALS[goal or self.goal].target(self)

    def above_target(self, goal: str | None = None) -> bool:
        """Return whether the object is over its target."""
        return GOALS[goal or self.goal].above_target(self)

    def is_success(self, goal: str | None = None) -> bool:
        """Return whether the goal holds now."""
        return GOALS[goal or self.goal].is_success(self)

    def stages(self) -> dict[str, bool]:
        """Return which of the goal's stages hold now."""
        return GOALS[self.goal].stages(self)

    def shaped_value(self) -> float:
        """Return the progress towards the goal, in [0, 1]."""
        return GOALS[self.goal].shaped_value(self)

    def object_xy(self, goal: str | None = None) -> np.ndarray:
        """Return float32 [2,2]: where the first camera sees the grasp position and the target, in [0, 1] of the
        image. NaN for what it does not see and for a goal without a target."""
        target = self.target(goal)
        return self.locate_in_image([self.grasp_pos(), np.full(3, np.nan) if target is None else target])

    # --- Gymnasium's API ----------------------------------------------------------------------------------------
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start the next episode. EnvError for a wrong option or instruction, GoalError for an unknown goal name."""
        super().reset(seed=seed)
        for option in options or ():
            check_choice("reset option", option, RESET_OPTIONS)
        if seed is not None or self.seed is None:
            self.seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
            self.episode = -1
        self.episode += 1
        self.start_episode(**(options or {}))
        return self.observe(), self.reset_info()

    def observe(self) -> dict[str, Any]:
        """Return the observation of the current state."""
        obs = {"image": self.image(), "goal": self.instruction}
        return obs | {"proprio": self.proprio()} if self.settings.proprioception else obs

    def reset_info(self) -> dict[str, Any]:
        """Return the info of an episode's start."""
        note = "" if self.scored else f"the instruction matches no goal of this task: {', '.join(self.task.goals)}"
        return {"success": False, "goal": self.goal if self.scored else None, "note": note}

    def start_episode(self, goal: str | None = None, instruction: str | None = None,
                      monitor_goal: str | None = None) -> None:
        """Set the goal and the start state. The start follows from `seed` and `episode` only."""
        rng = np.random.default_rng([self.seed, self.episode])
        sim_rng = rng.spawn(1)[0]
        sampled_goal = self.goals[rng.integers(len(self.goals))]
        parsed_goal, text = self.parse_goal(goal) if goal else (sampled_goal, None)
        if monitor_goal:
            check_choice("goal", monitor_goal, self.task.goals, GoalError)
        goal = parsed_goal or sampled_goal
        instruction = clean_instruction(instruction or text or sample_instruction(self.instructions, goal, rng))
        sim = self.sim      # EnvError if the env is closed
        self.goal, self.instruction = goal, instruction
        self.scored = parsed_goal is not None
        self.monitor_goal, self.monitor_success = monitor_goal, False
        self.action_history = []
        self.sim_env.rng.bit_generator.state = sim_rng.bit_generator.state
        self.sim_env.reset()
        sim.forward()
        self.init_progress()

    def init_progress(self) -> None:
        """Start to measure progress from the current state."""
        self.cached_image = None
        self.object_start = self.object_pos()
        self.stages_reached = self.stages()
        self.prev_value = self.shaped_value()

    def parse_goal(self, request: str) -> tuple[str | None, str | None]:
        """Return (goal or None, instruction or None) of a goal or an instruction. GoalError for a wrong goal name."""
        request = str(request)
        if request in self.task.goals or GOAL_NAME.fullmatch(request):
            check_choice("goal", request, self.task.goals, GoalError)
            return request, None
        return parse_instruction(request, self.task.goals), request

    def apply_action(self, action: Any) -> None:
        """Repeat an action for its control steps, without reward. EnvError for an action outside the space."""
        if self.action_history is None:
            raise EnvError("no episode has started: call reset() first")
        if self.discrete and not self.action_space.contains(action):
            raise EnvError(f"unknown action {action!r}: choose from 0 to {len(ACTIONS) - 1}, {', '.join(ACTIONS)}")
        if not self.discrete and np.shape(action) != (7,):
            raise EnvError(f"an action is 7 numbers, not an array of shape {np.shape(action)}")
        sim = self.sim      # EnvError if the env is closed
        if self.discrete:
            vector = ACTION_VECTORS[int(action)]
        else:
            vector = np.clip(np.nan_to_num(np.asarray(action, float)), -1, 1)
        self.action_history.append(int(action) if self.discrete else vector.tolist())
        self.cached_image = None
        moves_gripper = self.discrete and action >= CLOSE_GRIPPER
        for _ in range(self.settings.gripper_repeat if moves_gripper else self.settings.action_repeat):
            self.sim_env.step(vector)
        sim.forward()       # robosuite leaves positions one substep behind

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """Apply an action: an index of ACTIONS, or float [7]."""
        self.apply_action(action)
        success = self.is_success() and self.scored
        value = self.shaped_value()
        self._record_stages(success)
        self.monitor_success |= bool(self.monitor_goal) and self.is_success(self.monitor_goal)
        rewards = {"progress": value - self.prev_value, "shaped": value, "sparse": float(success)}
        reward = float(rewards[self.settings.reward]) if self.scored else 0.0
        self.prev_value = value
        truncated = not success and len(self.action_history) >= self.settings.max_steps
        info = {"success": success, "goal": self.goal if self.scored else None, "note": self.note()}
        if success or truncated:
            info["episode_metrics"] = self.episode_metrics(success)
        return self.observe(), reward, success, truncated, info

    def _record_stages(self, success: bool = False) -> None:
        """Add the stages that hold now to those reached in this episode; success completes all of them."""
        for name, holds in self.stages().items():
            self.stages_reached[name] |= holds or success

    def episode_metrics(self, success: bool) -> dict[str, Any]:
        """Return the metrics of an episode that ends now."""
        metrics = {"success": success, "goal": self.goal}
        for name in STAGES:
            metrics[f"stage_{name}"] = float(self.stages_reached.get(name, np.nan))
        return metrics | ({"monitor_success": self.monitor_success} if self.monitor_goal else {})

    def render(self) -> np.ndarray:
        """Return uint8 [256,256*m,3]: the policy's cameras and the whole scene side by side."""
        return self.render_cameras(tuple(dict.fromkeys((*self.settings.cameras, "agentview"))), 256)

    @staticmethod
    def describe_action(action: Any) -> str:
        """Return an action in words."""
        return describe_action(action)

    def note(self) -> str:
        """Return the last stage reached so far, or an empty string."""
        return next((name for name in reversed(STAGES) if self.stages_reached.get(name)), "")

    # --- training -----------------------------------------------------------------------------------------------
    def expert_action(self, goal: str | None = None) -> int | np.ndarray:
        """Return the scripted expert's action, by default for the episode's goal."""
        return expert_action(self, goal or self.goal)

    def state(self) -> dict[str, Any]:
        """Return the training state as plain data: an episode follows from its seed and its actions."""
        return {"seed": self.seed, "episode": self.episode, "goal": self.goal, "text": self.instruction,
                "scored": self.scored, "actions": list(self.action_history)}

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Replay the episode of a `state()`. Return its observation."""
        self.seed, self.episode = int(state["seed"]), int(state["episode"])
        self.start_episode(state["goal"], state["text"])
        self.scored = state["scored"]
        for action in state["actions"]:
            self.apply_action(action)
            self._record_stages()
        self.prev_value = self.shaped_value()
        return self.observe()

    def snapshot(self) -> dict[str, Any]:
        """Return what a demonstration records before an action.

        `state`: float64 [S], MuJoCo's; `obs`: see `observation_dict`; `labels`: for each goal of the task the
        expert's `actions` and `object_xy`.
        """
        labels = {goal: {"actions": np.asarray(expert_action(self, goal)), "object_xy": self.object_xy(goal)}
                  for goal in self.task.goals}
        return {"state": self.sim.get_state().flatten(), "obs": self.observation_dict(), "labels": labels}

    def set_state(self, state: np.ndarray, first: bool = False) -> None:
        """Load the MuJoCo state of a `snapshot()`. `first`: measure progress from this state on."""
        self.load_state(state)
        if first:
            self.init_progress()


def describe_action(action: Any) -> str:
    """Return an action in words."""
    if np.ndim(action) == 0:
        return ACTIONS[int(action)]
    return "move ({:+.2f}, {:+.2f}, {:+.2f}), turn ({:+.2f}, {:+.2f}, {:+.2f}), gripper {:+.1f}".format(*action)


gymnasium.register("FlexibleWorld/Robosuite-v0", entry_point="simulator.robosuite.env:RobosuiteEnv")
