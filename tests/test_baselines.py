"""Goals are neither trivial nor out of reach: chance rarely solves one, and the scripted expert nearly always does."""
import numpy as np
import pytest

from simulator.evaluation import make_actors, run_episodes
from simulator.particles import goals as G
from simulator.particles.env import ParticleVectorEnv

EPISODES = 250      # of each goal, or of each kind of a group
NUM_ENVS = 125
SEED = 9000


def solved(env, names, count):
    """{actor: bool [count,EPISODES]}: success on EPISODES of each of the first `count` round-robin goals."""
    goals = env.round_robin_goals(count * EPISODES)
    seeds = SEED + np.arange(len(goals))
    results = {name: run_episodes(env, act, seeds, goals) for name, act in make_actors(env, None, 0, names).items()}
    return {name: result["success"].reshape(EPISODES, count).T for name, result in results.items()}


def check(labels, success):
    """Random actions solve at most 15 % of each, the expert at least 98 %."""
    for name, row in zip(labels, success["random"], strict=True):
        assert row.mean() <= 0.15, f"random actions solve {100 * row.mean():.0f} % of {name}"
    for name, row in zip(labels, success["expert"], strict=True):
        assert row.mean() >= 0.98, f"the expert solves {100 * row.mean():.1f} % of {name}"


def test_simple_goals():
    env = ParticleVectorEnv(NUM_ENVS)
    assert len(G.GOALS) == 16
    check(G.GOALS, solved(env, ("random", "expert"), 16))


@pytest.mark.parametrize("group", ["quantified", "per_object"])
def test_groups_by_kind(group):
    env = ParticleVectorEnv(NUM_ENVS, goals=[group])
    kinds = [kind[0].goals[0].kind for kind in env.task.choices[0]]
    assert len(set(kinds)) == len(kinds) > 1
    check([f"{group} {kind}" for kind in kinds], solved(env, ("random", "expert"), len(kinds)))
