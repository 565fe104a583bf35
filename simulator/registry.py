"""The environment families that a policy can be trained in, by the name of the config key `env.world`.

A family is an instance of `simulator.api.EnvFamily`. The registry holds names
only: a family is imported when a config asks for it.
"""
import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from config import UserError

if TYPE_CHECKING:
    from simulator.api import EnvFamily, GoalVectorEnv


class EnvError(UserError):
    """An environment that cannot be made or used as requested. The message is one line that says what is allowed."""


REGISTRY = {    # env.world: "module:attribute"
    "particles": "simulator.particles.splits:FAMILY",
    "robosuite": "simulator.robosuite.splits:FAMILY",
}


def get_env_family(config: Mapping[str, Any]) -> "EnvFamily":
    """Return the environment family of a config: what `config.load` returns, or that as a plain dict.

    A config without the key `env.world`, as old checkpoints have it, means the particles. EnvError: the name is not
    registered.
    """
    name = config.get("env", {}).get("world", "particles")
    if name not in REGISTRY:
        nearest = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0)[0]
        raise EnvError(f"unknown env.world={name}: did you mean {nearest}? The known ones are {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(import_module(module), attribute)


def make_env(config: Mapping[str, Any], num_envs: int | None = None) -> "GoalVectorEnv":
    """Return the vector env of a config, by default with `env.num_envs` envs. EnvError, GoalError or CorpusError:
    the config does not fit the environment."""
    family = get_env_family(config)
    return family.make_vector(config, num_envs or config.env.num_envs)
