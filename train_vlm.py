"""Train a vision-language model to act in a simulated environment from an instruction.

    python train_vlm.py vlm_tiny                            a tiny Qwen2-VL from scratch on a CPU, in minutes
    python train_vlm.py vlm_full train.lr=3e-4              Qwen2-VL-2B with LoRA
    python train_vlm.py vlm_tiny my.yaml                    a preset and a file of settings
    python train_vlm.py train.resume:=checkpoints/vlm_state.pt    resume a stopped run
    python train_vlm.py --help                              every preset and key
    accelerate launch --num_processes 2 train_vlm.py vlm_tiny     the same run in two processes

`run_stages` is the training loop. Three stages share it: the goal parser is trained on instructions, the policy clones
the expert, and PPO improves it. Each iteration seeds its random numbers from (seed, stage, iteration), so a resumed
run equals an uninterrupted one.

Each process has its part of the `env.num_envs` environments and of every batch of `train.batch_size` samples. Gradients
are averaged, and advantages are normalised over all processes. Every process must call the model equally often.
"""
import contextlib
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import config as configuration

if __name__ == "__main__":
    def stop_import(number: int, frame: object) -> None:
        """Exit without a traceback on Ctrl-C or SIGTERM during the slow imports."""
        print("\nstopped before training began", file=sys.stderr)
        os._exit(130)

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, stop_import)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # spinning threads are slow where others use the cores
    if not any(word.startswith("train.resume") for word in sys.argv):
        configuration.main_config()     # answers --help and wrong words before the slow imports

import gymnasium
import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm import tqdm

import dataset
from config import UserError
from models import checkpoint
from models.backbones import make_backbone
from models.backbones.tiny import init_model_files
from models.heads import spec_from_space
from models.training import bc, ppo, run_state
from models.training.bc import NUM_DAGGER_ROUNDS
from models.training.distributed import (
    is_main_process,
    make_accelerator,
    one_line_message,
    relaunch_under_torchrun,
    run_sharded,
)
from models.training.learner import Learner, NonFiniteError
from models.training.ppo import update_ppo
from models.training.run_state import STAGES, Interrupt, Run, lock_output_dir, read_config, resume_command, seed_step
from models.training.tracker import import_wandb, log_metrics, progress_bar
from models.vlm_policy import VLMPolicy
from simulator.evaluation import evaluate_policy, format_table, policy_actor, run_episodes, summarize
from simulator.recording import record_episodes, save_video
from simulator.registry import get_env_family, make_env
from simulator.rollout import collect as collect_steps
from simulator.rollout import concat_states, slice_states

__all__ = ["Learner", "NUM_DAGGER_ROUNDS", "UserError", "VLMPolicy", "build_policy", "main", "make_accelerator",
           "train", "update_ppo"]
VALIDATION_SEED = 50_000_000     # the episodes that choose the best checkpoint are used in no report


# --- the training loop ------------------------------------------------------------------------------------------
def run_stages(run: Run) -> None:
    """Train the remaining iterations of every stage; return early after Ctrl-C."""
    for stage in STAGES[STAGES.index(run.state.stage):]:
        with progress_bar(run, stage) as bar:
            while run.state.iteration < run.num_iterations[stage] and not run.should_stop():
                generator = seed_step(run.config.seed, stage, run.state.iteration, run.rank)
                with run.feature_cache():
                    data = collect(run)
                    batch = estimate(run, data)
                    metrics = update(run, batch, generator)
                log(run, metrics | evaluate_if_due(run), bar)
                save(run)
        if run.should_stop():
            return
        if stage != STAGES[-1]:
            run.state.next_stage()
            run.learner.reset_optimizer()


def collect(run: Run) -> Any:
    """Return the data of an iteration: instructions, demonstrations, or a rollout."""
    match run.state.stage:
        case "parser":
            return bc.collect_instructions(run)
        case "bc":
            return bc.collect_demos(run, dataset)
        case "ppo":
            return ppo.collect_rollout(run, collect_steps)


def estimate(run: Run, data: Any) -> Any:
    """Return the training batch: a rollout with advantages and returns (`compute_gae`), other data unchanged."""
    return ppo.estimate_advantages(run.learner, data, run.config.rl) if run.state.stage == "ppo" else data


def update(run: Run, batch: Any, generator: torch.Generator) -> dict[str, float]:
    """Return the mean metrics of the optimizer steps on a batch."""
    step = {"parser": bc.update_parser, "bc": bc.update_bc, "ppo": ppo.update_stage}[run.state.stage]
    return step(run, batch, generator)


def log(run: Run, metrics: dict[str, float], bar: tqdm) -> None:
    """Count the iteration, write its metrics and warnings, and advance the progress bar."""
    run.state.iteration += 1
    run.state.seconds = time.perf_counter() - run.began
    log_metrics(run, metrics, bar)


def save(run: Run) -> None:
    """Save a training state every `train.save_every` iterations."""
    if run.state.iteration % run.config.train.save_every == 0:
        save_state(run)


def save_state(run: Run) -> None:
    """Save a training state that any number of processes can resume. Every process must call it."""
    env_states = gather_object([run.env.state() if run.obs is not None else {}])
    run.save_state(concat_states(env_states))


# --- evaluation -------------------------------------------------------------------------------------------------
def evaluate_if_due(run: Run) -> dict[str, float]:
    """Evaluate after the last iteration of cloning and PPO, and every `eval.every` iterations of PPO."""
    stage, finished = run.state.stage, run.state.iteration + 1
    every = run.config.eval.every if stage == "ppo" else 0
    is_last = finished == run.num_iterations[stage]
    is_due = stage != "parser" and (is_last or (every and finished % every == 0))
    return evaluate(run) if is_due else {}


def evaluate(run: Run) -> dict[str, float]:
    """Return the greedy policy's success on the validation episodes; save the policy if it is the best so far."""
    env, act = run.env, policy_actor(run.learner.actor, True)
    goals = env.round_robin_goals(run.config.eval.episodes)
    paused = env.state() if run.obs is not None else None

    def run_part(rows: np.ndarray) -> dict[str, np.ndarray]:
        return run_episodes(env, act, VALIDATION_SEED + rows, [goals[i] for i in rows])

    run.policy.eval()
    result = run_sharded(run.accelerator, run_part, run.config.eval.episodes)
    if paused:
        env.restore(paused)
    success = float(result["success"].mean())
    run.keep_best(success)
    stages = {f"eval/{name}": rate for name, rate in summarize(result)["stages"].items()}
    return {"eval/success_rate": success, "eval/steps": float(result["length"].mean())} | stages


def report(run: Run) -> dict[str, Any]:
    """Return the success of the best checkpoint and the baselines on the report's episodes. Every process must call it.

    It prints the table and writes eval.json, episodes.gif and a folder for the Hub.
    """
    config, path = run.config, run.folder / "episodes.gif"
    meta, weights, _ = checkpoint.load(run.folder / run_state.BEST_FILE)
    run.policy.load_trainable_state_dict(weights)
    run.policy.use_dropout(False).eval()
    figures = evaluate_policy(run.env, run.learner.actor, config.eval.episodes, config.eval.seed,
                              lambda part, count: run_sharded(run.accelerator, part, count), config.eval.baselines)
    goals = run.env.round_robin_goals(config.eval.episodes)
    first_of_goal = [goals.index(goal) for goal in dict.fromkeys(goals)]
    shown = first_of_goal[::math.ceil(len(first_of_goal) / 4)]      # at most four episodes of different goals
    scenes = record_episodes(run.learner.actor, config, [(goals[i], config.eval.seed + i) for i in shown])
    if run.is_main:
        print(format_table(figures))
        with checkpoint.atomic_write(run.folder / "eval.json") as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")
        save_video(scenes, path)
        run.logger.video("eval/episodes", path)
        table = f"```\n{format_table(figures)}\n```"
        run.policy.save_pretrained(run.folder / run_state.HUB_FOLDER, meta, table, weights)
    return figures


# --- the run ----------------------------------------------------------------------------------------------------
def build_policy(config: Any, env: gymnasium.vector.VectorEnv, device: str = "cpu") -> VLMPolicy:
    """Return the policy of a config. `device="meta"` builds one with a known configuration, without its weights.

    Raises UserError if the base model cannot be loaded.
    """
    vlm, heads = config.model.vlm, config.model.heads
    lora = {"r": vlm.lora_r, "alpha": vlm.lora_alpha, "dropout": vlm.lora_dropout, "targets": list(vlm.lora_targets)}
    settings = {"dtype": vlm.dtype, "lora": lora if vlm.use_lora else None, "min_pixels": vlm.min_pixels,
                "attention": vlm.attention}
    torch.manual_seed(config.seed)
    try:
        if vlm.init == "random":
            corpus = get_env_family(config).instructions(config)
            instructions = sorted(text for texts in corpus.values() for text in texts)
            files = init_model_files(vlm.name, instructions)
            backbone = make_backbone(vlm.name, files, device=device, **settings)
        else:
            backbone = make_backbone(vlm.name, load_in_4bit=vlm.load_in_4bit, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot load model.vlm.name={vlm.name!r} ({checkpoint.first_line(error)}): give the name of a "
                        "model on the Hub or a local model folder, or start with the preset vlm_tiny") from None
    try:
        backbone.check_trainable()
    except ValueError as error:
        raise UserError(str(error)) from None
    if vlm.gradient_checkpointing:
        backbone.gradient_checkpointing_enable()
    proprio = env.single_observation_space.get("proprio")
    proprio_range = proprio and (proprio.low.tolist(), proprio.high.tolist())
    with torch.device(device):
        return VLMPolicy(backbone, spec_from_space(env.single_action_space), heads.hidden, heads.init_std,
                         env.goal_vocab, proprio_range)


def train(config: Any, resume: tuple | None = None) -> dict[str, Any] | None:
    """Train as `config` says into `config.train.output_dir`.

    Return the report of the best checkpoint, or None if Ctrl-C ended the run early. `resume` is what `checkpoint.load`
    gave for a training state. Only the main process writes files and prints. Raises UserError.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    folder = Path(config.train.output_dir)
    with lock_output_dir(folder) if is_main_process() else contextlib.nullcontext():
        if config.log.wandb != "disabled":
            import_wandb()
        accelerator = make_accelerator(config)
        demos = dataset.load_demos(config) if config.bc.data else None
        try:
            env = make_env(config, config.env.num_envs // accelerator.num_processes)
        except ValueError as error:
            raise UserError(str(error)) from None
        with contextlib.closing(env):
            learner = Learner(accelerator, build_policy(config, env), config)
            try:
                run = start_run(config, env, learner, folder, resume)
                run.demo_dataset = demos
                return finish_run(run)
            except KeyboardInterrupt:
                stop_at_once(folder)
            except OSError as error:
                has_state = (folder / run_state.STATE_FILE).exists()
                advice = f"; go on with: {resume_command(folder)}" if has_state else ""
                raise UserError(f"cannot write to {folder} ({error.strerror or error}): free some space or give "
                                f"another train.output_dir{advice}") from None
    return None


def start_run(config: Any, env: gymnasium.vector.VectorEnv, learner: Learner, folder: Path,
              resume: tuple | None) -> Run:
    """Return a new or resumed run whose files are open. A new run moves the files of a previous one away."""
    run = Run(config, env, learner, folder, get_env_family(config).instructions_hash(config))
    if resume:
        env_states = run.restore(*resume)
        if env_states:
            run.obs = env.restore(slice_states(env_states, run.env_slice))
    if run.is_main:
        if not resume:
            run_state.archive_previous_run(folder)
        configuration.save_file(config, folder / run_state.CONFIG_FILE)
        if "debug" in config.presets:
            print(f"debug: episodes end after {config.env.max_steps} steps, so most goals cannot be reached")
    run.open_logger()
    run.interrupt = Interrupt()
    return run


def finish_run(run: Run) -> dict[str, Any] | None:
    """Train the stages that are left, save, and return the report; return None after Ctrl-C."""
    state_file = run.folder / run_state.STATE_FILE
    try:
        run_stages(run)
        save_state(run)
        if run.should_stop():
            if run.is_main:
                print(f"\nstopped after {run.state.stage} iteration {run.state.iteration}; "
                      f"go on with: {resume_command(run.folder)}")
            return None
        run.save_policy(run_state.FINAL_FILE)
        if run.state.best < 0:
            run.save_policy(run_state.BEST_FILE)
        run.accelerator.wait_for_everyone()
        return report(run)
    except NonFiniteError as error:
        save_state(run)
        raise UserError(f"training stopped at {run.state.stage} iteration {run.state.iteration}: {error}; the training "
                        f"state is {state_file}; lower train.lr or raise train.batch_size") from None
    finally:
        run.close(at_once=isinstance(sys.exception(), KeyboardInterrupt))


def stop_at_once(folder: Path) -> None:
    """Print where a run that stopped without saving can be resumed."""
    if is_main_process():
        path = folder / run_state.STATE_FILE
        advice = f"last save: {path}; go on with: {resume_command(folder)}" if path.exists() else "nothing was saved"
        print(f"\nstopped at once; {advice}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Train, and return the exit code: 0, 130 after Ctrl-C, 2 after one line of error."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        config, resume = read_config(sys.argv[1:] if argv is None else argv)
        return 130 if train(config, resume) is None else 0
    except UserError as error:
        message = str(error) if is_main_process() else None
    except RuntimeError as error:
        message = one_line_message(error)
        if message is None:
            raise
    except KeyboardInterrupt:
        print("\nstopped before training began", file=sys.stderr)
        return 130
    if message:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    for signal_number in (signal.SIGINT, signal.SIGTERM):       # from here on main ends in order
        signal.signal(signal_number, signal.default_int_handler)
    relaunch_under_torchrun()
    sys.exit(main())
