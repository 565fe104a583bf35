"""Evaluation splits of the robot arm.

    seen                the instructions of training
    held_out_en, _ko    instructions whose template families training does not contain, English or Korean
    instruction_swap    the scene of one (original) goal, an instruction for another (instructed) goal of the task
"""
from typing import Any

import numpy as np

from simulator.evaluation import evaluate_actors, success_rate
from simulator.registry import make_env
from simulator.robosuite.commands import instructions_by_goal, sample_instruction

SPLITS = ("seen", "held_out_en", "held_out_ko", "instruction_swap")


def eval_splits(config: Any) -> tuple[str, ...]:
    """Return the names of the splits for the run's config. A swap requires two goals."""
    return SPLITS if len(config.env.goals) > 1 else SPLITS[:-1]


def evaluate_split(split: str, config: Any, policy: Any, episodes: int, seed: int,
                   baselines: bool = True) -> dict[str, dict]:
    """Return {actor: success rate} of `episodes` episodes with fixed seeds.

    For `instruction_swap` see `_evaluate_swap`. `policy` may be None: only the baselines act then.
    """
    env = make_env(config)
    try:
        goals = env.round_robin_goals(episodes)
        rngs = [np.random.default_rng([seed, i]) for i in range(episodes)]
        if split == "instruction_swap":
            return _evaluate_swap(env, policy, goals, rngs, seed, baselines)
        known = instructions_by_goal("train") if split == "seen" else instructions_by_goal("held_out", split[-2:])
        texts = [sample_instruction(known, goal, rng) for goal, rng in zip(goals, rngs, strict=True)]
        results = evaluate_actors(env, policy, episodes, seed, goals, texts, baselines=baselines)
        return {name: success_rate(result["success"].sum(), episodes) for name, result in results.items()}
    finally:
        env.close()


def _evaluate_swap(env: Any, policy: Any, goals: list[str], rngs: list[np.random.Generator], seed: int,
                   baselines: bool) -> dict[str, dict]:
    """Return {actor: {"instructed", "original", "original_if_instructed", "gap"}}.

    `instructed` and `original` are the success rates of the two goals under the instruction for the first.
    `original_if_instructed` is that of the original goal under its own instruction, and `gap` its lead over `original`.
    A policy that follows instructions keeps `instructed` high and `original` low.
    """
    instructed = []
    for goal, rng in zip(goals, rngs, strict=True):
        others = [other for other in env.goals if other != goal]
        instructed.append(others[rng.integers(len(others))])
    unswapped = evaluate_actors(env, policy, len(goals), seed, goals, baselines=baselines)
    swapped = evaluate_actors(env, policy, len(goals), seed, instructed, None, goals, baselines=baselines)
    report = {}
    for name, result in swapped.items():
        successes = {"instructed": result["success"], "original": result["monitor_success"],
                     "original_if_instructed": unswapped[name]["success"]}
        report[name] = {key: success_rate(np.nansum(values), len(goals)) for key, values in successes.items()}
        report[name]["gap"] = report[name]["original_if_instructed"]["rate"] - report[name]["original"]["rate"]
    return report
