"""Success as k of n episodes with fixed seeds and a 95 % Wilson interval, and the tables that show it.

`run_until_done` is the one loop over the steps of evaluation episodes, and `make_actors` the one place that makes
actors. Both know an environment by `simulator.api.GoalVectorEnv` only.
"""
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from simulator.api import GoalVectorEnv
from simulator.rollout import tree_map

Actor = Callable[[dict[str, Any], np.ndarray], np.ndarray]     # (obs of the running envs, their indices) -> actions
Episodes = dict[str, np.ndarray]                               # what `run_episodes` returns
POLICY_ACTORS = ("greedy", "sampled")
BASELINES = ("no-op", "random", "expert")


# --- intervals --------------------------------------------------------------------------------------------------
def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of k successes in n episodes, in [0, 1] (Wilson 1927, JASA 22:209)."""
    if n == 0:
        return 0.0, 1.0
    rate = k / n
    scale = 1 + z * z / n
    center = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)


def success_rate(k: int, n: int) -> dict[str, float]:
    """Return {"k", "n", "rate", "low", "high"} of k successes in n episodes."""
    low, high = wilson(k, n)
    return {"k": int(k), "n": int(n), "rate": k / n if n else 0.0, "low": low, "high": high}


# --- episodes ---------------------------------------------------------------------------------------------------
def run_until_done(env: GoalVectorEnv, act: Actor, obs: dict[str, Any], envs: np.ndarray) -> Episodes:
    """Step until the episode of each of `envs` (indices, int [n]) has ended. `obs` is the present observation.

    Returns what `run_episodes` returns. The env must have been reset with the option `single_episode`, or may begin
    further episodes, which are ignored.
    """
    n = len(envs)
    result = {"success": np.zeros(n, bool), "length": np.zeros(n, int), "return": np.zeros(n),
              "goal": np.full(n, "", object)}
    actions = np.zeros(env.action_space.shape, env.action_space.dtype)
    active = np.arange(n)       # positions in `envs`
    while len(active):
        running = envs[active]
        actions[running] = act(tree_map(partial(_select, running), obs), running)
        obs, rewards, terminated, truncated, infos = env.step(actions)
        result["length"][active] += 1
        result["return"][active] += rewards[running]
        ended = (terminated | truncated)[running]
        if ended.any():
            for name, values in infos["episode_metrics"].items():
                if not name.startswith("_"):        # Gymnasium's masks
                    result.setdefault(name, np.full(n, np.nan))[active[ended]] = values[running[ended]]
        active = active[~ended]
    return result


def _select(envs: np.ndarray, leaf: np.ndarray | tuple) -> np.ndarray | tuple:
    return leaf[envs] if isinstance(leaf, np.ndarray) else tuple(leaf[i] for i in envs)


def blocks(n: int, num_envs: int) -> Iterator[np.ndarray]:
    """Yield the episodes 0..n-1 in blocks of `num_envs`; the last block may have fewer."""
    for first in range(0, n, num_envs):
        yield np.arange(first, min(first + num_envs, n))


def reset_block(env: GoalVectorEnv, episodes: np.ndarray, seeds: Sequence[int], **options: Sequence | None) -> dict:
    """Reset the env for some episodes (indices, at most E) and return the observation.

    `seeds` and each of `options` have a value per episode. Envs that are left over repeat the last episode.
    """
    padding = np.full(env.num_envs - len(episodes), episodes[-1])
    rows = np.concatenate([episodes, padding]).astype(int)
    chosen = {key: [values[i] for i in rows] for key, values in options.items() if values is not None}
    return env.reset(seed=[int(seeds[i]) for i in rows], options={"single_episode": True} | chosen)[0]


def run_episodes(env: GoalVectorEnv, act: Actor, seeds: Sequence[int], goals: Sequence | None = None,
                 instructions: Sequence[str] | None = None, monitor_goals: Sequence | None = None) -> Episodes:
    """Run one episode for each of n seeds, E at a time.

    Returns {"success": bool [n], "length": int [n] (steps), "return": float [n], "goal": str [n]} and all further
    metrics of the environment, float [n]. `goals`, `instructions` and `monitor_goals` [n] are the options of `reset`.
    """
    n = len(seeds)
    result = {"success": np.zeros(n, bool), "length": np.zeros(n, int), "return": np.zeros(n),
              "goal": np.full(n, "", object)}
    for episodes in blocks(n, env.num_envs):
        obs = reset_block(env, episodes, seeds, goals=goals, instructions=instructions, monitor_goals=monitor_goals)
        part = run_until_done(env, act, obs, np.arange(len(episodes)))
        for name, values in part.items():
            result.setdefault(name, np.full(n, np.nan))[episodes] = values
    return result


# --- actors -----------------------------------------------------------------------------------------------------
def policy_actor(policy: Any, deterministic: bool) -> Actor:
    """Return the actor of a policy: greedy actions, or sampled ones."""
    return lambda obs, envs: policy.act(obs, deterministic)[0].cpu().numpy()


def make_actors(env: GoalVectorEnv, policy: Any, seed: int, names: Sequence[str] | None = None) -> dict[str, Actor]:
    """Return {name: actor}: "greedy" and "sampled" of the policy (None: neither), "no-op", "random" and "expert".

    `names` selects some of them. `seed` is that of the random actions.
    """
    rng = np.random.default_rng(seed)
    actors = {
        "greedy": policy_actor(policy, True),
        "sampled": policy_actor(policy, False),
        "no-op": lambda obs, envs: env.noop_actions()[envs],
        "random": lambda obs, envs: env.random_actions(rng)[envs],
        "expert": lambda obs, envs: env.expert_actions()[envs],
    }
    available = (POLICY_ACTORS if policy else ()) + BASELINES
    return {name: actors[name] for name in available if names is None or name in names}


def run_actors(run: Callable[[Actor], Any], env: GoalVectorEnv, policy: Any, seed: int,
               names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return {name: run(actor)} for the actors of `make_actors`. The random numbers of torch start from `seed`, and
    are afterwards as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {name: run(act) for name, act in make_actors(env, policy, seed, names).items()}


def run_local(run: Callable[[np.ndarray], Episodes], count: int) -> Episodes:
    """Return `run(all indices)`. A function that spreads the indices over processes has the same signature."""
    return run(np.arange(count))


def evaluate_actors(env: GoalVectorEnv, policy: Any, episodes: int, seed: int, goals: Sequence | None = None,
                    instructions: Sequence[str] | None = None, monitor_goals: Sequence | None = None,
                    run_sharded: Callable = run_local, baselines: bool = True) -> dict[str, Episodes]:
    """Return {actor: result of `run_episodes`} on the same episodes, whose seeds are `seed`, `seed + 1`, ...

    The goals cycle through those of the env unless given. `run_sharded`: see `run_local`. Without `baselines` only the
    policy is run.
    """
    seeds = seed + np.arange(episodes)
    goals = env.round_robin_goals(episodes) if goals is None else goals

    def run(act):
        return run_sharded(lambda rows: run_episodes(env, act, seeds[rows], _rows(goals, rows), _rows(
            instructions, rows), _rows(monitor_goals, rows)), episodes)
    return run_actors(run, env, policy, seed, None if baselines else POLICY_ACTORS)


def _rows(values: Sequence | None, rows: np.ndarray) -> list | None:
    return None if values is None else [values[i] for i in rows]


def instruction_swap(env: GoalVectorEnv, act: Actor, seeds: Sequence[int], goals: Sequence, instructed: Sequence,
                     instructions: Sequence[str] | None = None) -> dict[str, Any]:
    """Run each episode twice: with an instruction for its own goal, and with one for another goal.

    A policy that looks only at the image reaches the original goal in both. A policy that follows the instruction
    reaches the instructed goal, and the original goal no longer.

    env          `reset` must know the options "goals", "instructions" and "monitor_goals". With monitored goals an
                 episode must start in the same state as without, and `infos["episode_metrics"]` must have
                 "monitor_success": whether the monitored goal held at any step.
    goals        the original goals [n]
    instructed   the other goals [n]
    instructions the texts for `instructed` [n]; without them the env draws the texts

    Returns success rates of the swapped episodes, `instructed` and `original`, that of the original episodes,
    `original_if_instructed`, and `gap`, by how much the last one exceeds `original`.

    For all actors of an evaluation:
        run_actors(lambda act: instruction_swap(env, act, seeds, goals, instructed), env, policy, seed)
    """
    n = len(seeds)
    as_asked = run_episodes(env, act, seeds, goals)
    swapped = run_episodes(env, act, seeds, instructed, instructions, monitor_goals=goals)
    result = {
        "instructed": success_rate(swapped["success"].sum(), n),
        "original": success_rate(np.nansum(swapped["monitor_success"]), n),
        "original_if_instructed": success_rate(as_asked["success"].sum(), n),
    }
    return result | {"gap": result["original_if_instructed"]["rate"] - result["original"]["rate"]}


# --- summaries --------------------------------------------------------------------------------------------------
def summarize(result: Episodes) -> dict[str, Any]:
    """Return the success rate of a result, in all and `per_goal`, `mean_steps` of the successful episodes (None if
    there are none), and `stages`, the means of the environment's further metrics."""
    success, goals = result["success"], result["goal"]
    per_goal = {str(goal): success_rate(success[goals == goal].sum(), (goals == goal).sum())
                for goal in dict.fromkeys(goals)}
    mean_steps = float(result["length"][success].mean()) if success.any() else None
    more = {name: values for name, values in result.items() if name not in ("success", "length", "return", "goal")}
    stages = {name: float(np.nanmean(values)) for name, values in more.items() if not np.isnan(values).all()}
    rate = success_rate(success.sum(), len(success))
    return rate | {"mean_steps": mean_steps, "per_goal": per_goal, "stages": stages}


def step_ratio(a: Episodes, b: Episodes) -> float | None:
    """Return the total steps of `a` over those of `b` on the episodes that both solve; None if there are none."""
    both = a["success"] & b["success"]
    return float(a["length"][both].sum() / b["length"][both].sum()) if both.any() else None


def evaluate_policy(env: GoalVectorEnv, policy: Any, episodes: int, seed: int, run_sharded: Callable = run_local,
                    baselines: bool = True) -> dict[str, Any]:
    """Return an evaluation as plain data: {"episodes", "seed", "policy": {actor: summary}, "baselines": {actor:
    summary}, "steps_policy_to_expert"}. All actors run the same episodes. A policy of None leaves `policy` empty."""
    results = evaluate_actors(env, policy, episodes, seed, run_sharded=run_sharded, baselines=baselines)
    summaries = {name: summarize(result) for name, result in results.items()}
    of_policy = {name: summaries.pop(name) for name in POLICY_ACTORS if name in summaries}
    ratio = step_ratio(results["greedy"], results["expert"]) if of_policy and baselines else None
    return {"episodes": episodes, "seed": seed, "policy": of_policy, "baselines": summaries,
            "steps_policy_to_expert": ratio}


# --- tables -----------------------------------------------------------------------------------------------------
def format_table(figures: dict[str, Any]) -> str:
    """Return the result of `evaluate_policy` as a table: a row for each goal, a column for each actor, in percent."""
    columns = figures["policy"] | figures["baselines"]
    first = next(iter(columns.values()))
    width = max(map(len, [*first["per_goal"], "95 % interval"])) + 1

    def row(title, cell):
        return f"{title:<{width}}" + "".join(f"{cell(column):>15}" for column in columns.values())

    lines = [f"{'success, %':<{width}}" + "".join(f"{name:>15}" for name in columns)]
    lines += [row(goal, lambda c, goal=goal: f"{100 * c['per_goal'][goal]['rate']:.1f}") for goal in first["per_goal"]]
    lines.append(row("all", lambda c: f"{100 * c['rate']:.1f}"))
    lines.append(row("95 % interval", lambda c: f"[{100 * c['low']:.1f}, {100 * c['high']:.1f}]"))
    lines.append(row("k of n", lambda c: f"{c['k']} of {c['n']}"))
    for stage in first["stages"]:
        lines.append(row(stage, lambda c, stage=stage: f"{100 * c['stages'].get(stage, 0):.1f}"))
    if figures["steps_policy_to_expert"] is not None:
        lines.append("steps to the goal, policy to expert, where both reach it: "
                     f"{figures['steps_policy_to_expert']:.2f}")
    return "\n".join(lines)


def format_splits(figures: dict[str, dict[str, Any]]) -> str:
    """Return {split: result of an `evaluate_split`} as a table: a row for each split, a column for each actor."""
    names = list(next(iter(figures.values())))
    lines = [f"{'success, %, [95 %]':<32}" + "".join(f"{name:>24}" for name in names)]
    for split, results in figures.items():
        for title, cells in _split_rows(split, [results[name] for name in names]):
            lines.append(f"{title:<32}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def _split_rows(split: str, results: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of a split: (title, a cell for each actor)."""
    if split == "instruction_swap":
        for name in ("instructed", "original"):
            yield f"{split}: {name} goal", [_percent(result[name]) for result in results]
        yield f"{split}: gap", [f"{result['gap']:.2f}" for result in results]
    elif split == "long_horizon":
        for i in range(len(results[0]["tasks_in_a_row"])):
            yield f"{split}: {i + 1} in a row", [_percent(result["tasks_in_a_row"][i]) for result in results]
        yield f"{split}: mean tasks in a row", [f"{result['mean']:.2f}" for result in results]
    else:
        yield split, [_percent(result) for result in results]


def _percent(rate: dict[str, float]) -> str:
    return f"{100 * rate['rate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
