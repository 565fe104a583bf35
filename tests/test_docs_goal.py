"""The example of "Add a goal" in simulator/particles/README.md runs as it is printed."""
import re
from pathlib import Path

import numpy as np
import pytest

from simulator.evaluation import run_episodes
from simulator.particles import goals as G
from simulator.particles.env import ParticleVectorEnv

README = Path(__file__).resolve().parent.parent / "simulator" / "particles" / "README.md"
SIZE = np.array([64.0, 64.0])


@pytest.fixture
def example():
    """Execute the document's Python block; return its text. The goal is unregistered afterwards."""
    before = dict(G.GOAL_KINDS)
    code = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[1]
    exec(compile(code, str(README), "exec"), {})
    yield code
    G.GOAL_KINDS.clear()
    G.GOAL_KINDS.update(before)


def test_the_example_is_short(example):
    assert len([line for line in example.splitlines() if line.strip()]) <= 20


def test_the_expert_reaches_the_goal_of_the_example(example):
    plan = G.parse("leave_center()")
    assert str(plan) == "leave_center()" and G.plan_from_slots(G.goal_slots(plan)) == plan
    env = ParticleVectorEnv(16, goals=["leave_center()"], max_steps=64)
    seeds, plans = np.arange(16), [plan] * 16
    result = run_episodes(env, lambda obs, envs: env.expert_actions()[envs], seeds, plans)
    assert result["success"].sum() >= 15
    nothing = run_episodes(env, lambda obs, envs: env.noop_actions()[envs], seeds, plans)
    assert nothing["success"].sum() <= 1


def test_the_example_joins_other_goals(example):
    plan = G.parse("leave_center() AND heat() THEN cluster()")
    assert G.sample_start_state(plan, np.random.default_rng(0), SIZE, 8)[0].shape == (8, 2)


def test_every_goal_of_the_document_is_read():
    section = README.read_text("utf-8").split("## The goal language")[1].split("`goals.parse`")[0]
    texts = [re.sub("  +[a-z ]*$", "", text) for line in section.strip().splitlines()
             for text in re.split(r"    +(?=[a-z_]+\()", line.strip())]
    plans = [G.parse(text) for text in texts if text]
    assert len(plans) == 16 and {goal.kind for plan in plans for goal in plan.goals} == set(G.KINDS)
