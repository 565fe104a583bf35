"""`RobosuiteVectorEnv`: several robot arms, each in its own process."""
import atexit
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState

from simulator.api import GoalVectorEnv
from simulator.registry import EnvError
from simulator.robosuite.commands import instructions_by_goal
from simulator.robosuite.env import RobosuiteEnv
from simulator.robosuite.env_config import OPEN_GRIPPER, RobosuiteConfig
from simulator.robosuite.expert import expert_action
from simulator.robosuite.rendering import setup_mujoco_gl

OPTION_OF_ONE_ENV = {"goals": "goal", "instructions": "instruction", "monitor_goals": "monitor_goal"}


# --- in a worker process ----------------------------------------------------------------------------------------
class _Worker(RobosuiteEnv):
    """Env `index` of a RobosuiteVectorEnv. Arguments for all envs arrive as lists; it takes its own item."""

    def __init__(self, index: int, **settings: Any):
        # both signals reach the whole process group; the trainer finishes its step and saves, which requires workers
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        super().__init__(**settings)
        self.index = index
        self.single_episode = False
        self.finished = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        autoreset = options is None     # RobosuiteVectorEnv.reset always passes options
        self.finished = self.single_episode and autoreset
        if self.finished:
            return self.observe(), self.reset_info()
        options = options or {}
        self.single_episode = options.get("single_episode", self.single_episode)
        own_options = {name: options[key][self.index] for key, name in OPTION_OF_ONE_ENV.items()
                       if options.get(key) is not None}
        return super().reset(seed=seed, options=own_options)

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        if self.finished:
            return self.observe(), 0.0, False, False, self.reset_info()
        return super().step(action)

    def restore(self, states: list[dict]) -> dict[str, Any]:
        self.single_episode = self.finished = False
        return super().restore(states[self.index])

    def expert_labels(self, goals: list[str | None]) -> tuple[int | np.ndarray, np.ndarray]:
        """Return the expert's action and `object_xy` for this env's item of `goals` (None: the episode's goal)."""
        goal = goals[self.index] or self.goal
        return expert_action(self, goal), self.object_xy(goal)


class _EnvFactory:
    """Make env `index` in its worker process.

    Gymnasium also calls it in the parent process, for the spaces. There it returns an env with spaces only, because a
    process must not fork after it has rendered.
    """

    def __init__(self, index: int, settings: dict[str, Any], env_config: RobosuiteConfig):
        self.index = index
        self.settings = settings
        self.env_config = env_config
        self.parent_pid = os.getpid()

    def __call__(self) -> gymnasium.Env:
        if os.getpid() != self.parent_pid:
            return _Worker(self.index, **self.settings)
        env = gymnasium.Env()
        env.observation_space, env.action_space = self.env_config.spaces()
        return env


# --- in the parent process --------------------------------------------------------------------------------------
@atexit.register
def _kill_workers() -> None:
    """Kill the workers of envs that were not closed: at exit multiprocessing sends SIGTERM, which they ignore."""
    for process in multiprocessing.active_children():
        if process.name.startswith("Worker<RobosuiteVectorEnv>"):
            process.kill()


class RobosuiteVectorEnv(GoalVectorEnv, AsyncVectorEnv):
    """E robot arms, each in its own process. Autoreset mode: SAME_STEP.

    Arguments: those of RobosuiteEnv. A worker ends with its parent process; it ignores SIGINT and SIGTERM.

    `reset(seed=int or E ints, options={"goals", "instructions", "monitor_goals"})`: lists of E items that set the
    first episode; None items are sampled. With the option `single_episode` an env stays in its last state after its
    episode until the next reset.

    `infos["success"]` is set at every step. When an episode ends, `infos["final_obs"]` holds its last observation and
    `infos["episode_metrics"]` its metrics, see `simulator/robosuite/env.py`.
    """

    def __init__(self, num_envs: int, instructions: dict[str, list[str]] | None = None, render_images: bool = True,
                 **settings: Any):
        self.settings = RobosuiteConfig(**settings)
        self.render_images = render_images
        self.instructions = instructions_by_goal() if instructions is None else instructions
        self.goals = self.settings.goals
        self.goal_vocab = tuple(f"1 {goal}" for goal in sorted(self.goals))
        self.current_goals = [self.goals[0]] * num_envs
        setup_mujoco_gl(render_images)
        settings = settings | {"instructions": self.instructions, "render_images": render_images}
        super().__init__([_EnvFactory(i, settings, self.settings) for i in range(num_envs)], shared_memory=False,
                         autoreset_mode=AutoresetMode.SAME_STEP)

    # --- Gymnasium's API ----------------------------------------------------------------------------------------
    def reset(self, *, seed: int | Sequence[int] | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Start a new episode in every env."""
        if seed is not None:
            seed = [int(s) for s in np.atleast_1d(seed)] if np.ndim(seed) else int(seed)
        obs, infos = super().reset(seed=seed, options={"single_episode": False} | (options or {}))
        self.current_goals = list(infos["goal"])
        return obs, infos

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Apply actions [E] or [E,7]. Rewards are float32 [E], terminated and truncated bool [E]."""
        obs, rewards, terminated, truncated, infos = self._check_alive(super().step, actions)
        if "final_info" in infos:
            infos["episode_metrics"] = infos.pop("final_info")["episode_metrics"]
            infos["success"] = infos["success"] | terminated        # else that of the next episode's start
        self.current_goals = list(infos["goal"])
        return obs, rewards.astype(np.float32), terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...]:
        """Return the E images of RobosuiteEnv.render."""
        return self.call("render")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple:
        """Call a method of every env. Return the E results."""
        return self._check_alive(super().call, name, *args, **kwargs)

    @staticmethod
    def _check_alive(function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call `function`. EnvError if a worker process has ended; Gymnasium reports a broken pipe only."""
        try:
            return function(*args, **kwargs)
        except (EOFError, ConnectionError) as error:
            raise EnvError("the process of a robot arm has ended, perhaps out of memory: use fewer envs "
                           "(env.num_envs, --workers) and continue with train.resume") from error

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End every worker. Gymnasium would wait forever for one that is dead or was interrupted in a step."""
        interrupted = self._state != AsyncState.DEFAULT
        dead = not all(process.is_alive() for process in self.processes)
        self._state = AsyncState.DEFAULT
        terminate = terminate or interrupted or dead
        if terminate:
            for process in self.processes:      # workers ignore the SIGTERM that Gymnasium sends
                process.kill()
        super().close_extras(timeout, terminate)

    # --- training -----------------------------------------------------------------------------------------------
    def expert_labels(self, goals: Sequence[str | None]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the expert's labels and its actions [E,...] for E goals (None: the episode's goal).

        Labels: `active_goal` int64 [E], all 0, and `object_xy` float32 [E,2,2], see RobosuiteEnv.object_xy.
        """
        actions, object_xy = zip(*self.call("expert_labels", list(goals)), strict=True)
        labels = {"active_goal": np.zeros(self.num_envs, np.int64), "object_xy": np.stack(object_xy)}
        return labels, np.stack([np.asarray(action, self.single_action_space.dtype) for action in actions])

    def noop_actions(self) -> np.ndarray:
        """Return actions [E,...] that do not move the end effector. A named one opens the gripper."""
        if self.settings.discrete:
            return np.full(self.num_envs, OPEN_GRIPPER)
        return np.zeros((self.num_envs, 7), np.float32)

    def state(self) -> dict[str, list[str]]:
        """Return the training state: for each env the JSON of RobosuiteEnv.state."""
        return {"envs": [json.dumps(state) for state in self.call("state")]}

    def restore(self, state: dict[str, list[str]]) -> dict[str, Any]:
        """Return to a `state()`. Return its observation."""
        states = [json.loads(text) for text in state["envs"]]
        observations = self.call("restore", states)
        self.current_goals = [one["goal"] for one in states]
        parts = {key: [obs[key] for obs in observations] for key in observations[0]}
        return {key: tuple(values) if key == "goal" else np.stack(values) for key, values in parts.items()}
