"""The defaults that GoalVectorEnv gives to a vector env."""
import unicodedata

import gymnasium
import numpy as np
import pytest

from simulator.api import GoalVectorEnv, SingleEnv
from simulator.registry import EnvError


class Grid(GoalVectorEnv):
    """The least that a vector env has to define for the defaults of GoalVectorEnv."""
    goals, goal_vocab = ("left", "right"), ("1 left", "1 right")

    def __init__(self, single_action_space):
        self.num_envs, self.single_action_space = 3, single_action_space
        self.current_goals = ["left"] * 3


@pytest.mark.parametrize("space", [gymnasium.spaces.Discrete(4, start=2),
                                   gymnasium.spaces.Box(np.float32([1, -2]), np.float32([3, 2]))])
def test_defaults_of_a_vector_env(space):
    env, rng = Grid(space), np.random.default_rng(0)
    for actions in (env.noop_actions(), env.random_actions(rng)):
        assert len(actions) == 3 and all(space.contains(action) for action in actions)
    texts, labels = env.sample_instructions(rng, 5)
    assert labels.dtype == np.float32 and labels.tolist() == [[t == "left", t == "right"] for t in texts]
    assert env.round_robin_goals(3) == ["left", "right", "left"] and env.state() == {}
    for call in (env.expert_actions, lambda: env.relabel_goals(rng, 0.5)):
        with pytest.raises(EnvError, match="no expert"):
            call()


def test_a_single_env_composes_its_instruction():
    env = Grid(gymnasium.spaces.Discrete(4))
    env.single_observation_space = None
    env.reset = lambda seed, options: ({"image": np.zeros((1, 2, 2, 3)), "goal": options["instructions"]}, {})
    single = SingleEnv(env)
    decomposed = unicodedata.normalize("NFD", "왼쪽")
    assert single.reset(options={"goal": decomposed})[0]["goal"] == "왼쪽" != decomposed
    with pytest.raises(EnvError, match="contains"):
        single.reset(options={"goal": "go 🙂"})


def test_defaults_are_a_mixin():
    """They do not shadow what AsyncVectorEnv defines."""
    class Both(GoalVectorEnv, gymnasium.vector.AsyncVectorEnv):
        pass

    for name in ("reset", "step", "render", "close", "close_extras", "call", "set_attr", "__init__", "metadata"):
        assert getattr(Both, name) is getattr(gymnasium.vector.AsyncVectorEnv, name)
    assert not {name for name in vars(GoalVectorEnv) if not name.startswith("__")} & set(
        dir(gymnasium.vector.AsyncVectorEnv))
