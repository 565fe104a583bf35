"""GoalKind, the base class of all goal kinds, and their registry.

A GoalKind has no state. Its methods take the goal (a `grammar.Goal`) and StateSummary objects of B environments.
W is the shorter side of the environment, 64 px by default. `@register_goal(name)` adds a kind: see README.md here.
"""
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.particles.state_summary import StateSummary

if TYPE_CHECKING:
    from simulator.particles.grammar import Goal, GoalReader

SPEED = 1.5             # speed that the expert gives to a particle, px/step
PUSH, PULL = 1, -1      # sign of the expert's force: away from its point, or towards it

GOAL_KINDS: dict[str, "GoalKind"] = {}


def register_goal(name: str) -> Callable[[type], type]:
    """Return a class decorator that registers a GoalKind under `name`, its word in the goal language."""
    def register(cls: type) -> type:
        GOAL_KINDS[name] = cls()
        return cls
    return register


def kind_of(goal: "Goal") -> "GoalKind":
    """Return the GoalKind that implements a goal."""
    return GOAL_KINDS[goal.kind].variant(goal)


class GoalKind:
    """Base of all goal kinds. A subclass needs `progress`, `target`, and for the expert `target_velocity` and
    `action_point`; everything else has a default."""
    argument: str | None = None             # name of the argument in the goal language, as in push(direction=left)
    values: tuple[str, ...] = ()            # values of this argument
    reward_scale = 0.05                     # reward per unit of progress
    reward_bound = 0.3                      # largest absolute dense reward of a step
    max_start_spread: float | None = None   # largest spread of a feasible start, fraction of W
    start_temperature = (0.0, 1.0)          # range of the particles' temperatures at the start
    start_extent: tuple[float, float] | None = None     # range of the group's extent, fraction of W; None: any
    expert_rank = 5                         # of goals that must hold at once, the expert starts with the lowest rank
    max_speed = 1.5 * SPEED                 # bound of `target_velocity`, px/step
    heat_strength: float | None = None      # the expert heats the group with this strength
    moves_one_particle = False              # the expert sets the velocity of particle `goal.ids[0]`
    max_strength = 3.0                      # of the expert's push or pull

    def variant(self, goal: "Goal") -> "GoalKind":
        """Return the kind that implements this goal: self, unless a name has two forms."""
        return self

    # --- the goal language ---

    def parse_arguments(self, reader: "GoalReader") -> dict[str, Any]:
        """Read the text between the parentheses; return the fields of the Goal. GoalError for a syntax error."""
        return {"argument": reader.keyword(self.argument, self.values)} if self.argument else {}

    def format_arguments(self, goal: "Goal") -> list[str]:
        """Return the arguments as in the goal language."""
        return [f"{self.argument}={goal.argument}"] if self.argument else []

    def slots(self, goal: "Goal") -> list[str]:
        """Return the slots of the arguments (see `goals.goal_slots`)."""
        return [goal.argument] if goal.argument else []

    # --- measures ---

    def progress(self, goal: "Goal", now: StateSummary, start: StateSummary, size: np.ndarray) -> np.ndarray:
        """Return the progress [B] in the goal's own unit; its increase is rewarded."""
        raise NotImplementedError

    def target(self, goal: "Goal", start: StateSummary, size: np.ndarray) -> np.ndarray | float:
        """Return the progress at which the goal's main condition holds, [B] or a number."""
        raise NotImplementedError

    def is_success(self, goal: "Goal", now: StateSummary, start: StateSummary, size: np.ndarray) -> np.ndarray:
        """Return whether the goal is reached, bool [B]."""
        return self.progress(goal, now, start, size) >= self.target(goal, start, size)

    def reward(self, goal: "Goal", now: StateSummary, before: StateSummary, start: StateSummary,
               size: np.ndarray) -> np.ndarray:
        """Return the dense reward [B] of one step, without the reward for success.

        Progress counts up to the target only. More must not pay while the rest of the goal is not fulfilled.
        """
        limit = self.target(goal, start, size)
        gain = np.minimum(self.progress(goal, now, start, size), limit)
        gain = gain - np.minimum(self.progress(goal, before, start, size), limit)
        return self.clip_reward(gain)

    def clip_reward(self, gain: np.ndarray) -> np.ndarray:
        return np.clip(self.reward_scale * gain, -self.reward_bound, self.reward_bound)

    # --- starts ---

    def is_feasible_start(self, goal: "Goal", at: StateSummary, size: np.ndarray) -> bool:
        """Return whether the goal is neither reached nor out of reach in the state `at` of one environment."""
        if goal.ids and max(goal.ids) >= at.position.shape[1]:
            return False
        if self.is_success(goal, at, at, size)[0]:
            return False
        # a scattered group must be gathered first, which takes longer than an episode
        if self.max_start_spread is not None and at.spread[0] > self.max_start_spread * min(size):
            return False
        return bool(self.is_reachable(goal, at, size))

    def is_reachable(self, goal: "Goal", at: StateSummary, size: np.ndarray) -> bool:
        """Return whether the target is far enough from the state `at` of one environment, and within reach."""
        return True

    def start_direction(self, goal: "Goal") -> tuple[float, float] | None:
        """Return the direction in which the group needs room at the start."""
        return None

    # --- expert ---

    def target_velocity(self, goal: "Goal", position: np.ndarray, current: StateSummary, initial: StateSummary,
                        size: np.ndarray) -> np.ndarray:
        """Return the velocity [B,N,2], px/step, that each particle should have; NaN where it does not matter."""
        raise NotImplementedError

    def action_point(self, goal: "Goal", current: StateSummary, initial: StateSummary,
                     size: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the point [B,2] at which the expert acts, and PUSH or PULL."""
        raise NotImplementedError

    def offset_to_target(self, goal: "Goal", at: StateSummary) -> np.ndarray:
        """Return the way [B,2], px, of particle `goal.ids[0]` to its target (if `moves_one_particle`)."""
        raise NotImplementedError

    def handover_target(self, goal: "Goal", initial: StateSummary, size: np.ndarray,
                        radius: np.ndarray) -> np.ndarray | float:
        """Return the progress from which the expert serves another goal that must hold at once.

        It depends on what the image shows: a learner does not see how the episode began. radius [B,N] in px.
        """
        return self.target(goal, initial, size)


def format_number(value: float) -> str:
    """Return the shortest text that reads back as the same number."""
    return repr(float(value)).removesuffix(".0")


def dispersion(goal: "Goal", at: StateSummary) -> np.ndarray:
    """Return the spread [B], px, of the goal's particles: `goal.ids`, or all."""
    if not goal.ids:
        return at.spread
    position = at.position[:, list(goal.ids)]
    return np.sqrt(((position - position.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))
