"""The state of a training run: its progress and files, its random seeds, how it is resumed, how Ctrl-C stops it."""
import contextlib
import errno
import fcntl
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium
import numpy as np
import torch
from accelerate.utils import gather_object

import config as configuration
from config import UserError
from models import checkpoint
from models.training.learner import Learner
from models.training.tracker import MetricsLogger

STAGES = ("parser", "bc", "ppo")
SEED_NUMBERS = {"bc": 0, "ppo": 1, "parser": 2}
STATE_FILE, BEST_FILE, FINAL_FILE, HUB_FOLDER = "vlm_state.pt", "vlm_best.pt", "vlm_final.pt", "vlm_best"
CONFIG_FILE, METRICS_FILE, DEMOS_FOLDER, PREVIOUS_RUNS = "config.yaml", "metrics.jsonl", "demos", "previous_runs"
RUN_FILES = (HUB_FOLDER, DEMOS_FOLDER, BEST_FILE, FINAL_FILE, METRICS_FILE, CONFIG_FILE, "curves.png", "eval.json",
             "vlm_best.json", "vlm_final.json", "rollout.gif", "episodes.gif")
# A resumed run keeps these settings. The keys of the environment families are in configuration.SETTINGS_GROUPS.
KEPT_SETTINGS = ("seed", "model.", "env.", "parser.", "bc.", "train.output_dir",
                 *(f"{group}." for groups in configuration.SETTINGS_GROUPS.values() for group in groups))


@dataclass
class TrainState:
    """The progress of a run, as a training state saves it.

    `iteration` counts within the stage. `samples` counts those of behaviour cloning and PPO, `env_steps` those of PPO,
    both of all processes. `best` is the best validation success so far, -1 before the first evaluation. `lines` is the
    length of metrics.jsonl. `wandb_id` is empty without W&B.
    """
    stage: str = "parser"
    iteration: int = 0
    samples: int = 0
    env_steps: int = 0
    best: float = -1.0
    seconds: float = 0.0
    lines: int = 0
    wandb_id: str = ""

    def next_stage(self) -> None:
        """Go to the first iteration of the next stage; the last stage stays."""
        if self.stage != STAGES[-1]:
            self.stage = STAGES[STAGES.index(self.stage) + 1]
            self.iteration = 0


class Run:
    """A training run: config, environments, learner, progress and files. Each process has its own.

    `samples` counts those of one iteration of all processes, `num_iterations` the iterations of each stage.
    `env_slice` is this process's part of all environments. `obs` is None before the first rollout. `episode_stats`
    [2,E] holds return and length of the running episodes.
    """

    def __init__(self, config: Any, env: gymnasium.vector.VectorEnv, learner: Learner, folder: Path,
                 corpus_hash: str):
        self.config, self.env, self.learner, self.folder = config, env, learner, folder
        self.corpus_hash = corpus_hash
        self.policy, self.accelerator = learner.policy, learner.accelerator
        self.rank, self.is_main = self.accelerator.process_index, self.accelerator.is_main_process
        self.env_slice = slice(self.rank * env.num_envs, (self.rank + 1) * env.num_envs)
        self.samples = config.rl.rollout_steps * config.env.num_envs
        self.samples_per_process = self.samples // self.accelerator.num_processes
        self.num_iterations = {"parser": math.ceil(config.parser.samples / self.samples),
                               "bc": math.ceil(config.bc.epochs * config.bc.samples / self.samples),
                               "ppo": config.rl.iterations}
        self.state = TrainState()
        self.obs, self.demo_dataset, self.logger, self.interrupt = None, None, None, None
        self.rollout_metrics = {}
        self.episode_stats = np.zeros((2, env.num_envs))
        self.began = time.perf_counter()

    def restore(self, meta: dict, weights: dict[str, torch.Tensor], state: dict) -> dict:
        """Restore a training state, as `checkpoint.load` gave it; return the states of all environments."""
        self.state = TrainState(**meta["progress"])
        self.began -= self.state.seconds
        self.policy.load_trainable_state_dict(weights)
        self.learner.restore(state["optimizer"])
        self.episode_stats = state["episode_stats"][:, self.env_slice].copy()
        return state["envs"]

    def open_logger(self) -> None:
        """Open metrics.jsonl and W&B in the main process."""
        if self.is_main:
            self.logger = MetricsLogger(self.folder, self.config.log, self.config.to_dict(), self.state.lines,
                                        self.state.wandb_id)
            self.state.wandb_id = self.logger.wandb_id

    def close(self, at_once: bool = False) -> None:
        """Restore the signal handlers, and close the logger unless `at_once`."""
        self.interrupt.restore()
        if self.logger and not at_once:
            self.logger.close()

    def done(self) -> float:
        """Return the finished fraction of the stage."""
        return self.state.iteration / self.num_iterations[self.state.stage]

    def seed_key(self) -> list[int]:
        """Return the entropy of this iteration's random numbers other than torch's."""
        return seed_key(self.config.seed, self.state.stage, self.state.iteration, self.rank)

    def feature_cache(self) -> contextlib.AbstractContextManager:
        """Return the context of an iteration: in PPO, a frozen vision tower encodes each image once."""
        return self.policy.backbone.cache_vision_features() if self.state.stage == "ppo" else contextlib.nullcontext()

    def should_stop(self) -> bool:
        """Return whether any process was asked to stop."""
        return float(self.learner.mean(float(bool(self.interrupt)))) > 0

    def meta(self) -> dict:
        """Return what a checkpoint says about the run that made it."""
        return {"presets": list(self.config.presets), "config": self.config.to_dict(), "seed": self.config.seed,
                "corpus": self.corpus_hash, "training_seconds": round(time.perf_counter() - self.began, 1),
                "processes": self.accelerator.num_processes, "samples": self.state.samples,
                "environment_steps": self.state.env_steps, "success": self.state.best, "torch": torch.__version__,
                "model_config": self.policy.model_config()}

    def save_policy(self, name: str) -> None:
        """Save an inference checkpoint. Every process must call it."""
        weights = self.policy.trainable_state_dict()
        if self.is_main:
            checkpoint.save(self.folder / name, self.meta(), weights)

    def save_state(self, env_states: dict) -> None:
        """Save a training state with the states of all environments, or {}. Every process must call it."""
        weights, optimizer = self.policy.trainable_state_dict(), self.learner.state()
        episode_stats = gather_object([self.episode_stats])
        if self.is_main:
            self.state.lines = len(self.logger.rows)
            save_training_state(self.folder, self.config.train.keep_checkpoints,
                                self.meta() | {"progress": asdict(self.state)}, weights,
                                {"optimizer": optimizer, "envs": env_states,
                                 "episode_stats": np.concatenate(episode_stats, 1)})

    def keep_best(self, success: float) -> None:
        """Save the policy as the best one if its validation success is not below the best so far."""
        if success >= self.state.best:
            self.state.best = success
            self.save_policy(BEST_FILE)


# --- random numbers ---------------------------------------------------------------------------------------------
def seed_key(seed: int, stage: str, iteration: int, rank: int = 0) -> list[int]:
    """Return the entropy of an iteration's random numbers, so that a resumed run draws the same ones."""
    return [seed, SEED_NUMBERS[stage], iteration, rank]


def seed_step(seed: int, stage: str, iteration: int, rank: int = 0) -> torch.Generator:
    """Seed torch's global generator for an iteration, and return a second generator for shuffling."""
    global_seed, shuffle_seed = np.random.SeedSequence(seed_key(seed, stage, iteration, rank)).generate_state(2)
    torch.manual_seed(int(global_seed))
    return torch.Generator().manual_seed(int(shuffle_seed))


# --- files ------------------------------------------------------------------------------------------------------
def read_config(argv: list[str]) -> tuple[Any, tuple | None]:
    """Return the config, and what `checkpoint.load` gave for the training state `train.resume`, or None.

    Raises UserError for a setting that a resumed run keeps.
    """
    keys = [configuration.OLD_KEYS.get(key, key) for key in (word.partition("=")[0].rstrip(":") for word in argv)]
    paths = [word.partition("=")[2].strip("'\"") for key, word in zip(keys, argv, strict=True) if key == "train.resume"]
    if not paths:
        return configuration.main_config(argv), None
    path = Path(paths[-1])
    resume = checkpoint.load(path)
    if resume[2] is None:
        raise UserError(f"{path} is an inference checkpoint, not a training state: give the {STATE_FILE} beside it")
    others = [word for key, word in zip(keys, argv, strict=True) if key != "train.resume"]
    for key, word in zip(keys, argv, strict=True):
        if key.startswith(KEPT_SETTINGS):
            raise UserError("a resumed run keeps its seed, model, environment, demonstrations and folder (that of the "
                            f"training state): leave out {word!r}")
        if key == "rl.rollout_steps" and resume[0]["progress"]["stage"] != "ppo":
            raise UserError("rl.rollout_steps sets the samples of an iteration and can be changed on resume only "
                            f"once PPO has begun: leave out {word!r}")
    return configuration.from_dict(resume[0]["config"], [*others, f"train.output_dir:={path.parent}"]), resume


def save_training_state(folder: Path, keep: int, meta: dict, weights: dict[str, torch.Tensor], state: dict) -> None:
    """Save a training state as vlm_state.pt. `keep` states stay, the older ones as vlm_state.1.pt and so on."""
    older_names = [f"vlm_state.{i}.pt" for i in range(1, keep)]
    paths = [folder / name for name in (STATE_FILE, *older_names)]
    for newer, older in reversed(list(zip(paths, paths[1:], strict=False))):
        if newer.exists():
            with checkpoint.atomic_write(older) as temporary:      # a copy, so that the newest always exists
                shutil.copyfile(newer, temporary)
    checkpoint.save(paths[0], meta, weights, state)


@contextlib.contextmanager
def lock_output_dir(folder: Path) -> Iterator[None]:
    """Hold the output folder for this run alone, in this context; remove it again if nothing was written.

    Raises UserError if it cannot be written or if another run holds it.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write to train.output_dir={str(folder)!r} ({error.strerror}): "
                        "name a folder that can be written") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise UserError(f"another run is writing to {folder}: wait for it, "
                                "or give train.output_dir=OTHER") from None
            print(f"warning: {folder} cannot be locked ({error.strerror}): do not start a second run in it",
                  file=sys.stderr)
        try:
            yield
        finally:
            if is_new and [path.name for path in folder.iterdir()] == [".lock"]:
                shutil.rmtree(folder, ignore_errors=True)


def archive_previous_run(folder: Path) -> None:
    """Move the files of an earlier run to previous_runs/<time>/."""
    candidates = [*(folder / name for name in RUN_FILES), *folder.glob("vlm_state*.pt")]
    files = [path for path in candidates if path.exists()]
    if not files:
        return
    written = time.localtime(files[0].stat().st_mtime)
    archive = folder / PREVIOUS_RUNS / time.strftime("%Y%m%d-%H%M%S", written)
    while archive.exists():
        archive = archive.with_name(archive.name + "+")
    archive.mkdir(parents=True)
    for path in files:
        path.rename(archive / path.name)
    print(f"moved the files of the previous run to {archive}")


def resume_command(folder: Path) -> str:
    """Return the command that resumes the run in a folder."""
    return f"python train_vlm.py train.resume:={folder / STATE_FILE}"


class Interrupt:
    """A flag that is true after Ctrl-C or SIGTERM: the run ends after this iteration. A second one stops it at once."""

    def __init__(self):
        self.requested = False
        is_main_thread = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if is_main_thread else ()
        self.previous_handlers = {number: signal.signal(number, self._handle) for number in signals}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nfinishing this iteration and saving; press Ctrl-C again to stop at once", file=sys.stderr)

    def __bool__(self) -> bool:
        return self.requested

    def restore(self) -> None:
        """Restore the signal handlers of before."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
