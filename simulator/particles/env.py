"""The particle world as an environment: one world or many, a picture and a sentence in, an action out.

Action (Box float32 [7]): action_type, target, x, y, value, radius, property_type; see simulator.particles.actions.
Observation: {"image": uint8 [H,W,3], "goal": the sentence}. Reward: simulator.particles.goals; +1 on success.
Success terminates, `max_steps` truncates. Every step executes the action and advances the simulation once.

    Worlds               the task itself, for B worlds: start, step, observe; no autoreset
    ParticleVectorEnv    Gymnasium's VectorEnv over it, autoreset mode SAME_STEP
    ParticleEnv          Gymnasium's Env, registered as FlexibleWorld/Particles-v0
    GoalConditionedEnv   one world with the small API of the notebook example
"""
import re
from functools import cache

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from simulator.commands import ALLOWED_CHARS, load_instructions
from simulator.particles import expert
from simulator.particles import goals as G
from simulator.particles.actions import USED_PARAMS, Action, ActionOperator, ActionStatus, ActionType
from simulator.particles.parser import instruction_to_goal, parse_instruction
from simulator.particles.physics import ParticleSimulator

REJECTION_NOTES = {"unknown": "no known goal recognised", "ambiguous": "more goals than one, or contradictory ones"}
GOAL_SYNTAX = re.compile(r"\s*[a-z_]+\(")       # how a goal in the goal language begins


def parse_goal_or_text(text):
    """The Plan that `text` asks for, a sentence or a goal in the goal language; None for a sentence that is not
    understood, GoalError for a goal that is written wrongly."""
    if not text.strip():
        raise G.GoalError("the goal is empty: give a sentence or a goal, as in \"move left\" or push(direction=left)")
    goal = text if GOAL_SYNTAX.match(text) else instruction_to_goal(text)
    return G.parse(goal) if goal else None


class HybridActionSpace(spaces.Box):
    """A Box whose column 0 is an action type; it says which columns each type `used_params` (bool [K,A]), which are
    `continuous`, which of these are an image `point`, and which one is `categorical`."""

    def __init__(self, low, high, used_params, continuous, xy_params, categorical):
        super().__init__(low, high, dtype=np.float32)
        self.used_params, self.continuous, self.xy_params, self.categorical = used_params, continuous, xy_params, categorical


def action_space(width, height, max_particles):
    """The particle world's action space."""
    low = np.array([0, -1, 0, 0, -5, 1, 0], np.float32)
    high = np.array([len(ActionType) - 1, max_particles - 1, width, height, 5, 64, 7], np.float32)
    names = ("action_type", "target", "x", "y", "value", "radius", "property_type")
    used_params = np.array([[i == 0 or (name in USED_PARAMS[kind] and name != "target") for i, name in enumerate(names)]
                     for kind in ActionType])
    return HybridActionSpace(low, high, used_params, continuous=(2, 3, 4, 5), xy_params=(2, 3), categorical=6)


@cache
def instructions_by_goal(split="train", language=None, more=()):
    """{goal: its sentences} of one split of the shipped corpus, in one language or both, and of the files `more`."""
    table = {}
    for row in [row for path in (None, *more) for row in load_instructions(path)]:
        if row["split"] == split and language in (None, row["language"]):
            table.setdefault(str(G.parse(row["goal"])), []).append(row["text"])
    return table


def choices(goals, instructions):
    """What an environment asks for: for each item of `goals` (a goal, or the name of one of `G.SETS`) lists of Plans,
    to be drawn from in equal shares; of a set those that `sentences` knows, amounts and single particles by kind.
    ValueError for a set without sentences."""
    known = {}
    for goal in instructions:
        plan = G.parse(goal)
        name = G.goal_group(plan)
        kind = plan.goals[0].kind if name in ("quantified", "per_object") else ""
        known.setdefault(name, {}).setdefault(kind, []).append(plan)
    try:
        table = [list(known.get(str(goal), {}).values()) if str(goal) in G.GOAL_GROUPS else [[G.parse(str(goal))]]
                 for goal in goals]
    except G.GoalError as error:
        raise G.GoalError(f"{error}; or name a set of goals: {', '.join(G.GOAL_GROUPS)}") from None
    if not all(table):
        raise ValueError(f"no sentences for the goals {goals[table.index([])]!r} in this split of the corpus")
    return table


class ParticleTask:
    """B particle worlds with a goal each. `goals` are goals or names of `G.SETS` (default: the simple ones);
    `sentences` {goal: its sentences} is what they are said with (default: the corpus's for training). An episode ends
    after `max_steps` for each goal of its plan. A share `chain` of the episodes after the first goes on in the world
    as the one before has left it.

    World b's episode k is a function of (seed of b, k) and b's actions since its reset alone.
    """

    def __init__(self, count, goals=None, instructions=None, max_steps=32, width=64, height=64, n_particles=8,
                 max_particles=50, physics=None, continue_prob=0.0):
        if max_steps < 1 or not 1 <= n_particles <= max_particles:
            raise ValueError(f"max_steps {max_steps} and n_particles {n_particles} must be at least 1, and n_particles "
                             f"at most max_particles, {max_particles}")
        self.sim = ParticleSimulator(count, max_particles, width, height, physics)
        self.operator = ActionOperator(self.sim)
        self.size = np.array([width, height], float)
        self.max_steps, self.n_particles, self.continue_prob = max_steps, n_particles, continue_prob
        self.instructions = instructions_by_goal() if instructions is None else instructions
        self.choices = choices(goals or G.GOALS, self.instructions)
        self.sets = {str(name) for name in goals or ()} & set(G.GOAL_GROUPS) - {"simple"}
        plans = [plan for item in self.choices for group in item for plan in group]
        self.goal_vocab = sorted(set().union(*map(G.goal_slots, plans)))       # all that may be said
        space = action_space(width, height, max_particles)
        self.action_low, self.action_high = space.low, space.high
        self.seeds, self.episode = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.steps, self.num_scored = np.zeros(count, np.int64), np.full(count, n_particles)
        self.goals, self.texts = [self.choices[0][0][0]] * count, [""] * count      # Plans, and how they are said
        self.stage = np.zeros(count, np.int64)
        self.current = G.StateSummary.from_sim(self.sim, self.num_scored)
        self.initial = self.current[slice(None)]
        self.current = G.StateSummary.from_sim(self.sim, self.num_scored)

    def sample_goal(self, rng, world=None):
        """A Plan to ask for; for a `world`, one that is a fair thing to ask there now, None if none is found."""
        for _ in range(1 if world is None else 50):
            plan = self.choices
            while isinstance(plan, list):
                plan = plan[rng.integers(len(plan))] if len(plan) > 1 else plan[0]
            if world is None or G.is_feasible_start(plan, self.current[[world]], self.size):
                return plan
        return None

    def round_robin(self, episodes):
        """Goals for these episodes (numbers) that go round through all that is asked."""
        def pick(plan, i):
            return pick(plan[i % len(plan)], i // len(plan)) if isinstance(plan, list) else plan
        return [pick(self.choices, i) for i in episodes]

    def group_name(self, plan):
        """What a plan counts as in figures: one of a set as the set, for there are too many of them."""
        name = G.goal_group(plan)
        return name if name in self.sets else str(plan)

    def sample_instruction(self, plan, rng):
        """A sentence for a Plan; as it is written, where none is known."""
        known = self.instructions.get(str(plan)) or [str(plan)]
        return known[rng.integers(len(known))]

    def start_episode(self, worlds, goals=None, texts=None):
        """Starts the next episode of the named worlds; goals and sentences are drawn where not given."""
        for i, b in enumerate(worlds):
            rng = np.random.default_rng([self.seeds[b], self.episode[b]])
            goal = goals[i] if goals is not None else None
            goes_on = goal is None and self.continue_prob > 0 and self.episode[b] > 0 and rng.random() < self.continue_prob
            if goes_on and self.sim.count[b] == self.n_particles:
                goal = self.sample_goal(rng, b)
            fresh = not goes_on or goal is None
            drawn = self.sample_goal(rng)
            self.goals[b] = goal = goal or drawn
            text = self.sample_instruction(goal, rng)
            self.texts[b] = texts[i] if texts is not None and texts[i] is not None else text
            for attempt in range(20 if fresh else 0):
                try:
                    self.reset_state(b, self.goals[b], rng)
                    break
                except G.GoalError:     # a crowded world cannot start for everything that may be drawn
                    if goals is not None and goals[i] is not None or attempt == 19:
                        raise
                    self.goals[b] = self.sample_goal(rng)
                    self.texts[b] = self.sample_instruction(self.goals[b], rng)
            self.episode[b] += 1
        self.reset_progress(worlds)

    def reset_state(self, b, goal, rng):
        """Fills world b anew, as a start for `goal`."""
        self.sim.clear(np.array([b]), np.array([rng.integers(2**63)], np.uint64))
        state = G.sample_start_state(goal, rng, self.size, self.n_particles)
        for name, value in zip(("position", "velocity", "radius", "mass", "charge", "temperature", "conductivity"),
                               state, strict=True):
            getattr(self.sim, name)[b, :self.n_particles] = value
        self.sim.count[b] = self.n_particles

    def reset_progress(self, worlds):
        """Progress and time are measured from here on."""
        self.steps[worlds] = self.stage[worlds] = 0
        self.current[worlds] = self.initial[worlds] = G.StateSummary.from_sim(self.sim, self.num_scored, worlds)

    def set_goals(self, worlds, goals, texts):
        """Asks the named worlds for something else, from where they are now."""
        for b, goal, text in zip(worlds, goals, texts, strict=True):
            self.goals[b], self.texts[b] = goal, text
        self.reset_progress(worlds)

    def render(self, worlds=None, scale=1):
        """Pictures uint8 [B,H*scale,W*scale,3] of all worlds, or the named ones. A white mark in the top left corner
        for each phase of the plan that is reached: without it nothing would tell which one is due."""
        images = self.sim.render(scale, worlds)
        for image, stage in zip(images, self.stage if worlds is None else self.stage[worlds], strict=True):
            for mark in range(stage):
                image[scale:5 * scale, (1 + 6 * mark) * scale:(5 + 6 * mark) * scale] = 255
        return images

    def active_goals(self):
        """The goals that count now, each with the worlds [b] that have it in their plan's present phase."""
        table = {}
        for b, (plan, stage) in enumerate(zip(self.goals, self.stage, strict=True)):
            for goal in plan.phases[stage]:
                table.setdefault(goal, []).append(b)
        return [(goal, np.array(worlds)) for goal, worlds in table.items()]

    def step(self, actions):
        """-> rewards float32 [B], success bool [B], truncated bool [B], action status codes [B]."""
        status, field = self.operator.apply(actions)
        self.sim.step(field)
        before, self.current = self.current, G.StateSummary.from_sim(self.sim, self.num_scored)
        self.steps += 1
        rewards, met = np.zeros(len(self.goals), np.float32), np.ones(len(self.goals), bool)
        for goal, b in self.active_goals():
            current, initial = self.current[b], self.initial[b]
            met[b] &= G.is_success(goal, current, initial, self.size)
            fraction = np.array([len(self.goals[i].phases[self.stage[i]]) for i in b])
            rewards[b] += G.reward(goal, current, before[b], initial, self.size) / fraction
        phases = np.array([len(plan.phases) for plan in self.goals])
        rewards += G.SUCCESS_REWARD / phases * met
        success = met & (self.stage == phases - 1)
        on = np.flatnonzero(met & ~success)        # the next phase is measured from here
        self.stage[on] += 1
        self.initial[on] = self.current[on]
        limit = self.max_steps * np.array([len(plan.goals) for plan in self.goals])
        return rewards, success, ~success & (self.steps >= limit), status

    def state(self):
        """Everything the future depends on, as plain arrays and strings; `restore` takes it back."""
        sim = {name: getattr(self.sim, name).copy() for name in self.sim.STATE}
        own = {name: getattr(self, name).copy() for name in ("seeds", "episode", "steps", "stage")}
        summaries = {f"{which}_{name}": getattr(getattr(self, which), name).copy()
                     for which in ("current", "initial") for name in G.StateSummary.__dataclass_fields__}
        return sim | own | summaries | {"goals": [str(goal) for goal in self.goals], "instructions": list(self.texts)}

    def restore(self, state):
        for name in self.sim.STATE:
            getattr(self.sim, name)[:] = state[name]
        for name in ("seeds", "episode", "steps", "stage"):
            getattr(self, name)[:] = state[name]
        for which in ("current", "initial"):
            for name in G.StateSummary.__dataclass_fields__:
                getattr(getattr(self, which), name)[:] = state[f"{which}_{name}"]
        self.goals, self.texts = [G.parse(goal) for goal in state["goals"]], list(state["instructions"])


def _spaces(worlds):
    height, width = int(worlds.size[1]), int(worlds.size[0])
    observation = spaces.Dict({"image": spaces.Box(0, 255, (height, width, 3), np.uint8),
                               "goal": spaces.Text(500, charset=ALLOWED_CHARS)})
    return observation, action_space(width, height, worlds.sim.position.shape[1])


class ParticleVectorEnv(VectorEnv):
    """Many particle worlds. `reset(seed=int or list, options={"goals": [...], "texts": [...]})` fixes seeds, and
    goals and sentences of the first episode (None entries are drawn). `infos` reports `success` and `action_status`
    at every step, and at an episode's end `final_obs` and `episode` (success, goal), with the masks `_final_obs`
    and `_episode`."""
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, num_envs, render_mode=None, **settings):
        self.num_envs, self.render_mode = num_envs, render_mode
        self.worlds = ParticleTask(num_envs, **settings)
        self._seeds = np.random.default_rng()
        self.single_observation_space, self.single_action_space = _spaces(self.worlds)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def _observe(self):
        return {"image": self.worlds.render(), "goal": tuple(self.worlds.texts)}

    def reset(self, *, seed=None, options=None):
        if seed is None:        # Gymnasium's convention: go on from the last seed
            seed = int(self._seeds.integers(2**31))
        else:
            self._seeds = np.random.default_rng(seed)
        seeds = seed + np.arange(self.num_envs) if isinstance(seed, int | np.integer) else np.asarray(seed)
        self.worlds.seeds[:], self.worlds.episode[:] = seeds, 0
        goals = [g and G.parse(str(g)) for g in (options or {}).get("goals", [None] * self.num_envs)]
        self.worlds.start_episode(np.arange(self.num_envs), goals, (options or {}).get("instructions"))
        return self._observe(), {}

    def step(self, actions):
        worlds = self.worlds
        rewards, success, truncated, status = worlds.step(actions)
        infos = {"success": success, "action_status": status}
        ended = np.flatnonzero(success | truncated)
        obs = self._observe()
        if len(ended):
            mask = success | truncated
            final = np.full(self.num_envs, None, object)
            for b in ended:
                final[b] = {"image": obs["image"][b].copy(), "goal": obs["goal"][b]}
            names = np.array([worlds.group_name(goal) for goal in worlds.goals], object)
            infos |= {"final_obs": final, "_final_obs": mask, "_episode": mask,
                      "episode": {"success": success.copy(), "goal": names}}
            worlds.start_episode(ended)
            obs["image"][ended] = worlds.render(ended)
            obs["goal"] = tuple(worlds.texts)
        return obs, rewards, success, truncated, infos

    def render(self):
        return tuple(self.worlds.render(scale=8))

    def expert_actions(self):
        """What the scripted expert does now, [E,7]; it sees the true state."""
        return expert.expert_actions(self.worlds)

    def relabel_goals(self, rng, fraction):
        """As if something else had been asked here and now: what is asked, and the expert's actions [E,7] for it.

        What is asked: E sentences, `goal`; which of `words` they say, float32 [E,V]; the number of the goal that is
        `due`, which the expert serves, int [E]; and the `places` of the one particle that it means and of the one that
        shall be gone to, float32 [E,2,2], shares of the picture, NaN for none.
        A `share` of the worlds is asked for another goal, all others for the same one in other words."""
        worlds = self.worlds
        goals, texts = worlds.goals, worlds.texts
        other = (rng.random(self.num_envs) < fraction) & (worlds.stage == 0)     # the picture tells the phase
        worlds.goals = [worlds.sample_goal(rng) if change else goal for goal, change in zip(goals, other, strict=True)]
        asked, actions = tuple(worlds.sample_instruction(goal, rng) for goal in worlds.goals), self.expert_actions()
        slots, active_goal = self._slot_labels(worlds.goals), expert.active_goal_index(worlds)
        object_xy = np.full((self.num_envs, 2, 2), np.nan, np.float32)
        for b, plan in enumerate(worlds.goals):
            goal = plan.goals[active_goal[b]]
            if goal.kind in ("move_to", "move_toward"):
                object_xy[b, :len(goal.ids)] = worlds.sim.position[b, list(goal.ids)] / worlds.size
        worlds.goals, worlds.texts = goals, texts
        return {"goal": asked, "goal_slots": slots, "active_goal": active_goal, "object_xy": object_xy}, actions

    def sample_instructions(self, rng, n):
        """n sentences as this environment asks, and which of its `words` they say, float32 [n,V]."""
        plans = [self.worlds.sample_goal(rng) for _ in range(n)]
        return tuple(self.worlds.sample_instruction(plan, rng) for plan in plans), self._slot_labels(plans)

    def _slot_labels(self, plans):
        return np.array([[word in slots for word in self.goal_vocab] for slots in map(G.goal_slots, plans)], np.float32)

    @property
    def goal_vocab(self):
        """The words that goals are made of here (`G.words_of`), sorted."""
        return self.worlds.goal_vocab

    def noop_actions(self):
        return expert.noop_actions(self.worlds)

    def random_actions(self, rng):
        return expert.random_actions(self.worlds, rng)

    def round_robin_goals(self, n):
        """n goals that go round through all that this environment asks for."""
        return self.worlds.round_robin(range(n))

    def state(self):
        return self.worlds.state()

    def restore(self, state):
        """Back to a `state()`; returns its observation."""
        self.worlds.restore(state)
        return self._observe()


class ParticleEnv(gymnasium.Env):
    """One particle world with Gymnasium's API. `reset(options={"goal": ...})` takes a goal or a sentence."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, render_mode=None, render_scale=8, **settings):
        self.render_mode, self.render_scale = render_mode, render_scale
        self.worlds = ParticleTask(1, **settings)
        self.observation_space, self.action_space = _spaces(self.worlds)
        self.scored = True

    def _observe(self):
        return {"image": self.worlds.render()[0], "goal": self.worlds.texts[0]}

    def _info(self, success=False, status=ActionStatus.OK):
        goal = str(self.worlds.goals[0]) if self.scored else None
        name = ActionStatus(int(status)).name
        return {"success": bool(success), "goal": goal, "action_status": name,
                "note": "" if status == ActionStatus.OK else name.lower()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.worlds.seeds[0] = self.np_random.integers(2**31) if seed is None else seed
        self.worlds.episode[0] = 0
        request = (options or {}).get("goal")
        goal = None if request is None else parse_goal_or_text(str(request))
        text = str(request) if goal is None or not GOAL_SYNTAX.match(str(request)) else None
        self.scored = request is None or goal is not None
        self.worlds.start_episode(np.array([0]), [goal], [None if request is None else text])
        info = self._info()
        return self._observe(), info if self.scored else info | {"note": REJECTION_NOTES[parse_instruction(str(request))[1]]}

    def step(self, action):
        rewards, success, truncated, status = self.worlds.step(np.asarray(action, np.float32)[None])
        if not self.scored:   # the sentence names no goal we know: it can be acted on, not scored
            rewards, success, truncated = rewards * 0, success & False, self.worlds.steps >= self.worlds.max_steps
        return (self._observe(), float(rewards[0]), bool(success[0]), bool(truncated[0]),
                self._info(success[0], status[0]))

    def render(self):
        return self.worlds.render(scale=self.render_scale)[0]

    @staticmethod
    def describe(action):
        """An action in words."""
        return Action.from_vector(action).describe()


class GoalConditionedEnv:
    """One world with a small API: `obs = reset()`, `obs, reward, done, info = step(action)`, `render()`.

    `goal` is a goal or a sentence in Korean or English (drawn anew each episode if None). `info` tells `success`,
    `truncated`, `goal` and `action_status`. `render(scale=1)` is uint8 [H*scale,W*scale,3].
    """

    def __init__(self, width=64, height=64, goal=None, **settings):
        self.env, self.goal = ParticleEnv(width=width, height=height, **settings), goal
        self.action_space, self.observation_space = self.env.action_space, self.env.observation_space

    def reset(self, seed=None, goal=None):
        goal = self.goal if goal is None else goal
        return self.env.reset(seed=seed, options=None if goal is None else {"goal": goal})[0]

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or truncated, info | {"truncated": truncated}

    def render(self, scale=1):
        return self.env.worlds.render(scale=scale)[0]


gymnasium.register("FlexibleWorld/Particles-v0", entry_point="simulator.particles.env:ParticleEnv")
