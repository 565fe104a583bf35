"""Goal-parser training and behaviour cloning: their samples, their updates, and the rounds of recorded demonstrations.

The recorded episodes follow DAgger (Ross et al. 2011, arXiv:1011.0686): in later rounds the policy acts in some of
them and the expert labels its states. This module does not import the module `dataset`; it gets it as an argument.
"""
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm

from models.training.learner import PARAMETER_GROUPS, Obs, minibatch_indices, select_obs
from models.training.ppo import lr_at
from models.training.run_state import DEMOS_FOLDER, Run

NUM_DAGGER_ROUNDS = 8


# --- samples ----------------------------------------------------------------------------------------------------
def collect_instructions(run: Run) -> tuple[list[str], torch.Tensor]:
    """Return N instructions and their goal slots, float32 [N,V]."""
    rng = np.random.default_rng(run.seed_key())
    instructions, slots = run.env.sample_instructions(rng, run.samples_per_process)
    return instructions, torch.from_numpy(slots)


def collect_demos(run: Run, dataset: ModuleType) -> tuple[Obs, torch.Tensor]:
    """Return N demonstration samples, obs and the expert's actions: from new episodes, or from recorded ones."""
    bc = run.config.bc
    run.state.samples += run.samples
    if not bc.data and not bc.episodes:
        return dataset.generate_demos(run.env, run.config.rl.rollout_steps, run.seed_key(), bc.action_noise,
                                      bc.relabel)
    if not bc.data:
        record_missing_rounds(run, dataset)
    rng = np.random.default_rng(run.seed_key())
    return run.demo_dataset.sample(rng, run.samples_per_process, run.env.goals, run.env.sample_instruction, bc.relabel)


def dagger_rounds_at(done: float) -> int:
    """Return how many rounds must exist after the fraction `done` of behaviour cloning; all after two thirds."""
    return 1 + int((NUM_DAGGER_ROUNDS - 1) * min(1, 1.5 * done))


def episodes_of_round(episodes: int, number: int, num_processes: int) -> int:
    """Return how many episodes a process records in a round: a third in round 0, the others equally in the rest."""
    later_rounds = NUM_DAGGER_ROUNDS - 1
    weight = later_rounds if number == 0 else 2
    return max(1, round(episodes * (weight / (3 * later_rounds)) / num_processes))


def record_missing_rounds(run: Run, dataset: ModuleType) -> None:
    """Record the rounds that must exist by now, and load all of them into `run.demo_dataset`."""
    files = [run.folder / DEMOS_FOLDER / f"{number:02d}-{run.rank}.hdf5"
             for number in range(dagger_rounds_at(run.done()))]
    missing = [number for number, path in enumerate(files) if not path.exists()]
    for number in missing:
        collect_dagger_round(run, dataset, number, files[number])
    if missing or run.demo_dataset is None:
        run.demo_dataset = dataset.DemoDataset(files, discrete=run.config.robosuite.action_space == "discrete")


def collect_dagger_round(run: Run, dataset: ModuleType, number: int, path: Path) -> None:
    """Record a round of demonstrations in a file; from the second round on the policy acts in some episodes."""
    bc = run.config.bc
    count = episodes_of_round(bc.episodes, number, run.accelerator.num_processes)
    seed = int(np.random.SeedSequence([run.config.seed, run.rank, number]).generate_state(1)[0])
    run.policy.use_dropout(False).eval()

    def act(obs: Obs) -> np.ndarray:
        return run.policy.act(obs)[0].cpu().numpy()

    title = f"demonstrations, round {number + 1} of {NUM_DAGGER_ROUNDS}"
    with tqdm(total=count, unit="episode", desc=title, leave=False, disable=not run.is_main) as bar:
        episodes = dataset.record_demos(run.env, count, seed, bc.action_noise, act,
                                        bc.dagger_fraction if number else 0.0, lambda *_: bar.update())
        dataset.write_demonstrations(path, episodes, run.env.call("env_args")[0])


# --- updates ----------------------------------------------------------------------------------------------------
def set_bc_mode(run: Run) -> None:
    """Set learning rate, dropout and BPE dropout for goal-parser training and behaviour cloning."""
    bc = run.config.bc
    rate = lr_at(bc.lr, run.config.train.lr_schedule, run.done())
    run.learner.set_learning_rates(dict.fromkeys(PARAMETER_GROUPS, rate))
    run.policy.use_dropout(True, bc.bpe_dropout).train()


def update_parser(run: Run, batch: tuple[list[str], torch.Tensor], generator: torch.Generator) -> dict[str, float]:
    """Train the goal parser for one pass over N instructions with slots [N,V]; return the mean metrics.

    It needs no images, and it learns ten times faster than during behaviour cloning.
    """
    instructions, goal_slots = batch
    set_bc_mode(run)

    def arguments(index: torch.Tensor) -> tuple:
        return [instructions[i] for i in index], goal_slots[index]

    indices = minibatch_indices(run.learner, len(instructions), generator)
    return run.learner.reduce_metrics(run.learner.run_updates("parser", arguments, indices))


def update_bc(run: Run, batch: tuple[Obs, torch.Tensor], generator: torch.Generator) -> dict[str, float]:
    """Clone the expert for one pass over N demonstration samples; return the mean metrics."""
    obs, actions = batch
    set_bc_mode(run)

    def arguments(index: torch.Tensor) -> tuple:
        return select_obs(obs, index), actions[index]

    indices = minibatch_indices(run.learner, len(actions), generator)
    return run.learner.reduce_metrics(run.learner.run_updates("bc", arguments, indices))
