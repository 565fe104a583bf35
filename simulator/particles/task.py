"""The particle task for B envs at once: goals, stages, rewards and time limits. It knows no Gymnasium and no autoreset.

An episode asks for a plan (`simulator.particles.goals.Plan`): phases that are reached one after the other. A stage is
the number of phases that are reached. The rewards are those of `simulator.particles.goals`, plus 1 in all for success.
"""
import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simulator.commands import clean_instruction, sample_instruction
from simulator.particles import goals as G
from simulator.particles.actions import USED_PARAMS, ActionOperator, ActionType
from simulator.particles.commands import instructions_by_goal
from simulator.particles.physics import ParticleSimulator
from simulator.registry import EnvError
from simulator.spaces import HybridActionSpace

ACTION_PARAMS = ("action_type", "target", "x", "y", "value", "radius", "property_type")
PARTICLE_PROPERTIES = ("position", "velocity", "radius", "mass", "charge", "temperature", "conductivity")
MAX_START_ATTEMPTS = 20     # goals drawn for one start before the env counts as too crowded
MAX_GOAL_ATTEMPTS = 50      # goals drawn to find one that fits the present state
OWN_STATE = ("seeds", "episode", "steps", "stage")


def action_space(width: int, height: int, max_particles: int) -> HybridActionSpace:
    """Return the action space of the particles, float32 [7]: see simulator.particles.actions."""
    low = np.array([0, -1, 0, 0, -5, 1, 0], np.float32)
    high = np.array([len(ActionType) - 1, max_particles - 1, width, height, 5, 64, 7], np.float32)
    used_params = np.array([[_uses(kind, name) for name in ACTION_PARAMS] for kind in ActionType])
    return HybridActionSpace(low, high, used_params, continuous=(2, 3, 4, 5), xy_params=(2, 3), categorical=6)


def _uses(kind: ActionType, name: str) -> bool:
    """Return whether a policy has to choose this parameter for an action type. It points instead of naming targets."""
    return name == "action_type" or (name in USED_PARAMS[kind] and name != "target")


def goal_choices(goals: Sequence[Any], instructions: Mapping[str, Sequence[str]]) -> list[list[list[G.Plan]]]:
    """Return what an env draws its goals from: an item for each of `goals`, which is a goal or one of G.GOAL_GROUPS.

    An item is a list of lists of Plans. Each level is drawn from with equal probability. A group stands for its goals
    in `instructions`; quantified and per_object goals are sublists by kind.
    GoalError: an item is no goal, or a group has no instructions.
    """
    groups = {}
    for goal in instructions:
        plan = G.parse(goal)
        name = G.goal_group(plan)
        kind = plan.goals[0].kind if name in ("quantified", "per_object") else ""
        groups.setdefault(name, {}).setdefault(kind, []).append(plan)
    table = []
    for goal in map(str, goals):
        if goal in G.GOAL_GROUPS and goal not in groups:
            raise G.GoalError(f"no instructions for the goals {goal!r} in this split of the corpus")
        table.append(list(groups[goal].values()) if goal in G.GOAL_GROUPS else [[_parse_item(goal)]])
    return table


def _parse_item(goal: str) -> G.Plan:
    try:
        return G.parse(goal)
    except G.GoalError as error:
        raise G.GoalError(f"{error}; or name a group of goals: {', '.join(G.GOAL_GROUPS)}") from None


class ParticleTask:
    """B particle envs with a goal each.

    Episode k of env b is a function of (seed of b, k) and of b's actions since its reset alone.

    Parameters
        count            B
        goals            goals, or names of G.GOAL_GROUPS (default: the simple goals)
        instructions     {goal: its texts} (default: the corpus for training)
        max_steps        steps for each goal of a plan; after that the episode is truncated
        width, height    pixels
        n_particles      particles at the start of an episode
        max_particles    particles at any time
        physics          the config group `physics`
        continue_prob    fraction of the episodes after the first that go on from the state the last one ended in
    """

    def __init__(self, count: int, goals: Sequence[Any] | None = None,
                 instructions: Mapping[str, Sequence[str]] | None = None, max_steps: int = 32, width: int = 64,
                 height: int = 64, n_particles: int = 8, max_particles: int = 50,
                 physics: Mapping[str, Any] | None = None, continue_prob: float = 0.0):
        if max_steps < 1 or not 1 <= n_particles <= max_particles:
            raise EnvError(f"max_steps {max_steps} and n_particles {n_particles} must be at least 1, and n_particles "
                           f"at most max_particles, {max_particles}")
        self.sim = ParticleSimulator(count, max_particles, width, height, physics)
        self.operator = ActionOperator(self.sim)
        self.size = np.array([width, height], float)
        self.max_steps = max_steps
        self.n_particles = n_particles
        self.continue_prob = continue_prob
        self.action_space = action_space(width, height, max_particles)
        self.instructions = instructions_by_goal() if instructions is None else instructions
        self.choices = goal_choices(goals or G.GOALS, self.instructions)
        self.groups = {str(name) for name in goals or ()} & set(G.GOAL_GROUPS) - {"simple"}
        plans = [plan for item in self.choices for kind in item for plan in kind]
        self.goal_vocab = tuple(sorted(set().union(*map(G.goal_slots, plans))))
        self.seeds = np.zeros(count, np.int64)
        self.episode = np.zeros(count, np.int64)        # number of the next episode
        self.steps = np.zeros(count, np.int64)
        self.stage = np.zeros(count, np.int64)
        self.num_scored = np.full(count, n_particles)   # added particles do not count
        self.goals = [plans[0]] * count
        self.texts = [""] * count                       # the instruction of each env
        self.current = G.StateSummary.from_sim(self.sim, self.num_scored)
        self.initial = self.current[:]
        self.current = G.StateSummary.from_sim(self.sim, self.num_scored)

    @property
    def action_low(self) -> np.ndarray:
        return self.action_space.low

    @property
    def action_high(self) -> np.ndarray:
        return self.action_space.high

    # --- goals ---
    def sample_goal(self, rng: np.random.Generator) -> G.Plan:
        """Return a random Plan."""
        plan = self.choices
        while isinstance(plan, list):
            plan = plan[rng.integers(len(plan))] if len(plan) > 1 else plan[0]
        return plan

    def sample_feasible_goal(self, rng: np.random.Generator, b: int) -> G.Plan | None:
        """Return a random Plan that fits the present state of env b; None if none is found."""
        for _ in range(MAX_GOAL_ATTEMPTS):
            plan = self.sample_goal(rng)
            if self.is_feasible(plan, b):
                return plan
        return None

    def is_feasible(self, plan: G.Plan, b: int) -> bool:
        """Return whether the present state of env b is a start for a plan: not solved yet, and not out of reach."""
        return G.is_feasible_start(plan, self.current[[b]], self.size)

    def round_robin(self, episodes: Iterable[int]) -> list[G.Plan]:
        """Return a Plan for each episode number; the numbers cycle through all goals."""
        def pick(plan, i):
            return pick(plan[i % len(plan)], i // len(plan)) if isinstance(plan, list) else plan
        return [pick(self.choices, i) for i in episodes]

    def group_name(self, plan: G.Plan) -> str:
        """Return the name that a plan has in metrics: its group if the env draws from that group, else the plan."""
        name = G.goal_group(plan)
        return name if name in self.groups else str(plan)

    def sample_instruction(self, plan: G.Plan, rng: np.random.Generator) -> str:
        """Return a random instruction for a plan; the plan in the goal language if there is none."""
        return sample_instruction(self.instructions, plan, rng)

    # --- episodes ---
    def start_episode(self, envs: Sequence[int], goals: Sequence[G.Plan | None] | None = None,
                      texts: Sequence[str | None] | None = None) -> None:
        """Begin the next episode of the named envs. Goals and texts that are not given are drawn.

        GoalError: no start was found for a goal. EnvError: a text is not allowed (`clean_instruction`).
        """
        for i, b in enumerate(envs):
            goal = goals[i] if goals is not None else None
            text = texts[i] if texts is not None else None
            self._start_one(b, goal, text)
            self.episode[b] += 1
        self.reset_progress(envs)

    def _start_one(self, b: int, goal: G.Plan | None, text: str | None) -> None:
        rng = np.random.default_rng([self.seeds[b], self.episode[b]])
        is_given = goal is not None
        if not is_given:
            goal = self._sample_next_goal(rng, b)
        fresh = is_given or goal is None
        drawn = self.sample_goal(rng)
        self._assign(b, goal or drawn, rng, text)
        for attempt in range(MAX_START_ATTEMPTS if fresh else 0):
            try:
                self.reset_state(b, self.goals[b], rng)
                break
            except G.GoalError:     # a crowded env has no start for some goals
                if is_given or attempt == MAX_START_ATTEMPTS - 1:
                    raise
                self._assign(b, self.sample_goal(rng), rng)

    def _sample_next_goal(self, rng: np.random.Generator, b: int) -> G.Plan | None:
        """Return a goal for an episode that goes on from the present state; None for one that starts afresh."""
        if self.continue_prob == 0 or self.episode[b] == 0 or rng.random() >= self.continue_prob:
            return None
        if self.sim.count[b] != self.n_particles:       # particles were added
            return None
        return self.sample_feasible_goal(rng, b)

    def _assign(self, b: int, goal: G.Plan, rng: np.random.Generator, text: str | None = None) -> None:
        """Give env b a goal and a text. The text is drawn even if one is given: starts do not depend on that."""
        drawn = self.sample_instruction(goal, rng)
        self.goals[b] = goal
        self.texts[b] = clean_instruction(drawn if text is None else text)

    def reset_state(self, b: int, goal: G.Plan, rng: np.random.Generator) -> None:
        """Replace all particles of env b by a start state for `goal`. GoalError: no start was found."""
        self.sim.clear(np.array([b]), np.array([rng.integers(2**63)], np.uint64))
        state = G.sample_start_state(goal, rng, self.size, self.n_particles)
        for name, value in zip(PARTICLE_PROPERTIES, state, strict=True):
            getattr(self.sim, name)[b, :self.n_particles] = value
        self.sim.count[b] = self.n_particles

    def reset_progress(self, envs: Sequence[int]) -> None:
        """Measure progress and time of the named envs from now on."""
        self.steps[envs] = 0
        self.stage[envs] = 0
        self.current[envs] = self.initial[envs] = G.StateSummary.from_sim(self.sim, self.num_scored, envs)

    def set_goals(self, envs: Sequence[int], goals: Sequence[G.Plan], texts: Sequence[str]) -> None:
        """Give the named envs other goals, from their present state on."""
        for b, goal, text in zip(envs, goals, texts, strict=True):
            self.goals[b] = goal
            self.texts[b] = clean_instruction(text)
        self.reset_progress(envs)

    # --- steps ---
    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Execute actions [B,7] -> rewards float32 [B], success bool [B], truncated bool [B], ActionStatus [B]."""
        status, field = self.operator.apply(actions)
        self.sim.step(field)
        before = self.current
        self.current = G.StateSummary.from_sim(self.sim, self.num_scored)
        self.steps += 1
        rewards, phase_done = self._score(before)
        num_phases = np.array([len(plan.phases) for plan in self.goals])
        rewards += G.SUCCESS_REWARD / num_phases * phase_done
        success = phase_done & (self.stage == num_phases - 1)
        advanced = np.flatnonzero(phase_done & ~success)
        self.stage[advanced] += 1
        self.initial[advanced] = self.current[advanced]     # the next phase is measured from here
        limit = self.max_steps * np.array([len(plan.goals) for plan in self.goals])
        return rewards, success, ~success & (self.steps >= limit), status

    def _score(self, before: G.StateSummary) -> tuple[np.ndarray, np.ndarray]:
        """Return the dense rewards float32 [B], and whether all goals of the present phase hold, bool [B]."""
        rewards = np.zeros(len(self.goals), np.float32)
        phase_done = np.ones(len(self.goals), bool)
        for goal, b in self.active_goals():
            current, initial = self.current[b], self.initial[b]
            phase_done[b] &= G.is_success(goal, current, initial, self.size)
            num_goals = np.array([len(self.goals[i].phases[self.stage[i]]) for i in b])
            rewards[b] += G.reward(goal, current, before[b], initial, self.size) / num_goals
        return rewards, phase_done

    def active_goals(self) -> list[tuple[G.Goal, np.ndarray]]:
        """Return the goals of the present phases, each with the envs that have it, int [b]."""
        table = {}
        for b, (plan, stage) in enumerate(zip(self.goals, self.stage, strict=True)):
            for goal in plan.phases[stage]:
                table.setdefault(goal, []).append(b)
        return [(goal, np.array(envs)) for goal, envs in table.items()]

    def render(self, envs: Sequence[int] | None = None, scale: int = 1) -> np.ndarray:
        """Return images uint8 [B,H*scale,W*scale,3] of all envs, or of the named ones.

        A white mark in the top left corner stands for each phase that is reached: nothing else in the image tells
        which phase comes next.
        """
        images = self.sim.render(scale, envs)
        for image, stage in zip(images, self.stage if envs is None else self.stage[envs], strict=True):
            for mark in range(stage):
                left = (1 + 6 * mark) * scale
                image[scale:5 * scale, left:left + 4 * scale] = 255
        return images

    # --- resuming a run ---
    def state(self) -> dict[str, Any]:
        """Return everything that the future depends on, as arrays [B,...] and lists of B strings."""
        state = {name: getattr(self.sim, name).copy() for name in self.sim.STATE}
        state |= {name: getattr(self, name).copy() for name in OWN_STATE}
        for which in ("current", "initial"):
            for name in G.StateSummary.__dataclass_fields__:
                state[f"{which}_{name}"] = getattr(getattr(self, which), name).copy()
        return state | {"goals": [str(goal) for goal in self.goals], "instructions": list(self.texts)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state()` returned."""
        for name in self.sim.STATE:
            getattr(self.sim, name)[:] = state[name]
        for name in OWN_STATE:
            getattr(self, name)[:] = state[name]
        for which in ("current", "initial"):
            for name in G.StateSummary.__dataclass_fields__:
                getattr(getattr(self, which), name)[:] = state[f"{which}_{name}"]
        self.goals = [G.parse(goal) for goal in state["goals"]]
        self.texts = list(state["instructions"])


SETTINGS = tuple(inspect.signature(ParticleTask).parameters)[1:]


def check_settings(owner: str, settings: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """TypeError if `settings` has a name that neither ParticleTask nor `more` has. It names the nearest one."""
    names = [*SETTINGS, *more]
    for name in settings:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise TypeError(f"{owner} has no parameter {name!r}: did you mean {nearest!r}?")
