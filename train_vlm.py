"""Trains a vision-language model to act in a simulated world from a sentence: behaviour cloning, then PPO.

    python train_vlm.py vlm_tiny                            a tiny Qwen2-VL from scratch on a CPU, in minutes
    python train_vlm.py vlm_full train.lr=3e-4              Qwen2-VL-2B with LoRA
    python train_vlm.py train.resume:=checkpoints/vlm_state.pt    goes on where a run stopped
    python train_vlm.py manual                              every preset and key
    accelerate launch --num_processes 2 train_vlm.py vlm_tiny     several processes: the same run, sooner

The loop is five verbs: collect, estimate, update, log, save. Behaviour cloning is the same loop with the expert's
demonstrations in the place of collect and estimate. Where it departs from textbook PPO: the first iterations train
only the value head (a cloned policy has no critic yet), the value head sends no gradients into the backbone, and
an update ends early when the KL estimate passes a target.

Before it acts at all the model learns to read: which words of the goal language a sentence says. Every unit of work
(a chunk of sentences or of demonstrations, a PPO iteration) seeds its random numbers from (seed, stage, unit), so a
resumed run is the same run, and needs no random state but the worlds' own.

Several processes share a run: each has its part of `env.num_envs` worlds and of every batch of `train.batch_size`
samples, gradients are averaged, advantages normalised over all. Every use of the model goes through one wrapped module,
`Updates`, whatever accelerate makes of it (DDP, FSDP, DeepSpeed), and every process calls it equally often.
"""
import argparse
import contextlib
import ctypes
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

if __name__ == "__main__":      # sleeping threads: spinning ones collapse where anything else uses the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, gather_object
from tqdm import tqdm

import config as configuration
import dataset
from dataset import DatasetError, generate_demos, minibatches, select
from inference import record_episodes, save_gif
from models import checkpoint
from models.backbones.hub_loading import init_model_files
from models.backbones.qwen2_vl import Backbone
from models.heads.attention import spec_from_space
from models.training.learner import Learner, NonFiniteError
from models.training.losses import compute_gae, explained_variance, normalize_advantages
from models.training.tracker import MetricsLogger, TrackerError, training_warnings
from models.vlm_policy import VLMPolicy
from simulator.evaluation import evaluate_policy, format_table, policy_actor, run_episodes, run_local, summarize
from simulator.particles.goals import GoalError
from simulator.registry import EnvError, get_env_family, make_env
from simulator.rollout import collect, concat_states, slice_states

__all__ = ["VLMPolicy", "main", "train"]
VALIDATION_SEED = 50_000_000     # the best checkpoint is chosen on episodes that no report uses
STAGES = ("bc", "ppo", "parser")
PROGRESS_METRICS = (("train/bc_loss", "loss"), ("train/parser_loss", "parser"), ("rollout/success_rate", "success"),
         ("train/approx_kl", "KL"), ("eval/success_rate", "validation"))       # beside the progress bar
STATE_FILE, BEST_FILE, FINAL_FILE, HUB_FOLDER = "vlm_state.pt", "vlm_best.pt", "vlm_final.pt", "vlm_best"
DEMOS_FOLDER, NUM_DAGGER_ROUNDS = "demonstrations", 8


class UserError(Exception):
    """Something the person who started the run can mend; its message is one line."""


# --- building ---------------------------------------------------------------------------------------------------
def build_policy(config, env, device="cpu"):
    """The policy that a config describes. `device="meta"` builds one of known sizes without its weights."""
    vlm = config.model.vlm
    lora = {"r": vlm.lora_r, "alpha": vlm.lora_alpha, "dropout": vlm.lora_dropout, "targets": list(vlm.lora_targets)}
    settings = {"dtype": vlm.dtype, "lora": lora if vlm.use_lora else None, "min_pixels": vlm.min_pixels,
                "attention": vlm.attention}
    torch.manual_seed(config.seed)
    try:
        if vlm.init == "random":
            instructions = sorted(text for texts in get_env_family(config).instructions(config).values() for text in texts)
            backbone = Backbone.from_files(init_model_files(vlm.name, instructions), vlm.name, device=device, **settings)
        else:
            backbone = Backbone.from_pretrained(vlm.name, load_in_4bit=vlm.load_in_4bit, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot load model.vlm.name={vlm.name!r} ({checkpoint.first_line(error)}): give a hub "
                        "name that can be reached or a local model folder, or start with the preset vlm_tiny") from None
    if vlm.gradient_checkpointing:
        backbone.gradient_checkpointing_enable()
    with torch.device(device):
        proprio_space = env.single_observation_space.get("proprio")
        return VLMPolicy(backbone, spec_from_space(env.single_action_space), config.model.heads.hidden,
                         config.model.heads.init_std, env.goal_vocab, proprio_space and (proprio_space.low.tolist(), proprio_space.high.tolist()))


def make_accelerator(config):
    """accelerate's hold on devices and processes; UserError for what this machine or these settings do not allow."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(config.device, True):
        raise UserError(f"device={config.device} is not to be had on this machine: use device:=cpu or device:=auto")
    cpu = config.device == "cpu" or not any(available.values())
    if config.model.vlm.load_in_4bit and not available["cuda"]:
        raise UserError("model.vlm.load_in_4bit=True trains on a CUDA GPU only: leave it out, or lower memory by "
                        "model.vlm.gradient_checkpointing=True")
    # the updates differ in the weights they reach; and no process waits for another while it acts
    options = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[options])
    for key, value in (("env.num_envs", config.env.num_envs), ("train.batch_size", config.train.batch_size)):
        if value % accelerator.num_processes:
            nearest = math.ceil(value / accelerator.num_processes) * accelerator.num_processes
            raise UserError(f"{key} is shared by {accelerator.num_processes} processes and is {value}: "
                            f"give {key}={nearest}")
    return accelerator


def lr_at(peak, schedule, done):
    """Learning rate when a share `done` of the work is behind."""
    return peak * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


# --- updates ----------------------------------------------------------------------------------------------------
def minibatch_indices(learner, count, generator, passes=1):
    """This process's parts of the minibatches, index tensors into its `count` samples, for some passes over them."""
    size = learner.config.train.batch_size // learner.accelerator.num_processes
    return (batch for _ in range(passes) for batch in minibatches(count, size, generator))


def update_ppo(learner, rollout, config, generator, critic_only=False):
    """Advantages, then `rl.update_epochs` passes of PPO over a rollout -> mean metrics. `critic_only`: the value head."""
    gather = learner.accelerator.gather
    on = lambda tensor: tensor.to(learner.accelerator.device)
    advantages, returns = compute_gae(rollout.rewards, rollout.values, rollout.next_values,                 # estimate
                                      rollout.terminated, rollout.truncated, config.rl.gamma, config.rl.gae_lambda)
    obs, actions, log_probs = rollout.flat_obs(), rollout.actions.flatten(0, 1), rollout.log_probs.flatten()
    returns = returns.flatten()
    advantages = normalize_advantages(advantages.flatten(), gather(on(advantages.flatten())).cpu())
    if critic_only:         # nothing of what it reads changes meanwhile
        task, passes, target = "value", 4 * config.rl.update_epochs, math.inf
        critic_inputs = torch.cat([learner.model("value_features", select(obs, index))
                            for index in torch.arange(len(actions)).split(64)])
        arguments = lambda index: (critic_inputs[index], returns[index])
    else:
        task, passes, target = "ppo", config.rl.update_epochs, 1.5 * config.rl.target_kl
        arguments = lambda index: (select(obs, index), actions[index], log_probs[index], advantages[index],
                                   returns[index])
    rows = learner.run_updates(task, arguments, minibatch_indices(learner, len(actions), generator, passes), target)      # update
    values, returns = (gather(on(tensor)) for tensor in (rollout.values.flatten(), returns))
    stopped = {} if learner.early_stop_kl is None else {"train/kl_early_stop": learner.early_stop_kl}
    return learner.reduce_metrics(rows) | stopped | {
        "train/num_updates": len(rows), "train/explained_variance": float(explained_variance(values, returns))}


# --- files ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def lock_output_dir(folder, keep):
    """The output folder for this run alone. Unless `keep`, an earlier run's files are moved to older/<time>/."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write to train.output_dir={str(folder)!r} ({error.strerror}): "
                        "name a folder that can be written") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is writing to {folder}: wait for it, "
                            "or give train.output_dir:=OTHER") from None
        names = (HUB_FOLDER, DEMOS_FOLDER, BEST_FILE, FINAL_FILE, "metrics.jsonl", "curves.png", "eval.json", "vlm_best.json",
                 "vlm_final.json", "rollout.gif", "episodes.gif")
        earlier = [path for path in (*map(folder.joinpath, names), *folder.glob("vlm_state*.pt")) if path.exists()]
        if earlier and not keep:
            older = folder / "older" / time.strftime("%Y%m%d-%H%M%S", time.localtime(earlier[0].stat().st_mtime))
            while older.exists():
                older = older.with_name(older.name + "+")
            older.mkdir(parents=True)
            for path in earlier:
                path.rename(older / path.name)
            print(f"the files of the run before are now in {older}")
        yield


# --- the run ----------------------------------------------------------------------------------------------------
def train(config, resume=None):
    """Trains as `config` says into `config.train.output_dir`; returns the trained policy's summary, or None where
    Ctrl-C ended it early. `resume` is what checkpoint.load gave for a state file. Of several processes only the first
    one writes files and prints."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    accelerator, folder = make_accelerator(config), Path(config.train.output_dir)
    try:
        env = make_env(config, config.env.num_envs // accelerator.num_processes)
    except ValueError as error:
        raise UserError(str(error)) from None
    with contextlib.closing(env):
        demo_dataset = None
        if config.bc.data:
            demo_dataset = dataset.DemoDataset(config.bc.data, None, is_discrete(env), config.robosuite.cameras)
            demo_dataset.validate(env)
        learner = Learner(accelerator, build_policy(config, env), config)
        with lock_output_dir(folder, keep=resume is not None) if accelerator.is_main_process else contextlib.nullcontext():
            try:
                return Run(config, env, learner, folder, resume, demo_dataset).run_all()
            except OSError as error:
                state = f"; go on with train.resume:={folder / STATE_FILE}" if (folder / STATE_FILE).exists() else ""
                raise UserError(f"cannot write to {folder} ({error.strerror or error}): free some space or give "
                                f"another train.output_dir{state}") from None


def is_discrete(env):
    return not env.single_action_space.shape


class Run:
    """One run of training: what it has done so far is `at`, and the files in `folder` say the same."""

    def __init__(self, config, env, learner, folder, resume=None, demo_dataset=None):
        self.config, self.env, self.learner, self.folder = config, env, learner, folder
        self.policy, self.accelerator = learner.policy, learner.accelerator
        self.rank, self.is_main = self.accelerator.process_index, self.accelerator.is_main_process
        self.env_slice = slice(self.rank * env.num_envs, (self.rank + 1) * env.num_envs)     # of all worlds
        self.samples = config.rl.rollout_steps * config.env.num_envs                   # of a unit, all processes
        self.num_iterations = {"parser": math.ceil(config.parser.samples / self.samples),
                      "bc": math.ceil(config.bc.epochs * config.bc.samples / self.samples),
                      "ppo": config.rl.iterations}
        self.progress = {"stage": "parser", "iteration": 0, "samples": 0, "env_steps": 0, "best": -1.0, "seconds": 0.0,
                   "lines": 0}
        self.episode_stats, self.obs, self.demo_dataset = np.zeros((2, env.num_envs)), None, demo_dataset
        if resume:
            meta, weights, state = resume
            self.progress = dict(meta["progress"])
            self.policy.load_trainable_state_dict(weights)
            learner.restore(state["optimizer"])
            self.episode_stats = state["episode_stats"][:, self.env_slice].copy()
            if state["envs"]:
                self.obs = env.restore(slice_states(state["envs"], self.env_slice))
        self.instructions_hash = get_env_family(config).instructions_hash(config)
        self.log = MetricsLogger(folder, config.log, config.to_dict(), self.progress["lines"]) if self.is_main else None
        self.began = time.perf_counter() - self.progress["seconds"]
        self.stopping = Interrupt()

    def run_all(self):
        try:
            for stage, update, next_stage in (("parser", self.parser_step, "bc"), ("bc", self.bc_step, "ppo"),
                                             ("ppo", self.ppo_iteration, None)):
                self.run_stage(stage, update)
                if self.should_stop():
                    break
                if next_stage and self.progress["stage"] == stage:
                    self.progress |= {"stage": next_stage, "iteration": 0}
                    self.learner.reset_optimizer()
            self.save_state()
            if self.should_stop():
                self.log_main(f"\nstopped after {self.progress['stage']} unit {self.progress['iteration']}; go on with: "
                         f"python train_vlm.py train.resume:={self.folder / STATE_FILE}")
                return None
            self.save_policy(FINAL_FILE)
            if self.progress["best"] < 0:
                self.save_policy(BEST_FILE)
            self.accelerator.wait_for_everyone()
            return self.report()
        except NonFiniteError as error:
            self.save_state()
            raise UserError(f"training stopped at {self.progress['stage']} unit {self.progress['iteration']}: {error}; the state is in "
                            f"{self.folder / STATE_FILE}; lower train.lr or raise train.batch_size") from None
        finally:
            self.stopping.restore()
            if self.is_main:
                self.log.close()

    def run_stage(self, stage, update):
        """Its units that are still to be done."""
        title = {"parser": "parser", "bc": "behaviour cloning", "ppo": "PPO"}[stage]
        done = self.progress["iteration"] if self.progress["stage"] == stage else self.num_iterations[stage]
        with tqdm(total=self.num_iterations[stage], initial=done, unit="iteration" if stage == "ppo" else "chunk", desc=title,
                  disable=not self.num_iterations[stage] or not self.is_main) as bar:
            while self.progress["stage"] == stage and self.progress["iteration"] < self.num_iterations[stage] and not self.should_stop():
                generator = seed_step(self.config.seed, stage, self.progress["iteration"], self.rank)
                row = update(generator)
                last = self.progress["iteration"] + 1 == self.num_iterations[stage]
                every = self.config.eval.every if stage == "ppo" else 0
                if stage != "parser" and (last or (every and (self.progress["iteration"] + 1) % every == 0)):
                    row |= self.evaluate()
                self.progress["iteration"] += 1
                self.progress["seconds"] = time.perf_counter() - self.began
                if self.is_main:
                    self.log.write({name: self.progress[name] for name in ("stage", "iteration", "samples", "env_steps")} | {
                        "time/seconds": round(self.progress["seconds"], 2)} | row)                                 # log
                    for line in training_warnings(self.log.rows, self.config.rl.target_kl):
                        tqdm.write(f"watch out: {line}", file=sys.stderr)
                if self.progress["iteration"] % self.config.train.save_every == 0:
                    self.save_state()                                                                       # save
                bar.set_postfix_str(" ".join(f"{title} {row[key]:.3f}" for key, title in PROGRESS_METRICS if key in row),
                                    refresh=False)
                bar.update()

    # --- units ------------------------------------------------------------------------------------------------
    def set_bc_mode(self):
        """Learning rate and dropout of what comes before PPO."""
        rate = lr_at(self.config.bc.lr, self.config.train.lr_schedule,
                         self.progress["iteration"] / self.num_iterations[self.progress["stage"]])
        self.learner.set_learning_rates(dict.fromkeys(("backbone", "action", "value"), rate))
        self.policy.use_dropout(True, self.config.bc.bpe_dropout).train()

    def seed_key(self, stage):
        """What the random numbers of this unit follow from, but for torch's."""
        return [self.config.seed, STAGES.index(stage), self.progress["iteration"], self.rank]

    def parser_step(self, generator):
        """Sentences and the words they say, without pictures. To read is learned ten times faster where nothing else
        is learned by the way."""
        self.set_bc_mode()
        count = self.samples // self.accelerator.num_processes
        goals, words = self.env.sample_instructions(np.random.default_rng(self.seed_key("parser")), count)
        words = torch.from_numpy(words)
        arguments = lambda index: ([goals[i] for i in index], words[index])
        return self.learner.reduce_metrics(self.learner.run_updates("parser", arguments, minibatch_indices(self.learner, count, generator)))

    def bc_step(self, generator):
        """A chunk of the expert's demonstrations."""
        obs, actions = self.next_bc_batch()
        self.set_bc_mode()
        self.progress["samples"] += self.samples
        arguments = lambda index: (select(obs, index), actions[index])
        parts = minibatch_indices(self.learner, len(actions), generator)
        return self.learner.reduce_metrics(self.learner.run_updates("bc", arguments, parts))

    def next_bc_batch(self):
        """This unit's part of the demonstrations: obs and the expert's actions."""
        bc, rl, folder = self.config.bc, self.config.rl, self.folder / DEMOS_FOLDER
        if not bc.data and not bc.episodes:
            return generate_demos(self.env, rl.rollout_steps, self.seed_key("bc"), bc.action_noise, bc.relabel)
        if not bc.data:     # the first third before the first unit; then more, until two thirds are behind
            rounds = 1 + int((NUM_DAGGER_ROUNDS - 1) * min(1, 1.5 * self.progress["iteration"] / self.num_iterations["bc"]))
            files = [folder / f"{number:02d}-{self.rank}.hdf5" for number in range(rounds)]
            new = [number for number, path in enumerate(files) if not path.exists()]
            for number in new:
                self.collect_dagger_round(number, files[number])
            if new or self.demo_dataset is None:
                self.demo_dataset = dataset.DemoDataset(files, discrete=is_discrete(self.env))
        rng, count = np.random.default_rng(self.seed_key("bc")), self.samples // self.accelerator.num_processes
        return self.demo_dataset.sample(rng, count, self.env.goals, self.env.sample_instruction, bc.relabel)

    def collect_dagger_round(self, number, path):
        """A round of demonstrations, into a file; in all but the first one the policy acts in some of the episodes."""
        bc = self.config.bc
        parts = np.array([NUM_DAGGER_ROUNDS - 1, *[2] * (NUM_DAGGER_ROUNDS - 1)]) / (3 * (NUM_DAGGER_ROUNDS - 1))
        count = max(1, round(bc.episodes * parts[number] / self.accelerator.num_processes))
        self.policy.use_dropout(False).eval()
        act = lambda obs: self.policy.act(obs)[0].cpu().numpy()
        with tqdm(total=count, unit="episode", desc=f"demonstrations, round {number + 1} of {NUM_DAGGER_ROUNDS}", leave=False,
                  disable=not self.is_main) as bar:
            seed = int(np.random.SeedSequence([*self.seed_key("bc")[::3], number]).generate_state(1)[0])
            episodes = dataset.record_demos(self.env, count, seed, bc.action_noise, act, bc.dagger_fraction if number else 0.0,
                                       lambda *_: bar.update())
            dataset.write_demonstrations(path, episodes, self.env.call("env_args")[0])

    def ppo_iteration(self, generator):
        """A PPO iteration."""
        config, started = self.config, time.perf_counter()
        self.policy.use_dropout(False).eval()
        if self.obs is None:
            seeds = np.random.default_rng([config.seed, 1]).integers(2**31, size=config.env.num_envs)
            self.obs, _ = self.env.reset(seed=seeds[self.env_slice])
        with self.policy.backbone.cache_vision_features():
            rollout, self.obs = collect(self.env, self.learner.actor, self.obs, config.rl.rollout_steps,   # collect
                                        self.episode_stats)
            collected = time.perf_counter() - started
            peaks = {"backbone": config.train.lr, "action": config.train.head_lr, "value": config.train.value_lr}
            done = self.progress["iteration"] / self.num_iterations["ppo"]
            self.learner.set_learning_rates({name: lr_at(peak, config.train.lr_schedule, done)
                                         for name, peak in peaks.items()})
            self.policy.train()
            row = update_ppo(self.learner, rollout, config, generator, self.progress["iteration"] < config.rl.critic_warmup)
        self.progress["samples"] += self.samples
        self.progress["env_steps"] += self.samples
        ended = gather_object(rollout.episodes)
        if ended:
            row |= mean_episode_stats(ended)
        return row | {"rollout/episodes": len(ended), "time/env_steps_per_s": round(self.samples / collected, 1)}

    def evaluate(self):
        """The policy on the validation episodes; the best one is kept."""
        count, act = self.config.eval.episodes, policy_actor(self.learner.actor, True)
        goals, paused = self.env.round_robin_goals(count), self.env.state() if self.obs is not None else None
        run = lambda rows: run_episodes(self.env, act, VALIDATION_SEED + rows, [goals[i] for i in rows])
        self.policy.eval()
        result = self.run_sharded(run, count)
        if paused:
            self.env.restore(paused)
        success = float(result["success"].mean())
        if success >= self.progress["best"]:
            self.progress["best"] = success
            self.save_policy(BEST_FILE)
        stages = {f"eval/{name}": rate for name, rate in summarize(result)["stages"].items()}
        return {"eval/success_rate": success, "eval/steps": float(result["length"].mean())} | stages

    # --- files ------------------------------------------------------------------------------------------------
    def meta(self):
        return {"presets": list(self.config.presets), "config": self.config.to_dict(), "seed": self.config.seed,
                "corpus": self.instructions_hash, "training_seconds": round(time.perf_counter() - self.began, 1),
                "processes": self.accelerator.num_processes, "samples": self.progress["samples"],
                "environment_steps": self.progress["env_steps"], "success": self.progress["best"], "torch": torch.__version__}

    def save_policy(self, name):
        """To act from. Every process takes part."""
        weights = self.policy.trainable_state_dict()
        if self.is_main:
            checkpoint.save(self.folder / name, {"model_config": self.policy.model_config()} | self.meta(), weights)

    def save_state(self):
        """To resume from, on any number of processes; the ones before are kept as vlm_state.1.pt and so on. Every
        process takes part."""
        weights, optimizer = self.policy.trainable_state_dict(), self.learner.state()
        worlds = gather_object([self.env.state() if self.obs is not None else {}])
        episode_stats = gather_object([self.episode_stats])
        if not self.is_main:
            return
        self.progress["lines"] = len(self.log.rows)
        older = [f"vlm_state.{i}.pt" for i in range(1, self.config.train.keep_checkpoints)]
        names = [self.folder / name for name in (STATE_FILE, *older)]
        for newer, older in reversed(list(zip(names, names[1:], strict=False))):
            if newer.exists():
                with checkpoint.atomic_write(older) as temporary:      # the newest stays until another takes its place
                    shutil.copyfile(newer, temporary)
        checkpoint.save(names[0], self.meta() | {"progress": self.progress, "model_config": self.policy.model_config()}, weights,
                        {"optimizer": optimizer, "envs": concat_states(worlds), "episode_stats": np.concatenate(episode_stats, 1)})

    def report(self):
        """The best checkpoint beside the baselines on the fixed episodes: the table, eval.json, some of the episodes as
        a GIF, a folder for the hub. Every process takes part."""
        config, path = self.config, self.folder / "episodes.gif"
        meta, weights, _ = checkpoint.load(self.folder / BEST_FILE)
        self.policy.load_trainable_state_dict(weights)
        self.policy.use_dropout(False).eval()       # nothing but reading may have come before
        figures = evaluate_policy(self.env, self.learner.actor, config.eval.episodes, config.eval.seed, self.run_sharded,
                                  config.eval.baselines)
        goals = self.env.round_robin_goals(config.eval.episodes)
        firsts = [goals.index(goal) for goal in dict.fromkeys(goals)]        # four of these episodes, goals far apart
        shown = firsts[::math.ceil(len(firsts) / 4)]
        scenes = record_episodes(self.learner.actor, config, [(goals[i], config.eval.seed + i) for i in shown])
        if self.is_main:
            print(format_table(figures))
            with checkpoint.atomic_write(self.folder / "eval.json") as temporary:
                temporary.write_text(json.dumps(figures, indent=1) + "\n")
            save_gif(scenes, path)
            self.log.video("eval/episodes", path)
            self.policy.save_pretrained(self.folder / HUB_FOLDER, meta, f"```\n{format_table(figures)}\n```", weights)
        return figures

    # --- several processes ------------------------------------------------------------------------------------
    def log_main(self, text):
        if self.is_main:
            print(text)

    def run_sharded(self, run, count):
        """Episodes in their parts, one for each process: see simulator.evaluation.alone."""
        n = self.accelerator.num_processes
        if n == 1 or self.accelerator.distributed_type == DistributedType.FSDP:     # there all ask the policy as one
            return run_local(run, count)
        parts = gather_object([run(np.arange(count)[self.rank::n])])
        joined = {name: np.empty(count, value.dtype) for name, value in parts[0].items()}
        for name, values in joined.items():
            for rank, part in enumerate(parts):
                values[rank::n] = part[name]
        return joined

    def should_stop(self):
        """Whether any process was."""
        return float(self.learner.mean(float(bool(self.stopping)))) > 0


def mean_episode_stats(episodes):
    """What finished episodes (of a Rollout) come to on the average: {"rollout/...": float}, without what none tells."""
    names = {name for episode in episodes for name in episode if name != "goal"}
    means = {name: np.array([episode[name] for episode in episodes], float) for name in names}
    return {f"rollout/{'success_rate' if name == 'success' else name}": float(np.nanmean(values))
            for name, values in sorted(means.items()) if not np.isnan(values).all()}


def seed_step(seed, stage, iteration, rank=0):
    """Seeds torch's global generator for a unit of work, and returns a generator of its own for shuffling."""
    a, b = np.random.SeedSequence([seed, STAGES.index(stage), iteration, rank]).generate_state(2)
    torch.manual_seed(int(a))
    return torch.Generator().manual_seed(int(b))


class Interrupt:
    """Truthy after Ctrl-C (or SIGTERM): the unit at hand is finished and saved. A second Ctrl-C stops at once."""

    def __init__(self):
        self.asked = False
        main_thread = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
        self.before = {number: signal.signal(number, self._ask) for number in signals}

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nfinishing this unit and saving; once more to stop at once", file=sys.stderr)

    def __bool__(self):
        return self.asked

    def restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def read_config(argv):
    """-> the config, and what checkpoint.load gave for `train.resume` (or None)."""
    pairs = [word.partition("=") for word in argv]
    paths = [path.strip("'\"") for key, _, path in pairs if key.rstrip(":") == "train.resume"]
    if not paths:
        return configuration.main_config(argv), None
    resume = checkpoint.load(paths[-1])
    if resume[2] is None:
        raise checkpoint.CheckpointError(f"{paths[-1]} is to act from, not to resume from: give the {STATE_FILE} beside it")
    others = [word for word in argv if not word.startswith("train.resume")]
    kept = ("seed", "model.", "world.", "physics.", "robosuite.", "env.", "parser.", "bc.", "train.output_dir")
    for word in others:
        if word.startswith(kept):
            raise UserError("a resumed run keeps its seed, model, world, demonstrations and folder (that of the state "
                            f"file): leave out {word!r}")
    config = configuration.from_dict(resume[0]["config"], [*others, f"train.output_dir:={Path(paths[-1]).parent}"])
    return config, resume


OUT_OF_MEMORY = ("out of memory: lower train.batch_size (or raise train.grad_accum_steps, which computes it in parts), lower "
                 "env.num_envs, or give model.vlm.gradient_checkpointing=True (model.vlm.load_in_4bit=True saves most)")


def main(argv=None):
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    argv = sys.argv[1:] if argv is None else argv
    try:
        config, resume = read_config(argv)
        return 130 if train(config, resume) is None else 0
    except (UserError, TrackerError, checkpoint.CheckpointError, configuration.ConfigError, GoalError,
            DatasetError, EnvError) as error:
        message = error
    except torch.OutOfMemoryError:
        message = OUT_OF_MEMORY
    except RuntimeError as error:
        first, several = str(error).splitlines()[0], int(os.environ.get("WORLD_SIZE", 1)) > 1
        if "DefaultCPUAllocator" in first:
            message = OUT_OF_MEMORY
        elif several and any(word in first for word in ("gloo", "NCCL", "onnection", "Broken pipe", "peer")):
            print(f"error: another process of this run has ended, so process {os.environ['RANK']} ends too "
                  f"({first[:80]}); go on with train.resume", file=sys.stderr)
            return 2
        else:
            raise
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def relaunch_under_torchrun():
    """Where there is no GPU, `accelerate launch --num_processes N` starts one process and says nothing; what was asked
    of it, torchrun does, which it uses itself where there are some."""
    if "MASTER_ADDR" not in os.environ or "RANK" in os.environ or torch.cuda.is_available():
        return
    import psutil
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int, default=1)
    launcher = psutil.Process(os.getppid()).cmdline()
    count = parser.parse_known_args(launcher)[0].num_processes
    if count > 1 and any("accelerate" in word for word in launcher[:4]):
        if sys.platform == "linux":     # and what ends accelerate ends them too: SIGTERM, by which they save
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", "--standalone",
                                  f"--nproc-per-node={count}", *sys.argv])


if __name__ == "__main__":
    relaunch_under_torchrun()
    sys.exit(main())
