"""Success as k of n episodes with fixed seeds and a 95 % Wilson interval, and the tables that show it."""
import math
from functools import partial

import numpy as np
import torch

from simulator.rollout import tree_map


def wilson(k, n, z=1.959964):
    """95 % interval of a share (Wilson 1927, JASA 22:209): -> (low, high) in [0, 1]."""
    if n == 0:
        return 0.0, 1.0
    p, d = k / n, 1 + z * z / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / d), min(1.0, (middle + half) / d)


def success_rate(k, n):
    """{"k", "n", "rate", "low", "high"} of k successes in n episodes."""
    low, high = wilson(k, n)
    return {"k": int(k), "n": int(n), "rate": k / n if n else 0.0, "low": low, "high": high}


def _rows(rows, leaf):
    return leaf[rows] if isinstance(leaf, np.ndarray) else tuple(leaf[i] for i in rows)


def run_episodes(env, act, seeds, goals=None, texts=None, monitor_goals=None):
    """One episode for each seed -> {"success" bool [n], "length" int [n], "return" [n], "goal" [n] strings}, and what
    else the environment tells of an episode, float [n].

    `act(obs, worlds)` gives actions for the still running worlds (indices into the environment) only. Episodes are
    run `env.num_envs` at a time; `goals`, `texts` and `watch` [n] are the environment's options, as far as it has them.
    """
    n, e = len(seeds), env.num_envs
    result = {"success": np.zeros(n, bool), "length": np.zeros(n, int), "return": np.zeros(n),
              "goal": np.full(n, "", object)}
    for first in range(0, n, e):
        block = [min(first + i, n - 1) for i in range(e)]        # the last block is filled up with its last episode
        asked = {"goals": goals, "instructions": texts, "monitor_goals": monitor_goals}
        options = {"single_episode": True} | {key: [values[i] for i in block] for key, values in asked.items()
                                    if values is not None}
        obs, _ = env.reset(seed=[int(seeds[i]) for i in block], options=options)
        running = np.arange(min(e, n - first))
        actions = np.zeros(env.action_space.shape, env.action_space.dtype)
        while len(running):
            actions[running] = act(tree_map(partial(_rows, running), obs), running)
            obs, rewards, terminated, truncated, infos = env.step(actions)
            result["length"][first + running] += 1
            result["return"][first + running] += rewards[running]
            ended = running[(terminated | truncated)[running]]
            if len(ended):
                for name, values in infos["episode"].items():
                    if not name.startswith("_"):        # Gymnasium's masks of which worlds tell it
                        result.setdefault(name, np.full(n, np.nan))[first + ended] = values[ended]
            running = np.setdiff1d(running, ended)
    return result


def policy_actor(policy, deterministic):
    """`act` of a trained policy, for run_episodes."""
    return lambda obs, worlds: policy.act(obs, deterministic)[0].cpu().numpy()


def run_local(run, count):
    """`run(indices)` -> a dict of arrays [n], for all `count` indices. What spreads them over processes looks alike."""
    return run(np.arange(count))


def evaluate_actors(env, policy, episodes, seed, goals=None, texts=None, monitor_goals=None, run_sharded=run_local, baselines=True):
    """The policy, deterministic and sampled, and the baselines, on the same episodes: {name: run_episodes' result}.

    The goals go round in equal shares unless given. `spread`: see `alone`."""
    seeds = seed + np.arange(episodes)
    goals = env.round_robin_goals(episodes) if goals is None else goals
    rng = np.random.default_rng(seed)
    actors = {"greedy": policy_actor(policy, True), "sampled": policy_actor(policy, False)} if policy else {}
    if baselines:
        actors |= {"no-op": lambda obs, worlds: env.noop_actions()[worlds],
                   "random": lambda obs, worlds: env.random_actions(rng)[worlds],
                   "expert": lambda obs, worlds: env.expert_actions()[worlds]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        run = lambda act: lambda rows: run_episodes(env, act, seeds[rows], [goals[i] for i in rows],
                                                    texts and [texts[i] for i in rows],
                                                    monitor_goals and [monitor_goals[i] for i in rows])
        return {name: run_sharded(run(act), episodes) for name, act in actors.items()}


def summarize(result):
    """k of n with its interval, in all and `per_goal`, the mean length of successful episodes, and the shares of
    episodes that came through the `stages` which the environment tells of."""
    success, goals = result["success"], result["goal"]
    per_goal = {str(goal): success_rate(success[goals == goal].sum(), (goals == goal).sum())
                for goal in dict.fromkeys(goals)}
    steps = float(result["length"][success].mean()) if success.any() else None
    more = {name: values for name, values in result.items() if name not in ("success", "length", "return", "goal")}
    stages = {name: float(np.nanmean(values)) for name, values in more.items() if not np.isnan(values).all()}
    return success_rate(success.sum(), len(success)) | {"mean_steps": steps, "per_goal": per_goal, "stages": stages}


def step_ratio(a, b):
    """Total steps of `a` over those of `b` on the episodes that both solve; None if there are none."""
    both = a["success"] & b["success"]
    return float(a["length"][both].sum() / b["length"][both].sum()) if both.any() else None


def evaluate_policy(env, policy, episodes, seed, run_sharded=run_local, baselines=True):
    """Everything a report needs, as plain data: `policy` (deterministic, sampled; none of None) and `baselines` (no-op,
    random, expert) on the same episodes, and the deterministic policy's steps to the expert's where both succeed."""
    results = evaluate_actors(env, policy, episodes, seed, run_sharded=run_sharded, baselines=baselines)
    figures = {name: summarize(result) for name, result in results.items()}
    mine = {name: figures.pop(name) for name in ("greedy", "sampled") if name in figures}
    ratio = step_ratio(results["greedy"], results["expert"]) if mine and baselines else None
    return {"episodes": episodes, "seed": seed, "policy": mine, "baselines": figures, "steps_policy_to_expert": ratio}


def format_table(figures):
    """What `evaluate_policy` gave as a table: a row per goal, a column per policy, success in percent."""
    columns = figures["policy"] | figures["baselines"]
    goals = list(next(iter(columns.values()))["per_goal"])
    width = max(map(len, [*goals, "95 % interval"])) + 1
    row = lambda title, cells: f"{title:<{width}}" + "".join(f"{cell:>15}" for cell in cells)
    lines = [row("success, %", columns)]
    lines += [row(goal, [f"{100 * c['per_goal'][goal]['rate']:.1f}" for c in columns.values()]) for goal in goals]
    lines += [row("all", [f"{100 * c['rate']:.1f}" for c in columns.values()]),
              row("95 % interval", [f"[{100 * c['low']:.1f}, {100 * c['high']:.1f}]" for c in columns.values()]),
              row("k of n", [f"{c['k']} of {c['n']}" for c in columns.values()])]
    for stage in next(iter(columns.values()))["stages"]:
        lines.append(row(f"stage: {stage}", [f"{100 * c['stages'].get(stage, 0):.1f}" for c in columns.values()]))
    if figures["steps_policy_to_expert"] is not None:
        ratio = figures["steps_policy_to_expert"]
        lines.append(f"steps to the goal, policy to expert, where both reach it: {ratio:.2f}")
    return "\n".join(lines)


def format_splits(figures):
    """{split: what a world's `measure_split` gave} as one table."""
    names = list(next(iter(figures.values())))
    row = lambda title, cells: f"{title:<22}" + "".join(f"{cell:>24}" for cell in cells)
    percent = lambda s: f"{100 * s['rate']:.1f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
    lines = [row("success, %, [95 %]", names)]
    for split, columns in figures.items():
        cells = [columns[name] for name in names]
        if split == "instruction_swap":
            lines += [row("swap: spoken goal", [percent(c["instructed"]) for c in cells]),
                      row("swap: true goal", [percent(c["original"]) for c in cells]),
                      row("swap: gap", [f"{c['gap']:.2f}" for c in cells])]
        elif split == "long_horizon":
            lines += [row(f"chain: {n} in a row", [percent(c["tasks_in_a_row"][n - 1]) for c in cells])
                      for n in range(1, len(columns[names[0]]["tasks_in_a_row"]) + 1)]
            lines.append(row("chain: mean, of 5", [f"{c['mean']:.2f}" for c in cells]))
        else:
            lines.append(row(split, map(percent, cells)))
    return "\n".join(lines)
