"""Trains a vision-language model to act in a simulated world from a sentence: behaviour cloning, then PPO.

    python train_vlm.py vlm_tiny                            a tiny Qwen2-VL from scratch on a CPU, in minutes
    python train_vlm.py vlm_full train.lr=3e-4              Qwen2-VL-2B with LoRA
    python train_vlm.py train.resume:=checkpoints/vlm_state.pt    goes on where a run stopped
    python train_vlm.py manual                              every preset and key

The loop is five verbs: collect, estimate, update, log, save. Behaviour cloning is the same loop with the expert's
demonstrations in the place of collect and estimate. Where it departs from textbook PPO: the first iterations train
only the value head (a cloned policy has no critic yet), the value head sends no gradients into the backbone, and
an update ends early when the KL estimate passes a target.

Before it acts at all the model learns to read: which words of the goal language a sentence says. Every unit of work
(a chunk of sentences or of demonstrations, a PPO iteration) seeds its random numbers from (seed, stage, unit), so a
resumed run is the same run, and needs no random state but the worlds' own.
"""
import contextlib
import fcntl
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

if __name__ == "__main__":      # sleeping threads: spinning ones collapse where anything else uses the cores
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from tqdm import tqdm

import config as configuration
from dataset import demonstrations, minibatches, select
from models import checkpoint
from models.backbone import Backbone, save_random_model
from models.heads import ActionSpec
from models.losses import bc_loss, compute_gae, explained_variance, normalize, ppo_loss, reading_loss
from models.vlm_policy import VLMPolicy
from simulator.evaluation import evaluate_policy, policy_actor, run_episodes, show
from simulator.goal_env import make_env, training_sentences
from simulator.goals import GoalError
from simulator.language import corpus_hash
from simulator.rollout import collect

__all__ = ["VLMPolicy", "main", "train"]
VALIDATION_SEED = 50_000_000     # the best checkpoint is chosen on episodes that no report uses
STAGES = ("bc", "ppo", "reading")
STATE, BEST, FINAL = "vlm_state.pt", "vlm_best.pt", "vlm_final.pt"


class UserError(Exception):
    """Something the person who started the run can mend; its message is one line."""


class NotFinite(Exception):
    """The loss or a gradient is NaN or infinite."""


# --- building ---------------------------------------------------------------------------------------------------
def build_policy(config, env, folder):
    """The policy that a config describes; a model with fresh weights is first saved as a folder, then loaded."""
    vlm = config.model.vlm
    lora = {"r": vlm.lora_r, "alpha": vlm.lora_alpha, "dropout": vlm.lora_dropout, "targets": list(vlm.lora_targets)}
    lora = lora if vlm.use_lora else None
    torch.manual_seed(config.seed)
    try:
        if vlm.init == "random":
            sentences = sorted(text for texts in training_sentences(config).values() for text in texts)
            base = save_random_model(vlm.name, folder / f"{vlm.name}_base", sentences, config.seed)
            backbone = Backbone.from_pretrained(base, vlm.dtype, lora)
            backbone.name, backbone.files = vlm.name, Backbone.small_files(base)
        else:
            backbone = Backbone.from_pretrained(vlm.name, vlm.dtype, lora)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load model.vlm.name={vlm.name!r} ({str(error).splitlines()[0]}): give a hub name "
                        "that can be reached or a local model folder, or start with the preset vlm_tiny") from None
    return VLMPolicy(backbone, ActionSpec.from_space(env.single_action_space), config.model.heads.hidden,
                     config.model.heads.init_std, env.words)


def pick_device(name):
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, True):
        raise UserError(f"device={name} is not to be had on this machine: use device:=cpu or device:=auto")
    return name


def scheduled(peak, schedule, done):
    """Learning rate when a share `done` of the work is behind."""
    return peak * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


# --- updates ----------------------------------------------------------------------------------------------------
def step_optimizer(optimizer, loss, parameters, max_grad_norm):
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not torch.isfinite(norm):
        raise NotFinite(f"loss {loss.item()}, gradient norm {norm.item()}")
    optimizer.step()
    return norm


def update_reading(policy, optimizer, goals, words, config, generator):
    """One pass over sentences and the words they say, without pictures -> mean metrics. To read is learned ten times
    faster where nothing else is learned by the way."""
    reads = [*policy.backbone.vlm.language_model.parameters(), *policy.reading_head.parameters()]
    parameters, losses = [p for p in reads if p.requires_grad], []
    for batch in minibatches(len(goals), config.train.batch_size, generator):
        loss = reading_loss(policy.read([goals[i] for i in batch]), words[batch].to(policy.device))
        step_optimizer(optimizer, loss, parameters, config.train.max_grad_norm)
        losses.append(loss.item())
    return {"train/reading_loss": float(np.mean(losses))}


def update_bc(policy, optimizer, obs, actions, config, generator):
    """One pass over a chunk of demonstrations -> mean metrics."""
    # the width of the exploration is PPO's to learn: likelihood would shrink it until every ratio explodes
    parameters = [p for name, p in policy.named_parameters() if p.requires_grad and not name.endswith("log_std")]
    sums = []
    for batch in minibatches(len(actions), config.train.batch_size, generator):
        part, expert = select(obs, batch), actions[batch].to(policy.device)
        output = policy(part["image"], part["goal"])
        words, due, places = (torch.from_numpy(part[name]).to(policy.device) for name in ("words", "due", "places"))
        pi = output.distribution
        looked = pi.log_attended(expert) + pi.log_glanced(places) + pi.log_due(due)
        loss, metrics = bc_loss(pi.log_prob(expert), looked, output.said, words)
        metrics["train/grad_norm"] = step_optimizer(optimizer, loss, parameters, config.train.max_grad_norm)
        sums.append(metrics)
    return {key: float(np.mean([float(m[key]) for m in sums])) for key in sums[0]}


def update_ppo(policy, optimizer, rollout, advantages, returns, config, generator, critic_only):
    """`rl.ppo_epochs` passes of PPO over a rollout -> mean metrics. `critic_only`: nothing but the value head."""
    obs, actions = rollout.flat_obs(), rollout.actions.flatten(0, 1)
    old_log_probs, advantages, returns = rollout.log_probs.flatten(), normalize(advantages.flatten()), returns.flatten()
    parameters = list(policy.value_head.parameters()) if critic_only else [
        p for p in policy.parameters() if p.requires_grad]
    sums, stopped = [], False
    for _ in range(4 * config.rl.ppo_epochs if critic_only else config.rl.ppo_epochs):
        for batch in minibatches(len(actions), config.train.batch_size, generator):
            log_probs, entropy, values = policy.evaluate_actions(select(obs, batch), actions[batch])
            on = lambda tensor: tensor[batch].to(values.device)  # noqa: B023, E731
            loss, metrics = ppo_loss(log_probs, on(old_log_probs), on(advantages), values, on(returns), entropy,
                                     clip_ratio=config.rl.clip_ratio, value_coef=config.rl.value_coef,
                                     entropy_coef=config.rl.entropy_coef)
            if critic_only:
                loss = (values - on(returns)).square().mean()
            elif metrics["train/approx_kl"] > 1.5 * config.rl.target_kl:
                stopped = True
                break
            metrics["train/grad_norm"] = step_optimizer(optimizer, loss, parameters, config.train.max_grad_norm)
            sums.append(metrics)
        if stopped:
            break
    means = {key: float(np.mean([float(m[key]) for m in sums])) for key in sums[0]} if sums else {}
    return means | {"train/updates": len(sums), "train/explained_variance":
                    float(explained_variance(rollout.values.flatten(), returns))}


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
        earlier = [folder / name for name in (STATE, BEST, FINAL, "metrics.jsonl", "curves.png", "eval.json",
                                              "vlm_best.json", "vlm_final.json", "rollout.gif")]
        earlier = [path for path in earlier if path.exists()]
        if earlier and not keep:
            older = folder / "older" / time.strftime("%Y%m%d-%H%M%S", time.localtime(earlier[0].stat().st_mtime))
            while older.exists():
                older = older.with_name(older.name + "+")
            older.mkdir(parents=True)
            for path in earlier:
                path.rename(older / path.name)
            print(f"the files of the run before are now in {older}")
        yield


class Log:
    """metrics.jsonl always, curves.png at the end, W&B if asked."""

    def __init__(self, config, folder, lines):
        self.path = folder / "metrics.jsonl"
        kept = self.path.read_text().splitlines()[:lines] if lines and self.path.exists() else []
        self.path.write_text("".join(line + "\n" for line in kept))
        self.rows = [json.loads(line) for line in kept]
        self.wandb = None
        if config.log.wandb != "disabled":
            import wandb
            try:
                self.wandb = wandb.init(project=config.log.project, name=config.log.run_name or None, dir=str(folder),
                                        mode=config.log.wandb, config=config.to_dict())
            except wandb.Error as error:
                raise UserError(f"W&B cannot be started ({str(error).splitlines()[0]}): log in with `wandb login`, or "
                                "give log.wandb:=offline") from None

    def write(self, row):
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.wandb:
            self.wandb.log(row)

    def close(self):
        draw_curves(self.rows, self.path.with_name("curves.png"))
        if self.wandb:
            self.wandb.finish()


def draw_curves(rows, path):
    """Success, length, KL and critic over the samples seen, as one picture."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    panels = [("success rate", ["eval/success_rate", "rollout/success_rate"]),
              ("steps per episode", ["eval/steps", "rollout/length"]), ("return", ["rollout/return"]),
              ("behaviour cloning loss", ["train/bc_loss"]), ("KL per update", ["train/approx_kl"]),
              ("critic: explained variance", ["train/explained_variance"])]
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), constrained_layout=True)
    for axis, (title, keys) in zip(axes.flat, panels, strict=True):
        for key in keys:
            points = [(row["samples"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, ms=3, label=key)
        switch = [row["samples"] for row in rows if row["stage"] == "ppo"]
        if switch:
            axis.axvline(switch[0], color="grey", lw=0.8, ls=":")
        axis.set(title=title, xlabel="samples seen (dotted: PPO begins)")
        if axis.lines and axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    with checkpoint.replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    plt.close(figure)


# --- the run ----------------------------------------------------------------------------------------------------
def train(config, resume=None):
    """Trains as `config` says into `config.train.output_dir`; returns the trained policy's summary, or None where
    Ctrl-C ended it early. `resume` is what checkpoint.load gave for a state file."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = pick_device(config.device)
    try:
        env = make_env(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    # worlds that cannot be started are refused now, before anything is written
    probe = make_env(config, num_envs=64)
    probe.reset(seed=0, options={"goals": probe.balanced_goals(64)})
    with tempfile.TemporaryDirectory() as base:
        policy = build_policy(config, env, Path(base)).to(device)
    folder = Path(config.train.output_dir)
    with claim(folder, keep=resume is not None):
        try:
            return _train(config, env, policy, folder, resume)
        except OSError as error:
            state = f"; go on with train.resume:={folder / STATE}" if (folder / STATE).exists() else ""
            raise UserError(f"cannot write to {folder} ({error.strerror or error}): free some space or give another "
                            f"train.output_dir{state}") from None


def _train(config, env, policy, folder, resume):
    steps, unit_samples = config.vlm.rollout_steps, config.vlm.rollout_steps * env.num_envs
    units = {"reading": math.ceil(config.vlm.reading_samples / unit_samples),
             "bc": math.ceil(config.vlm.bc_epochs * config.vlm.bc_samples / unit_samples), "ppo": config.vlm.ppo_epochs}
    at = {"stage": "reading", "unit": 0, "samples": 0, "env_steps": 0, "best": -1.0, "seconds": 0.0, "lines": 0}
    optimizer = new_optimizer(policy, config)
    tally = np.zeros((2, env.num_envs))
    obs = None
    if resume:
        meta, weights, state = resume
        at = dict(meta["at"])
        policy.load_weights(weights)
        optimizer.load_state_dict(state["optimizer"])
        tally = state["tally"].numpy().copy()
        if at["stage"] == "ppo" and state["worlds"]:
            obs = env.restore({key: value.numpy() if torch.is_tensor(value) else value
                               for key, value in state["worlds"].items()})
    corpus = corpus_hash(config.env.sentences)
    log = Log(config, folder, at["lines"])
    began = time.perf_counter() - at["seconds"]
    stopping = Interrupt()

    def meta():
        return {"presets": list(config.presets), "config": config.to_dict(), "seed": config.seed, "corpus": corpus,
                "training_seconds": round(time.perf_counter() - began, 1), "samples": at["samples"],
                "environment_steps": at["env_steps"], "success": at["best"], "torch": torch.__version__}

    def save_state():
        at["lines"] = len(log.rows)
        worlds = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                  for key, value in env.state().items()} if at["stage"] == "ppo" else {}
        checkpoint.save(folder / STATE, meta() | {"at": at, "architecture": policy.architecture()},
                        policy.trainable_state(), {"optimizer": optimizer.state_dict(), "worlds": worlds,
                                                   "tally": torch.from_numpy(tally)})

    def evaluate():
        env_eval = make_env(config, num_envs=min(128, config.eval.episodes))
        count = config.eval.episodes
        policy.eval()
        result = run_episodes(env_eval, policy_actor(policy, True), VALIDATION_SEED + np.arange(count),
                              env_eval.balanced_goals(count))
        k = int(result["success"].sum())
        row = {"eval/success_rate": k / count, "eval/steps": float(result["length"].mean())}
        if k / count >= at["best"]:
            at["best"] = k / count
            policy.save(folder / BEST, meta())
        return row

    def read(generator):
        rng = np.random.default_rng([config.seed, STAGES.index("reading"), at["unit"]])
        goals, words = env.things_to_say(rng, unit_samples)
        return update_reading(policy, optimizer, goals, torch.from_numpy(words), config, generator)

    def clone(generator):
        obs, actions = demonstrations(env, steps, [config.seed, STAGES.index("bc"), at["unit"]], config.vlm.bc_perturb,
                                      config.vlm.bc_relabel)
        at["samples"] += len(actions)
        return update_bc(policy, optimizer, obs, actions, config, generator)

    def finish_unit(row):
        at["unit"] += 1
        at["seconds"] = time.perf_counter() - began
        log.write({"stage": at["stage"], "unit": at["unit"], "samples": at["samples"], "env_steps": at["env_steps"],
                   "time/seconds": round(at["seconds"], 2)} | row)

    try:
        for stage, update, following in (("reading", read, "bc"), ("bc", clone, "ppo")):
            with tqdm(total=units[stage], initial=at["unit"] if at["stage"] == stage else units[stage], unit="chunk",
                      desc={"bc": "behaviour cloning"}.get(stage, stage), disable=not units[stage]) as bar:
                while at["stage"] == stage and at["unit"] < units[stage] and not stopping:
                    generator = seed_unit(config.seed, stage, at["unit"])
                    for group in optimizer.param_groups:
                        group["lr"] = scheduled(config.vlm.bc_lr, config.train.lr_schedule, at["unit"] / units[stage])
                    policy.use_dropout(True, config.vlm.bc_subword_dropout).train()
                    row = update(generator)
                    if stage == "bc" and at["unit"] + 1 == units["bc"]:
                        row |= evaluate()
                    finish_unit(row)
                    if at["unit"] % config.train.save_every == 0:
                        save_state()
                    bar.set_postfix_str(" ".join(f"{k.split('/')[1]} {row[k]:.3f}" for k in (
                        "train/bc_loss", "train/reading_loss", "eval/success_rate") if k in row), refresh=False)
                    bar.update()
            if at["stage"] == stage and not stopping:
                at |= {"stage": following, "unit": 0}
                optimizer = new_optimizer(policy, config)
        policy.use_dropout(False)
        if at["stage"] == "ppo" and obs is None:
            obs, _ = env.reset(seed=np.random.default_rng([config.seed, 1]).integers(2**31, size=env.num_envs))
        with tqdm(total=units["ppo"], initial=at["unit"] if at["stage"] == "ppo" else 0, unit="iteration",
                  desc="PPO", disable=not units["ppo"]) as bar:
            while at["stage"] == "ppo" and at["unit"] < units["ppo"] and not stopping:
                generator = seed_unit(config.seed, "ppo", at["unit"])
                started = time.perf_counter()
                policy.eval()
                rollout, obs = collect(env, policy, obs, steps, tally)                                    # collect
                collected = time.perf_counter() - started
                advantages, returns = compute_gae(rollout.rewards, rollout.values, rollout.next_values,   # estimate
                                                  rollout.terminated, rollout.truncated,
                                                  config.rl.gamma, config.rl.gae_lambda)
                peaks = {"backbone": config.train.lr, "action": config.train.head_lr, "value": config.train.value_lr}
                for group in optimizer.param_groups:
                    group["lr"] = scheduled(peaks[group["name"]], config.train.lr_schedule, at["unit"] / units["ppo"])
                policy.train()
                row = update_ppo(policy, optimizer, rollout, advantages, returns, config, generator,      # update
                                 critic_only=at["unit"] < config.rl.critic_warmup)
                at["samples"] += unit_samples
                at["env_steps"] += unit_samples
                ended = rollout.episodes
                if ended:
                    row |= {"rollout/success_rate": float(np.mean([e["success"] for e in ended])),
                            "rollout/return": float(np.mean([e["return"] for e in ended])),
                            "rollout/length": float(np.mean([e["length"] for e in ended]))}
                row |= {"rollout/episodes": len(ended), "time/env_steps_per_s": round(unit_samples / collected, 1)}
                last = at["unit"] + 1 == units["ppo"]
                if last or (config.eval.every and (at["unit"] + 1) % config.eval.every == 0):
                    row |= evaluate()
                finish_unit(row)                                                                          # log
                if at["unit"] % config.train.save_every == 0:
                    save_state()                                                                          # save
                bar.set_postfix_str(" ".join(f"{k.split('/')[1]} {row[k]:.3f}" for k in (
                    "rollout/success_rate", "train/approx_kl", "eval/success_rate") if k in row), refresh=False)
                bar.update()
        save_state()
        if stopping:
            print(f"\nstopped after {at['stage']} unit {at['unit']}; go on with: "
                  f"python train_vlm.py train.resume:={folder / STATE}")
            return None
        policy.save(folder / FINAL, meta())
        if not (folder / BEST).exists():
            policy.save(folder / BEST, meta())
        return report(config, folder)
    except NotFinite as error:
        save_state()
        raise UserError(f"training stopped at {at['stage']} unit {at['unit']}: {error}; the state is in "
                        f"{folder / STATE}; lower train.lr or raise train.batch_size") from None
    finally:
        stopping.restore()
        log.close()


def new_optimizer(policy, config):
    groups = [{"params": group, "name": name} for name, group in policy.parameter_groups().items() if group]
    return torch.optim.AdamW(groups, lr=config.train.lr, weight_decay=config.train.weight_decay, eps=1e-5)


def seed_unit(seed, stage, unit):
    """Seeds torch's global generator for a unit of work, and returns a generator of its own for shuffling."""
    a, b = np.random.SeedSequence([seed, STAGES.index(stage), unit]).generate_state(2)
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


def report(config, folder):
    """Evaluates the best checkpoint beside the baselines on the fixed episodes; prints the table, writes eval.json."""
    policy = VLMPolicy.from_checkpoint(folder / BEST, pick_device(config.device))
    env = make_env(config, num_envs=min(128, config.eval.episodes))
    figures = evaluate_policy(env, policy, config.eval.episodes, config.eval.seed)
    print(show(figures))
    (folder / "eval.json").write_text(json.dumps(figures, indent=1) + "\n")
    return figures


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
    kept = ("seed", "model.", "world.", "physics.", "env.", "vlm.reading_", "vlm.bc_", "train.output_dir")
    for word in others:
        if word.startswith(kept):
            raise UserError("a resumed run keeps its seed, model, world, demonstrations and folder (that of the state "
                            f"file): leave out {word!r}")
    config = configuration.from_dict(resume[0]["config"], [*others, f"train.output_dir:={Path(paths[-1]).parent}"])
    return config, resume


def main(argv=None):
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    argv = sys.argv[1:] if argv is None else argv
    try:
        config, resume = read_config(argv)
        return 0 if train(config, resume) else 130
    except (UserError, checkpoint.CheckpointError, configuration.ConfigError, GoalError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
