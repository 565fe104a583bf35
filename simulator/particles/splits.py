"""The particles as an environment family, and their evaluation splits: each k of n episodes with fixed seeds.

    seen                     simple goals, and quantified ones if trained; instructions of training
    held_out_en, _ko         the same goals, in template families that are held out of training
    perturbed                the same, each held-out instruction changed by `corrupt_text`
    unseen_words             held-out instructions whose key words never occur in training
    instruction_swap         an instruction for another goal than the one that the env was set up for
    per_object               goals of single particles, named by their colours; instructions of training
    per_object_held_out      the same goals, in held-out template families
    cross_lingual            the same, goals that training has in the other language only
    multi_goal               two goals at once or in order; instructions of training
    multi_goal_held_out      the same, in held-out template families
    compositional            the same, of kinds that training never combines
    long_horizon             five goals, one after another in one env; instructions of training

`instruction_swap`: see `simulator.evaluation.instruction_swap`. `long_horizon` is scored as in CALVIN (Mees et al.
2022, arXiv:2112.03227): a sequence of tasks ends at the first goal that is missed. Each goal is feasible in the state
that the one before left.
"""
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from simulator.api import EnvFamily
from simulator.commands import corrupt_text
from simulator.evaluation import (
    POLICY_ACTORS,
    Actor,
    blocks,
    instruction_swap,
    reset_block,
    run_actors,
    run_episodes,
    run_until_done,
    success_rate,
)
from simulator.particles import goals as G
from simulator.particles.commands import corpus_hash, instructions_by_goal, training_instructions
from simulator.particles.env import ParticleEnv, ParticleVectorEnv
from simulator.particles.task import MAX_GOAL_ATTEMPTS, ParticleTask

SPLITS = ("seen", "held_out_en", "held_out_ko", "perturbed", "unseen_words", "instruction_swap", "per_object",
          "per_object_held_out", "cross_lingual", "multi_goal", "multi_goal_held_out", "compositional", "long_horizon")
REQUIRED_GROUP = {"per_object": "per_object", "per_object_held_out": "per_object", "cross_lingual": "per_object",
                  "multi_goal": "conjunction", "multi_goal_held_out": "conjunction", "compositional": "conjunction"}
TASKS_IN_A_ROW = 5
NUM_ENVS = 128
NUM_TRIAL_ENVS = 64     # reset once before training, to find goals without a start state


def splits_for(goals: Sequence[str]) -> list[str]:
    """Return the splits that fit a policy that was trained on `goals`, the config key `env.goals`."""
    groups = {goal if goal in G.GOAL_GROUPS else G.goal_group(G.parse(goal)) for goal in goals or ["simple"]}
    return [split for split in SPLITS if REQUIRED_GROUP.get(split, "simple") in groups]


def split_spec(split: str, goals: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the goal groups of a split and its instructions {goal: texts}, for a policy trained on `goals`."""
    single_goals = ["simple", "quantified"] if "quantified" in goals else ["simple"]
    match split:
        case "held_out_en" | "held_out_ko":
            return single_goals, instructions_by_goal("held_out", split[-2:])
        case "perturbed":
            rng = np.random.default_rng(0)
            return single_goals, {goal: [corrupt_text(text, rng) for text in texts]
                                  for goal, texts in instructions_by_goal("held_out").items()}
        case "unseen_words":
            return ["simple"], instructions_by_goal("unseen_words")
        case "per_object":
            return ["per_object"], instructions_by_goal()
        case "cross_lingual":
            return ["per_object"], instructions_by_goal("cross_lingual")
        case "per_object_held_out":
            return ["per_object"], instructions_by_goal("held_out")
        case "multi_goal":
            return ["conjunction", "sequence"], instructions_by_goal()
        case "multi_goal_held_out":
            return ["conjunction", "sequence"], instructions_by_goal("held_out")
        case "compositional":
            return ["conjunction", "sequence"], instructions_by_goal("compositional")
    return single_goals, instructions_by_goal()


def evaluate(split: str, settings: Mapping[str, Any], policy: Any, episodes: int, seed: int,
             trained_on: Sequence[str] = (), names: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return {actor: result} of one split. A result is a success rate. For instruction_swap and long_horizon it is a
    dict of several: see `simulator.evaluation.instruction_swap` and `tasks_in_a_row`.

    `settings` are the parameters of ParticleTask but for goals and instructions; `trained_on` is the config key
    `env.goals`; `names` selects actors of `simulator.evaluation.make_actors`.
    """
    goals, instructions = split_spec(split, trained_on)
    env = ParticleVectorEnv(min(episodes, NUM_ENVS), goals=goals, instructions=instructions, **settings)
    return run_actors(make_evaluation(split, env, episodes, seed), env, policy, seed, names)


def make_evaluation(split: str, env: ParticleVectorEnv, episodes: int, seed: int):
    """Return the function actor -> result of a split. The goals cycle through those of the env."""
    seeds = seed + np.arange(episodes)
    goals = env.round_robin_goals(episodes)
    if split == "instruction_swap":
        instructed, texts = sample_swaps(env, seeds, goals, seed)
        return lambda act: instruction_swap(env, act, seeds, goals, instructed, texts)
    if split == "long_horizon":
        return partial(tasks_in_a_row, env, seeds=seeds, goals=goals, seed=seed)
    return lambda act: success_rate(run_episodes(env, act, seeds, goals)["success"].sum(), episodes)


# --- instruction_swap -------------------------------------------------------------------------------------------
def sample_swaps(env: ParticleVectorEnv, seeds: np.ndarray, goals: Sequence[G.Plan],
                 seed: int) -> tuple[list[G.Plan], list[str]]:
    """Return another goal for each episode, and an instruction for it."""
    instructed, texts = [], []
    for episodes in blocks(len(seeds), env.num_envs):
        reset_block(env, episodes, seeds, goals=goals)
        for b, episode in enumerate(episodes):
            rng = np.random.default_rng([seed, episode])
            instructed.append(sample_other_goal(env.task, b, rng))
            texts.append(env.sample_instruction(instructed[-1], rng))
    return instructed, texts


def sample_other_goal(task: ParticleTask, b: int, rng: np.random.Generator) -> G.Plan:
    """Return a goal that differs from that of env b in kind or argument, and is feasible there if one is found."""
    own = task.goals[b].goals[0]
    drawn = [task.sample_goal(rng) for _ in range(MAX_GOAL_ATTEMPTS)]
    others = [plan for plan in drawn
              if (plan.goals[0].kind, plan.goals[0].argument) != (own.kind, own.argument)]
    return next((plan for plan in others if task.is_feasible(plan, b)), others[0])


# --- long_horizon -----------------------------------------------------------------------------------------------
def tasks_in_a_row(env: ParticleVectorEnv, act: Actor, seeds: np.ndarray, goals: Sequence[G.Plan],
                   seed: int) -> dict[str, Any]:
    """Run sequences of five tasks, which begin with `goals` [n].

    Returns {"tasks_in_a_row": success rates of 1..5 tasks, "mean": the mean number of tasks}.
    """
    count = np.zeros(len(seeds), int)
    for episodes in blocks(len(seeds), env.num_envs):
        obs = reset_block(env, episodes, seeds, goals=goals)
        running = np.arange(len(episodes))
        for i in range(TASKS_IN_A_ROW):
            if i:
                rngs = [np.random.default_rng([seed, episodes[b], i]) for b in running]
                obs = env.set_goals(running, *sample_next_tasks(env.task, running, rngs))
            running = running[run_until_done(env, act, obs, running)["success"]]
            count[episodes[running]] += 1
    rates = [success_rate((count >= n).sum(), len(seeds)) for n in range(1, TASKS_IN_A_ROW + 1)]
    return {"tasks_in_a_row": rates, "mean": float(count.mean())}


def sample_next_tasks(task: ParticleTask, envs: np.ndarray,
                      rngs: Sequence[np.random.Generator]) -> tuple[list[G.Plan], list[str]]:
    """Return a goal for each of `envs`, feasible in its present state if one is found, and an instruction for it."""
    pairs = list(zip(envs, rngs, strict=True))
    goals = [task.sample_feasible_goal(rng, b) or task.sample_goal(rng) for b, rng in pairs]
    texts = [task.sample_instruction(goal, rng) for goal, rng in zip(goals, rngs, strict=True)]
    return goals, texts


# --- simulator.api.EnvFamily ------------------------------------------------------------------------------------
class ParticleFamily(EnvFamily):
    """The environment family "particles" of the registry: see simulator.api.EnvFamily."""
    SPLITS = SPLITS

    def make_vector(self, config: Mapping[str, Any], num_envs: int) -> ParticleVectorEnv:
        """Return a vector env. GoalError: a goal has no start state, or is unknown. CorpusError: bad instructions."""
        settings = self._settings(config) | {"goals": config.env.goals, "continue_prob": config.env.continue_prob,
                                             "instructions": self.instructions(config)}
        trial = ParticleVectorEnv(NUM_TRIAL_ENVS, **settings)
        trial.reset(seed=0, options={"goals": trial.round_robin_goals(NUM_TRIAL_ENVS)})
        return ParticleVectorEnv(num_envs, **settings)

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"max_steps": config.env.max_steps, "physics": dict(config.physics), **config.world}

    def make_single(self, config: Mapping[str, Any], max_steps: int | None = None,
                    instructions: Mapping[str, Sequence[str]] | None = None, image_width: int = 512) -> ParticleEnv:
        """Return one env whose `render()` is about `image_width` pixels wide. `config` may lack groups, as those of
        old checkpoints do."""
        world = config.get("world", {})
        scale = max(1, image_width // max(world.get("width", 64), world.get("height", 64)))
        return ParticleEnv(render_scale=scale, max_steps=max_steps or config.get("env", {}).get("max_steps", 32),
                           physics=dict(config.get("physics", {})), instructions=instructions, **world)

    def instructions(self, config: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return {goal: texts} for training. CorpusError: one of `env.instructions` cannot be used."""
        return training_instructions(config.env.instructions)

    def instructions_hash(self, config: Mapping[str, Any]) -> str:
        """Return the hash of the corpus and of the files `env.instructions`."""
        return corpus_hash(config.env.instructions)

    def describe_action(self, action: np.ndarray) -> str:
        """Return an action in a few English words."""
        return ParticleEnv.describe_action(action)

    def eval_splits(self, config: Mapping[str, Any]) -> list[str]:
        """Return the splits that fit a policy that was trained with this config."""
        return splits_for(config.env.goals)

    def evaluate_split(self, split: str, config: Mapping[str, Any], policy: Any, episodes: int, seed: int,
                       baselines: bool = True) -> dict[str, dict[str, Any]]:
        """Return {actor: result}: see `evaluate`. Without `baselines` only the policy is run."""
        names = None if baselines else POLICY_ACTORS
        return evaluate(split, self._settings(config), policy, episodes, seed, config.env.goals, names)


FAMILY = ParticleFamily()
