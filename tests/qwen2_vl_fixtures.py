"""Fixtures of small Qwen2-VL models, a pytest plugin."""
import pytest
from qwen2_vl_helpers import build_model, save_strong_model

from simulator.particles.env import ParticleVectorEnv


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The small model as a hub repository."""
    return save_strong_model(tmp_path_factory.mktemp("qwen") / "base")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    """The same configuration, other weights."""
    return save_strong_model(tmp_path_factory.mktemp("qwen") / "other", seed=1)


@pytest.fixture(scope="session")
def plain(folder):
    """A policy without adapters. Shared, as `adapted`: do not change the weights, and leave it in eval()."""
    return build_model(folder, lora=None)


@pytest.fixture(scope="session")
def adapted(folder):
    return build_model(folder)


@pytest.fixture(scope="session")
def agent(adapted, tmp_path_factory):
    """`adapted` as a folder for the hub."""
    path = tmp_path_factory.mktemp("agents") / "agent"
    adapted.save_pretrained(path, {"seed": 3}, "| goal | success |\n|---|---|\n| left | 40 % |")
    return path


@pytest.fixture(scope="session")
def obs():
    return ParticleVectorEnv(8).reset(seed=0)[0]
