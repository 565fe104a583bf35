"""The particles as Gymnasium environments: an image and an instruction in, an action out.

Observation: {"image": uint8 [H,W,3], "goal": the instruction}. Action: float32 [7], see simulator.particles.actions.
Each step executes the action and advances the simulation once. Success terminates, the time limit truncates.
Rewards: simulator.particles.goals.

    ParticleVectorEnv    many envs at once: see simulator.api.GoalVectorEnv
    ParticleEnv          one env, registered as FlexibleWorld/Particles-v0
"""
import difflib
import re
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from simulator.api import GoalVectorEnv
from simulator.commands import clean_instruction
from simulator.particles import expert
from simulator.particles import goals as G
from simulator.particles.actions import Action, ActionStatus
from simulator.particles.parser import instruction_to_goal, parse_instruction
from simulator.particles.task import ParticleTask, check_settings
from simulator.registry import EnvError
from simulator.spaces import InstructionSpace

REJECTION_NOTES = {
    "unknown": "no known goal recognised",
    "ambiguous": "more goals than one, or contradictory ones",
    "refused": "not a request that this environment can fulfil",
}
GOAL_SYNTAX = re.compile(r"\s*[a-z_]+\(")       # how a goal in the goal language begins


def parse_goal_or_text(text: str) -> G.Plan | None:
    """Return the Plan of an instruction or of a goal in the goal language; None for an unknown instruction.

    GoalError: the text is empty, or has a syntax error in the goal language.
    """
    if not text.strip():
        raise G.GoalError("the goal is empty: give an instruction or a goal, as in \"move left\" or "
                          "push(direction=left)")
    goal = text if GOAL_SYNTAX.match(text) else instruction_to_goal(text)
    return G.parse(goal) if goal else None


def check_goal(goal: str | G.Plan) -> str:
    """Return the text of a goal or instruction. GoalError: it is unknown; the message names near goals."""
    text = clean_instruction(str(goal))
    if parse_goal_or_text(text) is None:
        note = REJECTION_NOTES[parse_instruction(text)[1]]
        near = difflib.get_close_matches(text, map(str, G.GOALS), n=3, cutoff=0.0)
        raise G.GoalError(f"{note} in {text!r}: give an instruction, as in \"move left\", or a goal, as in "
                          f"{', '.join(near)}")
    return text


def make_observation_space(task: ParticleTask) -> spaces.Dict:
    """Return the observation space of one env."""
    width, height = task.size.astype(int)
    return spaces.Dict({"image": spaces.Box(0, 255, (height, width, 3), np.uint8), "goal": InstructionSpace()})


class ParticleVectorEnv(GoalVectorEnv):
    """Many particle envs. `settings` are the parameters of ParticleTask.

    `reset(seed=int or list of E ints, options=...)`: see simulator.api for the options and for `infos`. Goals are
    Plans or texts in the goal language. With `monitor_goals` the start states are those of the monitored goals, so
    that an episode differs from that of the monitored goal in its instruction only.
    """
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, num_envs: int, render_mode: str | None = None, **settings: Any):
        check_settings(type(self).__name__, settings, ("render_mode",))
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.task = ParticleTask(num_envs, **settings)
        self.goal_vocab = self.task.goal_vocab
        self.instructions = self.task.instructions
        self.single_observation_space = make_observation_space(self.task)
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seed_rng = np.random.default_rng()
        self._clear_options()

    def _clear_options(self) -> None:
        self.single_episode = False
        self.finished = np.zeros(self.num_envs, bool)           # with single_episode: the episode has ended
        self.monitor_goals = [None] * self.num_envs
        self.monitor_success = np.zeros(self.num_envs, bool)

    def _observe(self) -> dict[str, Any]:
        return {"image": self.task.render(), "goal": tuple(self.task.texts)}

    # --- Gymnasium's API ---
    def reset(self, *, seed: int | Sequence[int] | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the first observation of each env, and {}. An int seeds env b with `seed + b`."""
        options = options or {}
        if seed is None:        # Gymnasium's convention: continue from the last seed
            seed = int(self._seed_rng.integers(2**31))
        else:
            self._seed_rng = np.random.default_rng(seed)
        is_int = isinstance(seed, int | np.integer)
        self.task.seeds[:] = seed + np.arange(self.num_envs) if is_int else np.asarray(seed)
        self.task.episode[:] = 0
        self._clear_options()
        self.single_episode = options.get("single_episode", False)
        self._start_first_episode(self._plans(options.get("goals")), options.get("instructions"),
                                  self._plans(options.get("monitor_goals")))
        return self._observe(), {}

    def _plans(self, goals: Sequence[Any] | None) -> list[G.Plan | None]:
        goals = [None] * self.num_envs if goals is None else goals
        return [G.parse(str(goal)) if goal else None for goal in goals]

    def _start_first_episode(self, goals: list[G.Plan | None], texts: Sequence[str | None] | None,
                             monitor_goals: list[G.Plan | None]) -> None:
        monitored = [b for b, goal in enumerate(monitor_goals) if goal]
        starts = [monitor_goals[b] or goals[b] for b in range(self.num_envs)]
        self.task.start_episode(np.arange(self.num_envs), starts, texts)
        for b in monitored:
            goal = goals[b] or monitor_goals[b]
            text = texts[b] if texts else self.sample_instruction(goal, np.random.default_rng(self.task.seeds[b]))
            self.task.set_goals([b], [goal], [text])
        self.monitor_goals = monitor_goals

    def step(self, actions: np.ndarray) -> tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute actions float32 [E,7] -> observation, rewards float32 [E], terminated, truncated bool [E], infos."""
        if self.finished.any():
            actions = np.array(actions)
            actions[self.finished] = self.noop_actions()[self.finished]
        rewards, success, truncated, status = self.task.step(actions)
        rewards[self.finished] = 0
        success &= ~self.finished
        truncated &= ~self.finished
        self._monitor()
        obs = self._observe()
        infos = {"success": success, "action_status": status}
        ended = success | truncated
        if ended.any():
            infos |= self._end_episodes(obs, success, ended)
        return obs, rewards, success, truncated, infos

    def _monitor(self) -> None:
        """Record whether the monitored goals hold. Of a plan only the first goal counts."""
        task = self.task
        for b in np.flatnonzero(~self.finished):
            if plan := self.monitor_goals[b]:
                holds = G.is_success(plan.goals[0], task.current[[b]], task.initial[[b]], task.size)[0]
                self.monitor_success[b] |= holds

    def _end_episodes(self, obs: dict[str, Any], success: np.ndarray, ended: np.ndarray) -> dict[str, Any]:
        """Return the infos of ended episodes. Begin the next ones, and write their first observation into `obs`."""
        final_obs = np.full(self.num_envs, None, object)
        for b in np.flatnonzero(ended):
            final_obs[b] = {"image": obs["image"][b].copy(), "goal": obs["goal"][b]}
        metrics = {"success": success.copy(),
                   "goal": np.array([self.task.group_name(plan) for plan in self.task.goals], object)}
        if any(self.monitor_goals):
            metrics["monitor_success"] = self.monitor_success.copy()
        if self.single_episode:
            self.finished |= ended
        else:
            self._autoreset(obs, np.flatnonzero(ended))
        return {"final_obs": final_obs, "_final_obs": ended, "episode_metrics": metrics, "_episode_metrics": ended}

    def _autoreset(self, obs: dict[str, Any], envs: np.ndarray) -> None:
        self.task.start_episode(envs)
        self.monitor_success[envs] = False
        for b in envs:
            self.monitor_goals[b] = None
        obs["image"][envs] = self.task.render(envs)
        obs["goal"] = tuple(self.task.texts)

    def render(self) -> tuple[np.ndarray, ...]:
        """Return an image uint8 [8*H,8*W,3] of each env."""
        return tuple(self.task.render(scale=8))

    # --- simulator.api.GoalVectorEnv ---
    @property
    def current_goals(self) -> list[G.Plan]:
        """The Plan of each env."""
        return self.task.goals

    def sample_goal(self, rng: np.random.Generator) -> G.Plan:
        """Return a random Plan."""
        return self.task.sample_goal(rng)

    def round_robin_goals(self, n: int) -> list[G.Plan]:
        """Return n Plans that cycle through all goals of this env."""
        return self.task.round_robin(range(n))

    def goal_slots(self, goal: G.Plan) -> set[str]:
        """Return the entries of `goal_vocab` that a Plan consists of."""
        return G.goal_slots(goal)

    def set_goals(self, envs: Sequence[int], goals: Sequence[G.Plan], instructions: Sequence[str]) -> dict[str, Any]:
        """Begin new episodes in the named envs from their present state, and return the observation of all envs."""
        self.task.set_goals(envs, goals, instructions)
        self.finished[envs] = False
        return self._observe()

    def can_relabel(self) -> np.ndarray:
        """Return for which envs another goal fits the image, bool [E]: its marks show the stage of the plan."""
        return self.task.stage == 0

    def expert_labels(self, goals: Sequence[G.Plan]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return {"active_goal": int64 [E], "object_xy": float32 [E,2,2]} and actions float32 [E,7].

        `object_xy` has the particle that `move_to(id=...)` or `move_toward` moves, and the one it goes to.
        """
        task, own_goals = self.task, self.task.goals
        task.goals = list(goals)
        actions = expert.expert_actions(task)
        active_goal = expert.active_goal_index(task)
        task.goals = own_goals
        object_xy = np.full((self.num_envs, 2, 2), np.nan, np.float32)
        for b, plan in enumerate(goals):
            goal = plan.goals[active_goal[b]]
            if goal.kind in ("move_to", "move_toward"):
                object_xy[b, :len(goal.ids)] = task.sim.position[b, list(goal.ids)] / task.size
        return {"active_goal": active_goal, "object_xy": object_xy}, actions

    def expert_actions(self) -> np.ndarray:
        """Return the actions of the scripted expert, float32 [E,7]. It knows the true state."""
        return expert.expert_actions(self.task)

    def noop_actions(self) -> np.ndarray:
        """Return actions float32 [E,7] that do nothing."""
        return expert.noop_actions(self.task)

    def random_actions(self, rng: np.random.Generator) -> np.ndarray:
        """Return actions float32 [E,7], uniform over the types and over the range of every parameter."""
        return expert.random_actions(self.task, rng)

    def state(self) -> dict[str, Any]:
        """Return everything that the future depends on, but for the options of the last reset."""
        return self.task.state()

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Go back to what `state()` returned, without the options of a reset; return the observation."""
        self._clear_options()
        self.task.restore(state)
        return self._observe()


class ParticleEnv(gymnasium.Env):
    """One particle env. `settings` are the parameters of ParticleTask.

    `reset(options={"goal": goal or instruction})` sets the goal of the episode. An instruction that names no known
    goal can be acted on, but is not scored: then `info["goal"]` is None and `info["note"]` says why.
    """
    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, render_mode: str | None = None, render_scale: int = 8, **settings: Any):
        check_settings(type(self).__name__, settings, ("render_mode", "render_scale"))
        self.render_mode = render_mode
        self.render_scale = render_scale
        self.task = ParticleTask(1, **settings)
        self.observation_space = make_observation_space(self.task)
        self.action_space = self.task.action_space
        self.scored = True

    def _observe(self) -> dict[str, Any]:
        return {"image": self.task.render()[0], "goal": self.task.texts[0]}

    def _info(self, success: bool = False, status: int = ActionStatus.OK) -> dict[str, Any]:
        goal = str(self.task.goals[0]) if self.scored else None
        name = ActionStatus(int(status)).name
        note = "" if status == ActionStatus.OK else name.lower()
        return {"success": bool(success), "goal": goal, "action_status": name, "note": note}

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the first observation and info. GoalError: the goal has a syntax error, or no start was found.
        EnvError: the instruction has characters that are not allowed."""
        super().reset(seed=seed)
        request = (options or {}).get("goal")
        request = None if request is None else str(request)
        plan = None if request is None else parse_goal_or_text(request)
        text = None if request is None or GOAL_SYNTAX.match(request) else clean_instruction(request)
        self.scored = request is None or plan is not None
        self.task.seeds[0] = self.np_random.integers(2**31) if seed is None else seed
        self.task.episode[0] = 0
        self.task.start_episode([0], [plan], [text])
        info = self._info()
        if not self.scored:
            info["note"] = REJECTION_NOTES[parse_instruction(request)[1]]
        return self._observe(), info

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Execute an action [7] -> observation, reward, terminated, truncated, info. EnvError: no reset yet."""
        if not self.task.episode[0]:
            raise EnvError("no episode has begun: call reset() first")
        rewards, success, truncated, status = self.task.step(np.asarray(action, np.float32)[None])
        if not self.scored:
            rewards[:] = 0
            success[:] = False
            truncated = self.task.steps >= self.task.max_steps
        return (self._observe(), float(rewards[0]), bool(success[0]), bool(truncated[0]),
                self._info(success[0], status[0]))

    def render(self) -> np.ndarray:
        """Return an image uint8 [H*render_scale,W*render_scale,3]."""
        return self.task.render(scale=self.render_scale)[0]

    @staticmethod
    def describe_action(action: np.ndarray) -> str:
        """Return an action in a few English words."""
        return Action.from_vector(action).describe()


gymnasium.register("FlexibleWorld/Particles-v0", entry_point="simulator.particles.env:ParticleEnv")
