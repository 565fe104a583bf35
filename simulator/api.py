"""The contract between an environment and the programs that train and evaluate a policy in it.

    GoalVectorEnv   what a vector env offers beyond Gymnasium's VectorEnv, with defaults
    EnvFamily       what an entry of `simulator.registry.REGISTRY` offers, with defaults

Legend: E envs, V entries of `goal_vocab`, Q numbers of proprioception.

Observation of a vector env: {"image": uint8 [E,H,W,3], "goal": tuple of E instruction texts, and for some
environments "proprio": float32 [E,Q]}. The autoreset mode is Gymnasium's SAME_STEP.

Options of `reset`, each a list of E items, None for an item that the env may choose:
    goals           goals of the first episode
    instructions    texts of the first episode
    monitor_goals   goals whose success is recorded besides, as `monitor_success`
and `single_episode`, a bool: an env whose episode has ended does not begin another. Until the next reset it ignores
its actions, its reward is 0, and it reports neither termination nor truncation.

Keys of `infos`:
    success          bool [E], every step
    final_obs        the last observation of each ended episode (with the mask `_final_obs`)
    episode_metrics  when an episode ends: {"success", "goal", further metrics: [E]} (mask `_episode_metrics`).
                     The key `episode` is left to gymnasium.wrappers.vector.RecordEpisodeStatistics.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from simulator.commands import clean_instruction, sample_instruction
from simulator.registry import EnvError


class GoalVectorEnv(VectorEnv):
    """Base class or mixin of goal-conditioned vector envs. It defines none of Gymnasium's own methods, so that
    `class MyVectorEnv(GoalVectorEnv, AsyncVectorEnv)` works.

    A subclass sets the attributes below. It overrides `expert_labels` if it has an expert, `set_goals` if a goal can
    change within an episode, and `state` and `restore` if a run can resume in the middle of an episode.
    """
    goals: Sequence[Any] = ()                       # the goals that an episode can ask for
    current_goals: Sequence[Any] = ()               # the goal of each env now [E]
    instructions: Mapping[str, Sequence[str]] = {}  # goal: its instruction texts
    goal_vocab: tuple[str, ...] = ()                # the slots that goals are made of

    # --- goals and instructions ---
    def sample_goal(self, rng: np.random.Generator) -> Any:
        """Return a random goal of this environment."""
        return self.goals[rng.integers(len(self.goals))]

    def round_robin_goals(self, n: int) -> list[Any]:
        """Return n goals that cycle through all goals of this environment."""
        return [self.goals[i % len(self.goals)] for i in range(n)]

    def sample_instruction(self, goal: Any, rng: np.random.Generator) -> str:
        """Return a random instruction text for a goal; the goal's own name if there is none."""
        return sample_instruction(self.instructions, goal, rng)

    def sample_instructions(self, rng: np.random.Generator, n: int) -> tuple[tuple[str, ...], np.ndarray]:
        """Return n instruction texts of random goals, and their slot labels, float32 [n,V]."""
        goals = [self.sample_goal(rng) for _ in range(n)]
        texts = tuple(self.sample_instruction(goal, rng) for goal in goals)
        return texts, self.slot_labels(goals)

    def goal_slots(self, goal: Any) -> set[str]:
        """Return the entries of `goal_vocab` that a goal consists of."""
        return {f"1 {goal}"}

    def slot_labels(self, goals: Sequence[Any]) -> np.ndarray:
        """Return which entries of `goal_vocab` each goal consists of: 0 or 1, float32 [len(goals),V]."""
        rows = [[slot in slots for slot in self.goal_vocab] for slots in map(self.goal_slots, goals)]
        return np.array(rows, np.float32).reshape(len(goals), len(self.goal_vocab))

    def set_goals(self, envs: Sequence[int], goals: Sequence[Any], instructions: Sequence[str]) -> dict[str, Any]:
        """Begin new episodes in the named envs from their present state, and return the observation of all envs."""
        raise EnvError("this environment cannot change its goal without a reset")

    # --- scripted actions ---
    def expert_labels(self, goals: Sequence[Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the expert's labels and its actions [E,...] in the present state, as if `goals` [E] had been asked.

        Labels: `active_goal` int64 [E], the number of the goal within its plan that the expert serves; `object_xy`
        float32 [E,2,2], (x, y) of the object and of its target as fractions of the image, NaN for none.
        """
        raise EnvError("this environment has no expert")

    def expert_actions(self) -> np.ndarray:
        """Return the expert's actions [E,...] from the true state. EnvError: this environment has no expert."""
        return self.expert_labels(self.current_goals)[1]

    def noop_actions(self) -> np.ndarray:
        """Return actions [E,...] that do nothing: by default the smallest ones that the action space has."""
        space = self.single_action_space
        if isinstance(space, spaces.Discrete):
            return np.full(self.num_envs, space.start)
        one = np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
        return np.repeat(one[None], self.num_envs, axis=0)

    def random_actions(self, rng: np.random.Generator) -> np.ndarray:
        """Return actions [E,...], uniform over the action space."""
        space = self.single_action_space
        if isinstance(space, spaces.Discrete):
            return space.start + rng.integers(space.n, size=self.num_envs)
        actions = rng.uniform(space.low, space.high, (self.num_envs, *space.shape))
        return actions.astype(space.dtype)

    # --- relabelling ---
    def can_relabel(self) -> np.ndarray:
        """Return for which envs another goal fits the present observation, bool [E]."""
        return np.ones(self.num_envs, bool)

    def relabel_goals(self, rng: np.random.Generator, fraction: float) -> tuple[dict[str, Any], np.ndarray]:
        """Return a training target for the present state, as if other instructions had been given; nothing changes.

        A `fraction` of the envs gets another goal, the others another text for the same goal. The first result holds
        `goal` (E texts), `goal_slots` (float32 [E,V]) and the labels of `expert_labels`; the second one the expert's
        actions [E,...] for these goals. (In the spirit of hindsight relabelling: Andrychowicz et al. 2017,
        arXiv:1707.01495.)
        """
        change = (rng.random(self.num_envs) < fraction) & self.can_relabel()
        pairs = zip(self.current_goals, change, strict=True)
        goals = [self.sample_goal(rng) if new else goal for goal, new in pairs]
        texts = tuple(self.sample_instruction(goal, rng) for goal in goals)
        labels, actions = self.expert_labels(goals)
        return {"goal": texts, "goal_slots": self.slot_labels(goals), **labels}, actions

    # --- resuming a run ---
    def state(self) -> dict[str, Any]:
        """Return everything that the future depends on, as arrays [E,...] and lists of E strings. By default nothing
        is saved: a resumed run begins new episodes."""
        return {}

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Go back to what `state()` returned, and return the observation."""
        return self.reset()[0]


class SingleEnv(gymnasium.Env):
    """The first env of a vector env, for people to watch. `reset(options={"goal": goal or instruction})` sets its goal.

    An instruction is scored if it is one of the environment's own texts. `render()` is the observed image, enlarged.
    """
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, env: GoalVectorEnv, describe_action: Callable[[np.ndarray], str] = str, scale: int = 8):
        self.env, self.describe_action, self.scale = env, describe_action, scale
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space

    def _first(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        self.image = obs["image"][0]
        return {key: values[0] for key, values in obs.items()}

    def _info(self, success: bool = False) -> dict[str, Any]:
        goal = str(self.env.current_goals[0]) if self.scored else None
        return {"success": success, "goal": goal, "note": "" if self.scored else "no known goal recognised"}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        """Return the first observation and info. EnvError: the instruction has characters that are not allowed."""
        request = (options or {}).get("goal")
        goals = {str(goal): goal for goal in self.env.goals}
        asked = {text: goal for goal, texts in self.env.instructions.items() for text in texts} | goals
        self.scored = request is None or request in asked
        text = None if request is None or request in goals else clean_instruction(request)
        options = {"goals": [asked.get(request)], "instructions": [text], "single_episode": True}
        obs, _ = self.env.reset(seed=seed, options=options)
        return self._first(obs), self._info()

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Execute an action -> observation, reward, terminated, truncated, info."""
        obs, rewards, terminated, truncated, infos = self.env.step(np.asarray(action)[None])
        ended = bool(terminated[0] or truncated[0])
        obs = {key: [value] for key, value in infos["final_obs"][0].items()} if ended else obs
        success = self.scored and bool(infos["success"][0])
        reward = float(rewards[0]) if self.scored else 0.0
        return self._first(obs), reward, success, ended and not success, self._info(success)

    def render(self) -> np.ndarray:
        """Return the observed image, uint8 [H*scale,W*scale,3]."""
        return self.image.repeat(self.scale, 0).repeat(self.scale, 1)

    def close(self) -> None:
        self.env.close()


class EnvFamily:
    """All that the programs need of one environment.

    `config` is what `config.load` returns. It may be a plain dict in `make_single` and `describe_action`.
    """
    SPLITS: tuple[str, ...] = ()                # all evaluation splits

    def make_vector(self, config: Mapping[str, Any], num_envs: int) -> GoalVectorEnv:
        """Return a vector env. EnvError, GoalError or CorpusError: the config does not fit."""
        raise NotImplementedError

    def make_single(self, config: Mapping[str, Any], max_steps: int | None = None,
                    instructions: Mapping[str, Sequence[str]] | None = None) -> gymnasium.Env:
        """Return one env for people to watch. `reset(options={"goal": goal or instruction})` sets its goal; `info`
        has `success`, `goal` (None if it cannot be scored) and a `note`; `render()` is uint8 [H,W,3]."""
        return SingleEnv(self.make_vector(config, 1), self.describe_action)

    def instructions(self, config: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the instruction texts for training, {goal: texts}."""
        return {}

    def instructions_hash(self, config: Mapping[str, Any]) -> str:
        """Return a hash of the instruction files, by which a checkpoint records what it was trained on."""
        return ""

    def describe_action(self, action: np.ndarray) -> str:
        """Return an action in a few English words."""
        return str(action)

    def eval_splits(self, config: Mapping[str, Any]) -> Sequence[str]:
        """Return the splits that fit a policy that was trained with this config."""
        return self.SPLITS

    def evaluate_split(self, split: str, config: Mapping[str, Any], policy: Any, episodes: int, seed: int,
                       baselines: bool = True) -> dict[str, dict[str, Any]]:
        """Return the result of one split for each actor of `simulator.evaluation.make_actors`."""
        raise EnvError("this environment has no evaluation splits")
