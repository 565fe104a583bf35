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
from dataset import DemonstrationsError, demonstrations, minibatches, select
from inference import record, save_gif
from models import checkpoint
from models.backbone import Backbone
from models.base_model import random_files
from models.heads import spec_from_space
from models.learner import Learner, NotFinite
from models.losses import compute_gae, explained_variance, normalize
from models.tracker import Log, TrackerError, alarms
from models.vlm_policy import VLMPolicy
from simulator.evaluation import alone, evaluate_policy, policy_actor, run_episodes, show, summary
from simulator.goals import GoalError
from simulator.rollout import collect, join_states, part_of_state
from simulator.worlds import WorldError, make_env, world_of

__all__ = ["VLMPolicy", "main", "train"]
VALIDATION_SEED = 50_000_000     # the best checkpoint is chosen on episodes that no report uses
STAGES = ("bc", "ppo", "reading")
SHOWN = (("train/bc_loss", "loss"), ("train/reading_loss", "reading"), ("rollout/success_rate", "success"),
         ("train/approx_kl", "KL"), ("eval/success_rate", "validation"))       # beside the progress bar
STATE, BEST, FINAL, FOLDER = "vlm_state.pt", "vlm_best.pt", "vlm_final.pt", "vlm_best"
DEMONSTRATIONS, ROUNDS = "demonstrations", 8


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
            sentences = sorted(text for texts in world_of(config).sentences(config).values() for text in texts)
            backbone = Backbone.from_files(random_files(vlm.name, sentences), vlm.name, device=device, **settings)
        else:
            backbone = Backbone.from_pretrained(vlm.name, load_in_4bit=vlm.load_in_4bit, **settings)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot load model.vlm.name={vlm.name!r} ({checkpoint.first_line(error)}): give a hub "
                        "name that can be reached or a local model folder, or start with the preset vlm_tiny") from None
    if vlm.gradient_checkpointing:
        backbone.checkpoint_activations()
    with torch.device(device):
        body = env.single_observation_space.get("proprio")
        return VLMPolicy(backbone, spec_from_space(env.single_action_space), config.model.heads.hidden,
                         config.model.heads.init_std, env.words, body and (body.low.tolist(), body.high.tolist()))


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


def scheduled(peak, schedule, done):
    """Learning rate when a share `done` of the work is behind."""
    return peak * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


# --- updates ----------------------------------------------------------------------------------------------------
def batches(learner, count, generator, passes=1):
    """This process's parts of the minibatches, index tensors into its `count` samples, for some passes over them."""
    size = learner.config.train.batch_size // learner.accelerator.num_processes
    return (batch for _ in range(passes) for batch in minibatches(count, size, generator))


def update_ppo(learner, rollout, config, generator, critic_only=False):
    """Advantages, then `rl.ppo_epochs` passes of PPO over a rollout -> mean metrics. `critic_only`: the value head."""
    gather = learner.accelerator.gather
    on = lambda tensor: tensor.to(learner.accelerator.device)
    advantages, returns = compute_gae(rollout.rewards, rollout.values, rollout.next_values,                 # estimate
                                      rollout.terminated, rollout.truncated, config.rl.gamma, config.rl.gae_lambda)
    obs, actions, log_probs = rollout.flat_obs(), rollout.actions.flatten(0, 1), rollout.log_probs.flatten()
    returns = returns.flatten()
    advantages = normalize(advantages.flatten(), gather(on(advantages.flatten())).cpu())
    if critic_only:         # nothing of what it reads changes meanwhile
        task, passes, target = "value", 4 * config.rl.ppo_epochs, math.inf
        judged = torch.cat([learner.model("before_critic", select(obs, index))
                            for index in torch.arange(len(actions)).split(64)])
        arguments = lambda index: (judged[index], returns[index])
    else:
        task, passes, target = "ppo", config.rl.ppo_epochs, 1.5 * config.rl.target_kl
        arguments = lambda index: (select(obs, index), actions[index], log_probs[index], advantages[index],
                                   returns[index])
    rows = learner.updates(task, arguments, batches(learner, len(actions), generator, passes), target)      # update
    values, returns = (gather(on(tensor)) for tensor in (rollout.values.flatten(), returns))
    stopped = {} if learner.kl_at_stop is None else {"train/kl_at_stop": learner.kl_at_stop}
    return learner.means(rows) | stopped | {
        "train/updates": len(rows), "train/explained_variance": float(explained_variance(values, returns))}


# --- files ------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def claim(folder, keep):
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
        names = (FOLDER, DEMONSTRATIONS, BEST, FINAL, "metrics.jsonl", "curves.png", "eval.json", "vlm_best.json",
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
        book = None
        if config.vlm.bc_data:
            book = dataset.Demonstrations(config.vlm.bc_data, None, is_discrete(env), config.robosuite.cameras)
            book.check(env)
        learner = Learner(accelerator, build_policy(config, env), config)
        with claim(folder, keep=resume is not None) if accelerator.is_main_process else contextlib.nullcontext():
            try:
                return Run(config, env, learner, folder, resume, book).go()
            except OSError as error:
                state = f"; go on with train.resume:={folder / STATE}" if (folder / STATE).exists() else ""
                raise UserError(f"cannot write to {folder} ({error.strerror or error}): free some space or give "
                                f"another train.output_dir{state}") from None


def is_discrete(env):
    return not env.single_action_space.shape


class Run:
    """One run of training: what it has done so far is `at`, and the files in `folder` say the same."""

    def __init__(self, config, env, learner, folder, resume=None, book=None):
        self.config, self.env, self.learner, self.folder = config, env, learner, folder
        self.policy, self.accelerator = learner.policy, learner.accelerator
        self.rank, self.is_main = self.accelerator.process_index, self.accelerator.is_main_process
        self.mine = slice(self.rank * env.num_envs, (self.rank + 1) * env.num_envs)     # of all worlds
        self.samples = config.vlm.rollout_steps * config.env.num_envs                   # of a unit, all processes
        self.units = {"reading": math.ceil(config.vlm.reading_samples / self.samples),
                      "bc": math.ceil(config.vlm.bc_epochs * config.vlm.bc_samples / self.samples),
                      "ppo": config.vlm.ppo_epochs}
        self.at = {"stage": "reading", "unit": 0, "samples": 0, "env_steps": 0, "best": -1.0, "seconds": 0.0,
                   "lines": 0}
        self.tally, self.obs, self.book = np.zeros((2, env.num_envs)), None, book
        if resume:
            meta, weights, state = resume
            self.at = dict(meta["at"])
            self.policy.load_weights(weights)
            learner.restore(state["optimizer"])
            self.tally = state["tally"][:, self.mine].copy()
            if state["worlds"]:
                self.obs = env.restore(part_of_state(state["worlds"], self.mine))
        self.corpus = world_of(config).corpus(config)
        self.log = Log(folder, config.log, config.to_dict(), self.at["lines"]) if self.is_main else None
        self.began = time.perf_counter() - self.at["seconds"]
        self.stopping = Interrupt()

    def go(self):
        try:
            for stage, update, following in (("reading", self.read, "bc"), ("bc", self.clone, "ppo"),
                                             ("ppo", self.practise, None)):
                self.run_stage(stage, update)
                if self.asked_to_stop():
                    break
                if following and self.at["stage"] == stage:
                    self.at |= {"stage": following, "unit": 0}
                    self.learner.forget()
            self.save_state()
            if self.asked_to_stop():
                self.say(f"\nstopped after {self.at['stage']} unit {self.at['unit']}; go on with: "
                         f"python train_vlm.py train.resume:={self.folder / STATE}")
                return None
            self.save_policy(FINAL)
            if self.at["best"] < 0:
                self.save_policy(BEST)
            self.accelerator.wait_for_everyone()
            return self.report()
        except NotFinite as error:
            self.save_state()
            raise UserError(f"training stopped at {self.at['stage']} unit {self.at['unit']}: {error}; the state is in "
                            f"{self.folder / STATE}; lower train.lr or raise train.batch_size") from None
        finally:
            self.stopping.restore()
            if self.is_main:
                self.log.close()

    def run_stage(self, stage, update):
        """Its units that are still to be done."""
        title = {"reading": "reading", "bc": "behaviour cloning", "ppo": "PPO"}[stage]
        done = self.at["unit"] if self.at["stage"] == stage else self.units[stage]
        with tqdm(total=self.units[stage], initial=done, unit="iteration" if stage == "ppo" else "chunk", desc=title,
                  disable=not self.units[stage] or not self.is_main) as bar:
            while self.at["stage"] == stage and self.at["unit"] < self.units[stage] and not self.asked_to_stop():
                generator = seed_unit(self.config.seed, stage, self.at["unit"], self.rank)
                row = update(generator)
                last = self.at["unit"] + 1 == self.units[stage]
                every = self.config.eval.every if stage == "ppo" else 0
                if stage != "reading" and (last or (every and (self.at["unit"] + 1) % every == 0)):
                    row |= self.evaluate()
                self.at["unit"] += 1
                self.at["seconds"] = time.perf_counter() - self.began
                if self.is_main:
                    self.log.write({name: self.at[name] for name in ("stage", "unit", "samples", "env_steps")} | {
                        "time/seconds": round(self.at["seconds"], 2)} | row)                                 # log
                    for line in alarms(self.log.rows, self.config.rl.target_kl):
                        tqdm.write(f"watch out: {line}", file=sys.stderr)
                if self.at["unit"] % self.config.train.save_every == 0:
                    self.save_state()                                                                       # save
                bar.set_postfix_str(" ".join(f"{title} {row[key]:.3f}" for key, title in SHOWN if key in row),
                                    refresh=False)
                bar.update()

    # --- units ------------------------------------------------------------------------------------------------
    def cloning(self):
        """Learning rate and dropout of what comes before PPO."""
        rate = scheduled(self.config.vlm.bc_lr, self.config.train.lr_schedule,
                         self.at["unit"] / self.units[self.at["stage"]])
        self.learner.learning_rates(dict.fromkeys(("backbone", "action", "value"), rate))
        self.policy.use_dropout(True, self.config.vlm.bc_subword_dropout).train()

    def key(self, stage):
        """What the random numbers of this unit follow from, but for torch's."""
        return [self.config.seed, STAGES.index(stage), self.at["unit"], self.rank]

    def read(self, generator):
        """Sentences and the words they say, without pictures. To read is learned ten times faster where nothing else
        is learned by the way."""
        self.cloning()
        count = self.samples // self.accelerator.num_processes
        goals, words = self.env.things_to_say(np.random.default_rng(self.key("reading")), count)
        words = torch.from_numpy(words)
        arguments = lambda index: ([goals[i] for i in index], words[index])
        return self.learner.means(self.learner.updates("read", arguments, batches(self.learner, count, generator)))

    def clone(self, generator):
        """A chunk of the expert's demonstrations."""
        obs, actions = self.demonstrated()
        self.cloning()
        self.at["samples"] += self.samples
        arguments = lambda index: (select(obs, index), actions[index])
        parts = batches(self.learner, len(actions), generator)
        return self.learner.means(self.learner.updates("clone", arguments, parts))

    def demonstrated(self):
        """This unit's part of the demonstrations: obs and the expert's actions."""
        vlm, folder = self.config.vlm, self.folder / DEMONSTRATIONS
        if not vlm.bc_data and not vlm.bc_episodes:
            return demonstrations(self.env, vlm.rollout_steps, self.key("bc"), vlm.bc_perturb, vlm.bc_relabel)
        if not vlm.bc_data:     # the first third before the first unit; then more, until two thirds are behind
            rounds = 1 + int((ROUNDS - 1) * min(1, 1.5 * self.at["unit"] / self.units["bc"]))
            files = [folder / f"{number:02d}-{self.rank}.hdf5" for number in range(rounds)]
            new = [number for number, path in enumerate(files) if not path.exists()]
            for number in new:
                self.record_round(number, files[number])
            if new or self.book is None:
                self.book = dataset.Demonstrations(files, discrete=is_discrete(self.env))
        rng, count = np.random.default_rng(self.key("bc")), self.samples // self.accelerator.num_processes
        return self.book.draw(rng, count, self.env.goals, self.env.say, vlm.bc_relabel)

    def record_round(self, number, path):
        """A round of demonstrations, into a file; in all but the first one the policy acts in some of the episodes."""
        vlm = self.config.vlm
        parts = np.array([ROUNDS - 1, *[2] * (ROUNDS - 1)]) / (3 * (ROUNDS - 1))
        count = max(1, round(vlm.bc_episodes * parts[number] / self.accelerator.num_processes))
        self.policy.use_dropout(False).eval()
        act = lambda obs: self.policy.act(obs)[0].cpu().numpy()
        with tqdm(total=count, unit="episode", desc=f"demonstrations, round {number + 1} of {ROUNDS}", leave=False,
                  disable=not self.is_main) as bar:
            seed = int(np.random.SeedSequence([*self.key("bc")[::3], number]).generate_state(1)[0])
            episodes = dataset.collect(self.env, count, seed, vlm.bc_perturb, act, vlm.bc_policy if number else 0.0,
                                       lambda *_: bar.update())
            dataset.write_demonstrations(path, episodes, self.env.call("env_args")[0])

    def practise(self, generator):
        """A PPO iteration."""
        config, started = self.config, time.perf_counter()
        self.policy.use_dropout(False).eval()
        if self.obs is None:
            seeds = np.random.default_rng([config.seed, 1]).integers(2**31, size=config.env.num_envs)
            self.obs, _ = self.env.reset(seed=seeds[self.mine])
        with self.policy.backbone.keeping():
            rollout, self.obs = collect(self.env, self.learner.actor, self.obs, config.vlm.rollout_steps,   # collect
                                        self.tally)
            collected = time.perf_counter() - started
            peaks = {"backbone": config.train.lr, "action": config.train.head_lr, "value": config.train.value_lr}
            done = self.at["unit"] / self.units["ppo"]
            self.learner.learning_rates({name: scheduled(peak, config.train.lr_schedule, done)
                                         for name, peak in peaks.items()})
            self.policy.train()
            row = update_ppo(self.learner, rollout, config, generator, self.at["unit"] < config.rl.critic_warmup)
        self.at["samples"] += self.samples
        self.at["env_steps"] += self.samples
        ended = gather_object(rollout.episodes)
        if ended:
            row |= told(ended)
        return row | {"rollout/episodes": len(ended), "time/env_steps_per_s": round(self.samples / collected, 1)}

    def evaluate(self):
        """The policy on the validation episodes; the best one is kept."""
        count, act = self.config.eval.episodes, policy_actor(self.learner.actor, True)
        goals, paused = self.env.balanced_goals(count), self.env.state() if self.obs is not None else None
        run = lambda rows: run_episodes(self.env, act, VALIDATION_SEED + rows, [goals[i] for i in rows])
        self.policy.eval()
        result = self.spread(run, count)
        if paused:
            self.env.restore(paused)
        success = float(result["success"].mean())
        if success >= self.at["best"]:
            self.at["best"] = success
            self.save_policy(BEST)
        stages = {f"eval/{name}": rate for name, rate in summary(result)["stages"].items()}
        return {"eval/success_rate": success, "eval/steps": float(result["length"].mean())} | stages

    # --- files ------------------------------------------------------------------------------------------------
    def meta(self):
        return {"presets": list(self.config.presets), "config": self.config.to_dict(), "seed": self.config.seed,
                "corpus": self.corpus, "training_seconds": round(time.perf_counter() - self.began, 1),
                "processes": self.accelerator.num_processes, "samples": self.at["samples"],
                "environment_steps": self.at["env_steps"], "success": self.at["best"], "torch": torch.__version__}

    def save_policy(self, name):
        """To act from. Every process takes part."""
        weights = self.policy.trainable_state()
        if self.is_main:
            checkpoint.save(self.folder / name, {"architecture": self.policy.architecture()} | self.meta(), weights)

    def save_state(self):
        """To resume from, on any number of processes; the ones before are kept as vlm_state.1.pt and so on. Every
        process takes part."""
        weights, optimizer = self.policy.trainable_state(), self.learner.state()
        worlds = gather_object([self.env.state() if self.obs is not None else {}])
        tally = gather_object([self.tally])
        if not self.is_main:
            return
        self.at["lines"] = len(self.log.rows)
        older = [f"vlm_state.{i}.pt" for i in range(1, self.config.train.keep_last)]
        names = [self.folder / name for name in (STATE, *older)]
        for newer, older in reversed(list(zip(names, names[1:], strict=False))):
            if newer.exists():
                with checkpoint.replacing(older) as temporary:      # the newest stays until another takes its place
                    shutil.copyfile(newer, temporary)
        checkpoint.save(names[0], self.meta() | {"at": self.at, "architecture": self.policy.architecture()}, weights,
                        {"optimizer": optimizer, "worlds": join_states(worlds), "tally": np.concatenate(tally, 1)})

    def report(self):
        """The best checkpoint beside the baselines on the fixed episodes: the table, eval.json, some of the episodes as
        a GIF, a folder for the hub. Every process takes part."""
        config, path = self.config, self.folder / "episodes.gif"
        meta, weights, _ = checkpoint.load(self.folder / BEST)
        self.policy.load_weights(weights)
        self.policy.use_dropout(False).eval()       # nothing but reading may have come before
        figures = evaluate_policy(self.env, self.learner.actor, config.eval.episodes, config.eval.seed, self.spread,
                                  config.eval.baselines)
        goals = self.env.balanced_goals(config.eval.episodes)
        firsts = [goals.index(goal) for goal in dict.fromkeys(goals)]        # four of these episodes, goals far apart
        shown = firsts[::math.ceil(len(firsts) / 4)]
        scenes = record(self.learner.actor, config, [(goals[i], config.eval.seed + i) for i in shown])
        if self.is_main:
            print(show(figures))
            with checkpoint.replacing(self.folder / "eval.json") as temporary:
                temporary.write_text(json.dumps(figures, indent=1) + "\n")
            save_gif(scenes, path)
            self.log.video("eval/episodes", path)
            self.policy.save_pretrained(self.folder / FOLDER, meta, f"```\n{show(figures)}\n```", weights)
        return figures

    # --- several processes ------------------------------------------------------------------------------------
    def say(self, text):
        if self.is_main:
            print(text)

    def spread(self, run, count):
        """Episodes in their parts, one for each process: see simulator.evaluation.alone."""
        n = self.accelerator.num_processes
        if n == 1 or self.accelerator.distributed_type == DistributedType.FSDP:     # there all ask the policy as one
            return alone(run, count)
        parts = gather_object([run(np.arange(count)[self.rank::n])])
        joined = {name: np.empty(count, value.dtype) for name, value in parts[0].items()}
        for name, values in joined.items():
            for rank, part in enumerate(parts):
                values[rank::n] = part[name]
        return joined

    def asked_to_stop(self):
        """Whether any process was."""
        return float(self.learner.mean(float(bool(self.stopping)))) > 0


def told(episodes):
    """What finished episodes (of a Rollout) come to on the average: {"rollout/...": float}, without what none tells."""
    names = {name for episode in episodes for name in episode if name != "goal"}
    means = {name: np.array([episode[name] for episode in episodes], float) for name in names}
    return {f"rollout/{'success_rate' if name == 'success' else name}": float(np.nanmean(values))
            for name, values in sorted(means.items()) if not np.isnan(values).all()}


def seed_unit(seed, stage, unit, rank=0):
    """Seeds torch's global generator for a unit of work, and returns a generator of its own for shuffling."""
    a, b = np.random.SeedSequence([seed, STAGES.index(stage), unit, rank]).generate_state(2)
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
        raise checkpoint.CheckpointError(f"{paths[-1]} is to act from, not to resume from: give the {STATE} beside it")
    others = [word for word in argv if not word.startswith("train.resume")]
    kept = ("seed", "model.", "world.", "physics.", "robosuite.", "env.", "vlm.reading_", "vlm.bc_", "train.output_dir")
    for word in others:
        if word.startswith(kept):
            raise UserError("a resumed run keeps its seed, model, world, demonstrations and folder (that of the state "
                            f"file): leave out {word!r}")
    config = configuration.from_dict(resume[0]["config"], [*others, f"train.output_dir:={Path(paths[-1]).parent}"])
    return config, resume


OUT_OF_MEMORY = ("out of memory: lower train.batch_size (or raise train.accumulate, which computes it in parts), lower "
                 "env.num_envs, or give model.vlm.gradient_checkpointing=True (model.vlm.load_in_4bit=True saves most)")


def main(argv=None):
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    argv = sys.argv[1:] if argv is None else argv
    try:
        config, resume = read_config(argv)
        return 130 if train(config, resume) is None else 0
    except (UserError, TrackerError, checkpoint.CheckpointError, configuration.ConfigError, GoalError,
            DemonstrationsError, WorldError) as error:
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


def start_processes():
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
    start_processes()
    sys.exit(main())
