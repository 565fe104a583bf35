"""Fixtures of the robosuite arm, a pytest plugin."""
import pytest
from robosuite_env_helpers import INSTRUCTIONS

from simulator.registry import EnvError
from simulator.robosuite.env import RobosuiteEnv
from simulator.robosuite.rendering import setup_mujoco_gl


@pytest.fixture(scope="module", autouse=True)
def rendering():
    try:
        setup_mujoco_gl()
    except EnvError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def make():
    """make(task, ...): an env, built once for each choice of settings."""
    envs = {}

    def get(task="Lift", **settings):
        key = task, str(sorted(settings.items()))
        if key not in envs:
            envs[key] = RobosuiteEnv(task=task, instructions=INSTRUCTIONS, **settings)
        return envs[key]
    yield get
    for env in envs.values():
        env.close()
