"""Instructions and goals of the environments: what is asked, what is scored, and what is refused."""
import unicodedata

import numpy as np
import pytest
from env_helpers import NOOP

from simulator.goal_env import GoalConditionedEnv
from simulator.particles.commands import instructions_by_goal
from simulator.particles.env import ParticleEnv, ParticleVectorEnv
from simulator.particles.goals import GoalError
from simulator.particles.parser import instruction_to_goal
from simulator.registry import EnvError


# --- what is asked ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_instruction_belongs_to_the_goal_that_is_scored(split):
    env = ParticleVectorEnv(32, max_steps=2, instructions=instructions_by_goal(split))
    obs, _ = env.reset(seed=0)
    asked = set()
    for _ in range(12):
        for text, goal in zip(obs["goal"], env.task.goals, strict=True):
            assert instruction_to_goal(text) in (None, str(goal))
        asked |= set(obs["goal"])
        goals = [str(goal) for goal in env.task.goals]
        obs, _, _, truncated, infos = env.step(np.tile(NOOP, (32, 1)))
        if truncated.any():
            assert infos["episode_metrics"]["goal"].tolist() == goals
    assert len(asked) > 50


def test_only_the_goals_asked_for():
    env = ParticleVectorEnv(16, goals=["heat()", "push(direction=up)"], max_steps=1)
    obs, seen = env.reset(seed=0)[0], set()
    for _ in range(3):
        seen |= {instruction_to_goal(text) for text in obs["goal"]}
        obs = env.step(env.noop_actions())[0]
    assert seen - {None} == {"heat()", "push(direction=up)"}


@pytest.mark.parametrize(("request_text", "goal"), [
    ("입자들을 왼쪽으로 이동시켜", "push(direction=left)"), ("heat them up", "heat()"),
    ("align(axis=vertical)", "align(axis=vertical)")])
def test_small_api(request_text, goal):
    env = GoalConditionedEnv(goal=request_text, max_steps=2)
    obs = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    assert obs["goal"] == request_text or obs["goal"] in instructions_by_goal()[goal]
    obs, reward, done, info = env.step(NOOP)
    assert isinstance(reward, float) and done is False and not info["success"] and not info["truncated"]
    assert info["goal"] == goal and info["action_status"] == "OK"
    _, _, done, info = env.step(NOOP)
    assert done is True and info["truncated"] and not info["success"]
    assert env.render().shape == (64, 64, 3) and env.render(scale=4).shape == (256, 256, 3)
    assert env.reset(seed=1, goal="cool()")["goal"] in instructions_by_goal()["cool()"]
    again = GoalConditionedEnv(goal=request_text).reset(seed=0)
    np.testing.assert_array_equal(again["image"], GoalConditionedEnv(goal=request_text).reset(seed=0)["image"])


def test_an_unknown_instruction_can_be_acted_on_but_is_not_scored():
    env = ParticleEnv(max_steps=6)
    obs, info = env.reset(seed=0, options={"goal": "sing me a song"})
    assert obs["goal"] == "sing me a song" and env.task.goals[0] is not None
    assert info["goal"] is None and info["note"] == "no known goal recognised"
    for t in range(1, 7):       # even if the actions serve the goal that the start was drawn for
        _, reward, terminated, truncated, info = env.step(np.array([3, -1, 32, 32, 5, 64, 0], np.float32))
        assert reward == 0 and not info["success"] and info["goal"] is None
        assert not terminated and truncated == (t == 6)
    assert env.reset(seed=0, options={"goal": "heat()"}) and env.step(NOOP)[4]["goal"] == "heat()"


def test_a_goal_in_the_goal_language_or_in_words():
    env = ParticleEnv()
    obs, info = env.reset(seed=0, options={"goal": "push(direction=left)"})
    assert info["goal"] == "push(direction=left)" and obs["goal"] in instructions_by_goal()["push(direction=left)"]
    obs, info = env.reset(seed=0, options={"goal": "move_to(id=1,x>48) AND heat()"})
    assert obs["goal"] == info["goal"] == "move_to(id=1, x>48) AND heat()"      # no instruction says this yet
    obs, info = env.reset(seed=0, options={"goal": "push (gently) to the left"})
    assert obs["goal"] == "push (gently) to the left"
    with pytest.raises(GoalError, match="at character 10"):
        env.reset(seed=0, options={"goal": "heat(to=3"})


# --- instructions -----------------------------------------------------------------------------------------------
DECOMPOSED = unicodedata.normalize("NFD", "입자들을 왼쪽으로 이동시켜")


def test_decomposed_hangul_is_composed():
    env, vector = ParticleEnv(), ParticleVectorEnv(2)
    obs, info = env.reset(seed=0, options={"goal": DECOMPOSED})
    assert info["goal"] == "push(direction=left)" and env.observation_space.contains(obs)
    assert obs["goal"] == GoalConditionedEnv(goal=DECOMPOSED).reset()["goal"] == "입자들을 왼쪽으로 이동시켜"
    obs, _ = vector.reset(seed=0, options={"instructions": [DECOMPOSED, None]})
    assert obs["goal"][0] == "입자들을 왼쪽으로 이동시켜" and vector.observation_space.contains(obs)


@pytest.mark.parametrize(("text", "message"), [
    ("go left \N{ROCKET}", r"contains '\\U0001f680': allowed are Hangul"), ("caf\u00e9", r"contains '\\xe9'"),
    ("left " * 120, "has 600 characters: at most 500"), (" ", "is empty")])
def test_instructions_that_are_not_allowed(text, message):
    vector = ParticleVectorEnv(1)
    for reset in (lambda: ParticleEnv().reset(options={"goal": text}), lambda: GoalConditionedEnv(goal=text),
                  lambda: vector.reset(options={"instructions": [text]})):
        with pytest.raises((EnvError, GoalError), match=message) as caught:
            reset()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("goal", ["dance", "sing me a song"])
def test_an_unknown_goal_is_an_error_that_names_goals(goal):
    for make in (lambda: GoalConditionedEnv(goal=goal), lambda: GoalConditionedEnv().reset(goal=goal)):
        with pytest.raises(GoalError, match=rf"no known goal recognised in '{goal}': .*\(.*\)"):
            make()


@pytest.mark.parametrize("make", [GoalConditionedEnv, ParticleEnv, lambda **kw: ParticleVectorEnv(1, **kw)])
def test_a_misspelt_parameter_names_the_nearest(make):
    with pytest.raises(TypeError, match=r"(GoalConditionedEnv|Particle(Vector)?Env) has no parameter 'widht'.*'width'"):
        make(widht=64)


def test_spaces_print_in_a_few_lines():
    assert len(repr(ParticleEnv().observation_space)) < 200


def test_the_policy_is_told_the_goal_that_is_scored():
    env = GoalConditionedEnv(goal="cluster()")
    for seed in range(3):
        assert env.reset(seed=seed)["goal"] in instructions_by_goal()["cluster()"]
        assert env.step(NOOP)[3]["goal"] == "cluster()"


def test_a_crowded_world_draws_what_it_can_start_for():
    """40 particles in 64x64 leave no room to spread; asked for it, the environment says so."""
    env = GoalConditionedEnv(n_particles=40)
    goals = [env.reset(seed=seed)["goal"] and str(env.env.task.goals[0]) for seed in range(40)]
    assert "spread()" not in goals and len(set(goals)) > 5
    with pytest.raises(GoalError, match="no start for spread"):
        env.reset(goal="spread()")


def test_a_step_before_reset_is_refused():
    with pytest.raises(EnvError, match="call reset"):
        GoalConditionedEnv().step(np.zeros(7, np.float32))
