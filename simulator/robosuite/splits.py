"""The robot arm as an environment family, and its evaluation splits.

    seen                the instructions of training
    held_out_en, _ko    instructions whose template families training does not contain, English or Korean
    instruction_swap    the scene of one (original) goal, an instruction for another (instructed) goal of the task
"""
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from simulator.api import EnvFamily
from simulator.commands import corpus_hash
from simulator.evaluation import POLICY_ACTORS, evaluate_actors, instruction_swap, run_actors, success_rate
from simulator.robosuite.commands import COMMANDS_FILE, instructions_by_goal, sample_instruction
from simulator.robosuite.env import RobosuiteEnv, describe_action
from simulator.robosuite.vector_env import RobosuiteVectorEnv

SPLITS = ("seen", "held_out_en", "held_out_ko", "instruction_swap")


class RobosuiteFamily(EnvFamily):
    """The environment family "robosuite" of the registry: see simulator.api.EnvFamily."""
    SPLITS = SPLITS

    def make_vector(self, config: Mapping[str, Any], num_envs: int) -> RobosuiteVectorEnv:
        """Return a vector env with one process for each arm. EnvError, GoalError: the settings do not fit."""
        return RobosuiteVectorEnv(num_envs, instructions=self.instructions(config), **_settings(config))

    def make_single(self, config: Mapping[str, Any], max_steps: int | None = None,
                    instructions: Mapping[str, Sequence[str]] | None = None) -> RobosuiteEnv:
        """Return one arm in this process."""
        return RobosuiteEnv(instructions=instructions, **_settings(config, max_steps))

    def instructions(self, config: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return {goal: its training instructions}, with those of the files `env.instructions`."""
        return instructions_by_goal("train", None, tuple(config["env"]["instructions"]))

    def instructions_hash(self, config: Mapping[str, Any]) -> str:
        """Return the SHA-256 of the instruction files."""
        return corpus_hash(config["env"]["instructions"], COMMANDS_FILE)

    def describe_action(self, action: Any) -> str:
        """Return an action in words."""
        return describe_action(action)

    def eval_splits(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the splits. A swap requires two goals."""
        return SPLITS if len(config["env"]["goals"]) > 1 else SPLITS[:-1]

    def evaluate_split(self, split: str, config: Mapping[str, Any], policy: Any, episodes: int, seed: int,
                       baselines: bool = True) -> dict[str, dict[str, Any]]:
        """Return {actor: success rate} of `episodes` episodes with fixed seeds.

        For `instruction_swap` see `simulator.evaluation.instruction_swap`. Without a `policy` only the baselines act.
        """
        env = self.make_vector(config, config["env"]["num_envs"])
        with contextlib.closing(env):
            goals = env.round_robin_goals(episodes)
            rngs = [np.random.default_rng([seed, i]) for i in range(episodes)]
            if split == "instruction_swap":
                instructed = [_other_goal(env, goal, rng) for goal, rng in zip(goals, rngs, strict=True)]
                seeds, names = seed + np.arange(episodes), None if baselines else POLICY_ACTORS
                return run_actors(lambda act: instruction_swap(env, act, seeds, goals, instructed), env, policy, seed,
                                  names)
            known = instructions_by_goal("train") if split == "seen" else instructions_by_goal("held_out", split[-2:])
            texts = [sample_instruction(known, goal, rng) for goal, rng in zip(goals, rngs, strict=True)]
            results = evaluate_actors(env, policy, episodes, seed, goals, texts, baselines=baselines)
        return {name: success_rate(result["success"].sum(), episodes) for name, result in results.items()}


def _other_goal(env: RobosuiteVectorEnv, goal: str, rng: np.random.Generator) -> str:
    others = [other for other in env.goals if other != goal]
    return others[rng.integers(len(others))]


def _settings(config: Mapping[str, Any], max_steps: int | None = None) -> dict[str, Any]:
    """Return the fields of RobosuiteConfig from the run's config."""
    env = config["env"]
    return dict(config["robosuite"]) | {"goals": tuple(env["goals"]), "max_steps": max_steps or env["max_steps"]}


FAMILY = RobosuiteFamily()
