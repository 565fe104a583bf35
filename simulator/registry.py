"""The worlds that a policy can be trained in, and what the trainer asks of each.

A world is a module with
    make_env(config, num_envs)      a Gymnasium VectorEnv, autoreset mode SAME_STEP; ValueError for what cannot be
    make_world(config, **options)   one world, for people to look at: Gymnasium's Env
    describe(action)                in words
    sentences(config)               {goal: its sentences} for training
    corpus(config)                  a hash of those files
    splits(config)                  the names of what an agent trained so can be measured in
    measure_split(name, config, policy, episodes, seed, baselines)      see simulator.particles.splits.measure

The vector environment's observation is {"image": uint8 [E,H,W,3], "goal": E strings} and, of some, "proprio" float32
[E,Q]. `reset(options={"goals", "texts"})` fixes what is asked; with the option `once` worlds may rest after their
episode. Where one ends, `infos["episode"]` tells `success`, `goal`, and whatever else is to be averaged;
`infos["final_obs"]` its last observation. Besides:
    words                       of what goals are made; a policy says which of them it reads
    things_to_say(rng, n)       n sentences, and which words they say
    expert_actions()            what a scripted expert does now; noop_actions(), random_actions(rng) are baselines
    ask_otherwise(rng, share)   as if something else had been asked, and the expert's actions for that
    balanced_goals(n)           n goals that go round
    state(), restore(state)     everything the future depends on, as arrays [E,...] and lists; the observation
One world, besides Gymnasium's API: `reset(options={"goal": a goal or a sentence})`; `info` tells `success`, `goal`
(None where it cannot be judged) and a `note` on how it went; `describe(action)` in words; `render()` for people.
"""
from importlib import import_module


class EnvError(ValueError):
    """A world that cannot be had as asked for; the message is one line that says what would be right."""


REGISTRY = {"particles": "simulator.particles.splits", "robosuite": "simulator.robosuite.env"}


def get_env_family(config):
    """The module of a config's world. `config`: as config.load gives it, or `to_dict` of that."""
    return import_module(REGISTRY[config.get("env", {}).get("world", "particles")])


def make_env(config, num_envs=None):
    """The vectorised world that a config describes, `env.num_envs` wide."""
    return get_env_family(config).make_env(config, num_envs or config.env.num_envs)
