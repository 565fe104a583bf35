"""The scripted policies: expert, random and no-op actions, and relabelled goals."""
import numpy as np
import pytest

from simulator.evaluation import run_episodes
from simulator.particles.actions import ActionStatus
from simulator.particles.commands import instructions_by_goal
from simulator.particles.env import ParticleVectorEnv


def test_asking_otherwise_leaves_the_world_as_it_was():
    env = ParticleVectorEnv(64)
    env.reset(seed=0)
    goals, texts, expert = list(env.task.goals), list(env.task.texts), env.expert_actions()
    asked, actions = env.relabel_goals(np.random.default_rng(0), 0.5)
    asked = asked["goal"]
    assert env.task.goals == goals and env.task.texts == texts
    assert actions.shape == (64, 7) and len(asked) == 64
    kept = np.array([text in instructions_by_goal()[str(goal)] for text, goal in zip(asked, goals, strict=True)])
    assert 24 <= kept.sum() <= 48                      # half are kept, and 1 of 16 of the others draws the same goal
    np.testing.assert_array_equal(actions[kept], expert[kept])
    assert (actions[~kept] != expert[~kept]).any(1).mean() > 0.9


def test_the_task_can_be_done_and_not_by_doing_nothing():
    env = ParticleVectorEnv(32)
    seeds, goals = 1000 + np.arange(64), env.round_robin_goals(64)
    expert = run_episodes(env, lambda obs, envs: env.expert_actions()[envs], seeds, goals)
    nothing = run_episodes(env, lambda obs, envs: env.noop_actions()[envs], seeds, goals)
    assert expert["success"].sum() >= 61                          # 95 % of 64
    assert nothing["success"].sum() == 0 and (nothing["length"] == 32).all()
    assert expert["return"].mean() > 1 > nothing["return"].max()


def test_the_expert_can_be_imitated():
    """A copy of it points a few pixels beside what it points at: with 6 px of noise it still reaches its goals."""
    env, rng = ParticleVectorEnv(64), np.random.default_rng(0)

    def imprecise(obs, envs):
        actions = env.expert_actions()[envs]
        actions[:, 2:4] = np.clip(actions[:, 2:4] + rng.normal(0, 6, (len(envs), 2)), 0, 64)
        return actions

    result = run_episodes(env, imprecise, 1000 + np.arange(128), env.round_robin_goals(128))
    assert result["success"].sum() >= 122                         # 95 % of 128
    aligned = [goal.startswith("align") for goal in result["goal"]]
    assert result["success"][aligned].sum() >= 15                 # of 16


@pytest.mark.parametrize("name", [
    "expert", "random", "noop"])
def test_scripted_actions_are_actions(name):
    env = ParticleVectorEnv(64)
    env.reset(seed=0)
    actions = {"expert": env.expert_actions, "noop": env.noop_actions,
               "random": lambda: env.random_actions(np.random.default_rng(0))}[name]()
    assert actions.dtype == np.float32 and env.action_space.contains(actions)
    assert (env.step(actions)[-1]["action_status"] != ActionStatus.CLIPPED).all() or name == "random"
