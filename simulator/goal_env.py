"""`GoalConditionedEnv`: one particle env with a small API, for notebooks."""
from typing import Any

import numpy as np

from simulator.particles.env import ParticleEnv, check_goal
from simulator.particles.task import check_settings


class GoalConditionedEnv:
    """One particle env with a goal and four methods, for notebooks:

        env = GoalConditionedEnv(goal="move left")
        obs = env.reset()
        obs, reward, done, info = env.step(action)
        image = env.render()

    `goal` is an instruction in English or Korean, or a goal; without it each episode draws one. `obs["goal"]` is the
    instruction that is scored: give that to the policy. `info` has `success`, `truncated`, `goal`, `action_status`.
    GoalError: the goal is unknown. (ParticleEnv accepts unknown instructions, and does not score them.)
    """

    def __init__(self, width: int = 64, height: int = 64, goal: str | None = None, **settings: Any):
        check_settings(type(self).__name__, settings, ("goal",))
        self.goal = None if goal is None else check_goal(goal)
        self.env = ParticleEnv(width=width, height=height, **settings)
        self.action_space = self.env.action_space
        self.observation_space = self.env.observation_space

    def reset(self, seed: int | None = None, goal: str | None = None) -> dict[str, Any]:
        """Return the first observation {"image", "goal"}. `goal` replaces the env's own for this episode."""
        goal = self.goal if goal is None else check_goal(goal)
        return self.env.reset(seed=seed, options=None if goal is None else {"goal": goal})[0]

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        """Execute an action float32 [7] -> observation, reward, done, info."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or truncated, info | {"truncated": truncated}

    def render(self, scale: int = 1) -> np.ndarray:
        """Return an image uint8 [H*scale,W*scale,3]."""
        return self.env.task.render(scale=scale)[0]
