"""What becomes a training batch: demonstrations of the scripted expert, made fresh from the simulator."""
import numpy as np
import torch

from simulator.rollout import stack, tree_map


def demonstrations(env, steps, seed, perturb, relabel):
    """`steps` steps of all worlds under the expert -> obs (leaves [T*E,...]), with what else is known of what is asked
    (the environment's `ask_otherwise`), and actions float32 [T*E,A].

    Before a share `perturb` of the steps a world takes a random action instead of the expert's, so that the states
    hold mistakes and the labels (always the expert's) how to mend them (the idea of DART, Laskey et al. 2017,
    arXiv:1703.09327). A share `relabel` of the pairs asks for another goal in the same state, which teaches that the
    sentence decides. A function of `seed` alone: the worlds are reset first.
    """
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=rng.integers(2**31, size=env.num_envs))
    seen, labels = [], []
    for _ in range(steps):
        expert = env.expert_actions()
        asked, actions = env.ask_otherwise(rng, relabel)
        seen.append(obs | asked)
        labels.append(actions)
        stray = rng.random(env.num_envs) < perturb
        taken = np.where(stray[:, None], env.random_actions(rng), expert)
        obs, *_ = env.step(taken)
    flat = tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stack(seen))
    return flat, torch.from_numpy(np.concatenate(labels))


def minibatches(count, size, generator):
    """Index tensors of shuffled minibatches over `count` samples; a last one under half the size is left out."""
    order = torch.randperm(count, generator=generator)
    return [batch for batch in order.split(size) if len(batch) * 2 >= min(size, count)]


def select(obs, index):
    """The samples `index` of an observation with leaves [N,...]."""
    index = index.numpy()
    return tree_map(lambda leaf: leaf[index], obs)
