"""Measure speeds, as ratios to a named baseline in the same run.

    python scripts/benchmark.py simulator [--json out.json]
    python scripts/benchmark.py policy|ppo [--preset WORD...] [--device cpu|cuda] [--threads N] [--json out.json]
    python scripts/benchmark.py ppo --preset vlm_fast model.vlm.name:=qwen2_vl_50m model.vlm.init:=random
    python scripts/benchmark.py robosuite [--task Lift]

simulator: steps per second of a batch of particle envs with all physics, without and with images; of a plain Python
loop over particles (tests/reference_simulator.py); and the cost of one particle in a large env.
policy: decisions per second, one at a time, 64 at once, and as many as a rollout has envs.
ppo: samples per second of the trainer's PPO update of a rollout. A frozen vision tower saw its images while it was
collected, as in training.
Both are compared with two uses of transformers with the same weights, samples and threads: one sample at a time with
all vocabulary logits (speedup_vs_single), and 64 at once, padded, without logits (speedup_vs_batched).
The words after --preset are those of train_vlm.py.
robosuite: control steps per second of the robot arm with an 84x84 image from its end effector after each: in one
process, in two, without images, and as robosuite.make gives it with its defaults.
"""
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts import cli

REPEATS = {"simulator": 15, "policy": 7, "ppo": 3, "robosuite": 7}
NUM_ENVS, ROLLOUT_STEPS = 64, 1      # of the rollout
BATCH_SIZE, NUM_SINGLE = 64, 8       # images of a batch; decisions that are timed together one by one


def median_time(function: Callable[[], object], prepare: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of `repeats` calls, each after an untimed `prepare()`. One more call warms up."""
    times = []
    for _ in range(repeats + 1):
        prepare()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def random_state(sim, n: int, rng: np.random.Generator, max_radius: float = 3.0) -> None:
    """Put n particles into each env of a simulator, all charged, warm and moving."""
    shape = (sim.batch_size, n)
    sim.clear(slice(None), rng.integers(2**63, size=sim.batch_size))
    sim.count[:] = n
    sim.position[:, :n] = rng.uniform(3, [sim.width - 3, sim.height - 3], (*shape, 2))
    sim.velocity[:, :n] = rng.normal(0, 1, (*shape, 2))
    sim.radius[:, :n] = radius = rng.uniform(1, max_radius, shape)
    sim.mass[:, :n] = (radius / 2)**2
    sim.conductivity[:, :n] = 0.1
    sim.charge[:, :n] = rng.choice([-1, 1], shape) * rng.uniform(0.1, 2, shape)
    sim.temperature[:, :n] = rng.uniform(0.5, 4, shape)


def benchmark_simulator(repeats: int, batch: int = 1024, n: int = 8, steps: int = 20) -> dict:
    """Return simulation steps per second, without and with images, and of the plain Python reference."""
    from simulator.particles.kernels import THREADS
    from simulator.particles.physics import ParticleSimulator
    from tests.reference_simulator import ReferenceWorld

    rng = np.random.default_rng(0)
    sim = ParticleSimulator(batch, max_particles=50)
    images = sim.render()

    def step(render: bool = False) -> None:
        for _ in range(steps):
            sim.step()
            if render:
                sim.render(out=images)

    def step_reference() -> None:
        for b in range(5):
            world = ReferenceWorld(sim, b)
            for _ in range(steps):
                world.step()

    def prepare() -> None:       # particles cool down and slow down, so each repeat starts anew
        random_state(sim, n, rng)

    steps_per_s = batch * steps / median_time(step, prepare, repeats)
    render_steps_per_s = batch * steps / median_time(lambda: step(render=True), prepare, repeats)
    reference_steps_per_s = 5 * steps / median_time(step_reference, prepare, 5)
    small_us, large_us = cost_per_particle(256, 64, rng), cost_per_particle(10_000, 400, rng)
    return {"steps_per_s": steps_per_s, "render_steps_per_s": render_steps_per_s,
            "reference_steps_per_s": reference_steps_per_s, "speedup": steps_per_s / reference_steps_per_s,
            "cost_per_particle_256_us": small_us, "cost_per_particle_10000_us": large_us,
            "large_env_ratio": large_us / small_us, "num_envs": batch, "particles": n, "threads": THREADS}


def cost_per_particle(n: int, side: int, rng: np.random.Generator) -> float:
    """Return the time of a step per particle, in microseconds, in one env of n particles and side x side px."""
    from simulator.particles.physics import ParticleSimulator
    sim = ParticleSimulator(1, n, side, side)
    return median_time(sim.step, lambda: random_state(sim, n, rng, 1.5), 25) / n * 1e6


def build_run(overrides: list[str], device: str = "auto", threads: int = 0) -> tuple:
    """Return the config, policy, accelerator and envs of a training run. overrides: words of train_vlm.py."""
    import torch

    from config import load
    from simulator.registry import make_env
    from train_vlm import build_policy, make_accelerator
    config = load([*overrides, "rl.target_kl=1e9", *([] if device == "auto" else [f"device:={device}"])])
    if threads or config.train.threads:
        torch.set_num_threads(threads or config.train.threads)
    accelerator = make_accelerator(config)
    env = make_env(config, num_envs=NUM_ENVS)
    return config, build_policy(config, env).to(accelerator.device).eval(), accelerator, env


def memory(policy) -> dict:
    """Return the numbers of parameters, and the peak memory so far in MiB."""
    import torch
    sizes = {"parameters": sum(p.numel() for p in policy.parameters()),
             "trainable_parameters": sum(p.numel() for p in policy.parameters() if p.requires_grad),
             "peak_process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    if policy.device.type == "cuda":
        sizes["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return sizes


def throughput(candidates: dict[str, tuple[int, Callable]], repeats: int, device) -> list[dict[str, float]]:
    """Return {name: samples per second} of {name: (samples of a call, function)}, and the same of CPU time.

    Each is the median of `repeats` calls, made in turns. One more round warms up. CPU time is that of all threads;
    other work on the machine hardly changes it.
    """
    import torch
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = {name: [] for name in candidates}
    for _ in range(repeats + 1):
        for name, (_, function) in candidates.items():
            wait()
            start = np.array([time.perf_counter(), time.process_time()])
            function()
            wait()
            times[name].append(np.array([time.perf_counter(), time.process_time()]) - start)
    rates = {name: count / np.median(times[name][1:], 0) for name, (count, _) in candidates.items()}
    return [{name: float(rate[i]) for name, rate in rates.items()} for i in (0, 1)]


def benchmark_policy(overrides: list[str], device: str, threads: int, repeats: int) -> dict:
    """Return decisions per second: one at a time, 64 at once, as many as a rollout has envs, and of the baselines."""
    import torch

    from scripts.benchmark_baselines import BaselinePolicy
    config, policy, _, env = build_run(overrides, device, threads)
    obs, _ = env.reset(seed=0)
    images, goals, num_envs = obs["image"], np.array(obs["goal"]), config.env.num_envs

    def batch(count: int, first: int = 0) -> dict:
        index = np.arange(first, first + count) % NUM_ENVS
        return {"image": images[index], "goal": goals[index]}

    large, rollout, singles = batch(BATCH_SIZE), batch(num_envs), [batch(1, i) for i in range(NUM_SINGLE)]
    with torch.no_grad():
        policy.act(large)
        sizes, baseline = memory(policy), BaselinePolicy(policy)
        rates, cpu_rates = throughput({
            "decisions_per_s": (NUM_SINGLE, lambda: [policy.act(obs) for obs in singles]),
            "decisions_per_s_batch_64": (BATCH_SIZE, lambda: policy.act(large)),
            "rollout_samples_per_s": (num_envs, lambda: policy.act(rollout)),
            "single_baseline_per_s": (NUM_SINGLE, lambda: [
                sample(baseline.forward_single(obs["image"][0], obs["goal"][0])) for obs in singles]),
            "batched_baseline_per_s": (BATCH_SIZE, lambda: sample(
                baseline.forward_batched(large["image"], large["goal"])))}, repeats, policy.device)
    ratios = {"speedup_vs_single": ("decisions_per_s", "single_baseline_per_s"),
              "speedup_vs_single_batch_64": ("decisions_per_s_batch_64", "single_baseline_per_s"),
              "speedup_vs_single_rollout": ("rollout_samples_per_s", "single_baseline_per_s"),
              "speedup_vs_batched": ("decisions_per_s_batch_64", "batched_baseline_per_s")}
    return rates | speedups(ratios, rates, cpu_rates) | sizes | {
        "num_envs": num_envs, "threads": torch.get_num_threads(), "device": str(policy.device)}


def speedups(ratios: dict, rates: dict, cpu_rates: dict) -> dict:
    """Return {name: ratio of two rates}, and the same ratio of CPU time as name_cpu_time."""
    result = {}
    for name, (ours, baseline) in ratios.items():
        result[name] = rates[ours] / rates[baseline]
        result[f"{name}_cpu_time"] = cpu_rates[ours] / cpu_rates[baseline]
    return result


def sample(output) -> tuple:
    """Return an action and its log-probability, as `sample_action` draws them."""
    actions = output.distribution.sample()
    return actions, output.distribution.log_prob(actions)


def benchmark_ppo(overrides: list[str], device: str, threads: int, repeats: int) -> dict:
    """Return training samples per second: of the trainer's PPO update of a rollout with all its passes, and of one
    minibatch by the baselines: sample by sample with accumulated gradients, and as one batch."""
    import torch

    from models.training.learner import minibatches
    from models.training.losses import ppo_loss
    from scripts.benchmark_baselines import BaselinePolicy
    from simulator.rollout import collect
    from train_vlm import Learner, update_ppo

    config, policy, accelerator, env = build_run(overrides, device, threads)
    learner, rl = Learner(accelerator, policy, config), config.rl
    learner.set_learning_rates(dict.fromkeys(("backbone", "action", "value"), 1e-9))     # all updates do the same work
    policy.use_dropout(False)
    with policy.backbone.cache_vision_features():
        rollout, _ = collect(env, learner.actor, env.reset(seed=0)[0], ROLLOUT_STEPS)
        policy.train()
        obs, actions, old_log_probs = rollout.flat_obs(), rollout.actions.flatten(0, 1), rollout.log_probs.flatten()
        batches = minibatches(len(actions), config.train.batch_size, torch.Generator().manual_seed(0))
        index = batches[0]
        if policy.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        update = lambda: update_ppo(learner, rollout, config, torch.Generator().manual_seed(0))
        update()
        sizes, baseline = memory(policy), BaselinePolicy(policy)
        parameters = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-9)

        def backward(output, rows, weight):
            ones = torch.ones(len(rows), device=policy.device)
            log_prob = output.distribution.log_prob(actions[rows].to(policy.device))
            loss, _ = ppo_loss(log_prob, old_log_probs[rows].to(policy.device), ones, output.value, ones,
                               output.distribution.entropy(), clip_ratio=rl.clip_ratio, value_coef=rl.value_coef,
                               entropy_coef=rl.entropy_coef)
            (loss * weight).backward()

        def optimizer_step():
            torch.nn.utils.clip_grad_norm_(parameters, config.train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

        def update_single():
            for i in index.tolist():
                backward(baseline.forward_single(obs["image"][i], obs["goal"][i]), [i], 1 / len(index))
            optimizer_step()

        def update_batched():
            rows = index.tolist()
            backward(baseline.forward_batched(obs["image"][rows], [obs["goal"][i] for i in rows]), rows, 1.0)
            optimizer_step()

        rates, cpu_rates = throughput({
            "samples_per_s": (rl.update_epochs * sum(map(len, batches)), update),
            "single_baseline_per_s": (len(index), update_single),
            "batched_baseline_per_s": (len(index), update_batched)}, repeats, policy.device)
    ratios = {"speedup_vs_single": ("samples_per_s", "single_baseline_per_s"),
              "speedup_vs_batched": ("samples_per_s", "batched_baseline_per_s")}
    return rates | speedups(ratios, rates, cpu_rates) | sizes | {
        "batch_size": len(index), "update_epochs": rl.update_epochs, "threads": torch.get_num_threads(),
        "device": str(policy.device)}


def benchmark_robosuite(repeats: int, task: str = "PickPlaceCan", steps: int = 20) -> dict:
    """Return control steps per second of the robot arm, and of robosuite with its defaults in a process of its own."""
    import multiprocessing

    from scripts.benchmark_baselines import run_default_robosuite
    from simulator.robosuite.rendering import choose_backend
    from simulator.robosuite.vector_env import RobosuiteVectorEnv
    backend, spawn = choose_backend(), multiprocessing.get_context("spawn")
    pipe, other_end = spawn.Pipe()
    spawn.Process(target=run_default_robosuite, args=(task, other_end), daemon=True).start()
    settings = {"task": task, "action_space": "continuous", "max_steps": 10**6}
    envs = {name: RobosuiteVectorEnv(count, render_images=name != "no_images", **settings)
            for name, count in (("one", 1), ("two", 2), ("no_images", 1))}
    rng = np.random.default_rng(0)

    def run(name: str) -> None:
        env = envs[name]
        for _ in range(steps):
            env.step(rng.uniform(-0.5, 0.5, (env.num_envs, 7)).astype(np.float32))

    def run_default() -> None:
        pipe.send(steps)
        pipe.recv()

    for env in envs.values():
        env.reset(seed=0)
    times = {name: [] for name in ("default", *envs)}
    for _ in range(repeats + 1):        # in turns, so that other work on the machine slows all of them alike
        for name, values in times.items():
            start = time.perf_counter()
            run_default() if name == "default" else run(name)
            values.append(time.perf_counter() - start)
    median = {name: float(np.median(values[1:])) for name, values in times.items()}
    pipe.send(0)
    for env in envs.values():
        env.close()
    return {"steps_per_s": steps / median["one"], "robosuite_steps_per_s": steps / median["default"],
            "speedup": median["default"] / median["one"], "two_processes_steps_per_s": 2 * steps / median["two"],
            "two_processes_to_one": 2 * median["one"] / median["two"],
            "without_images_steps_per_s": steps / median["no_images"], "backend": backend}


def parse_args(argv: list[str] | None = None) -> dict:
    """Return the arguments as a dict."""
    parser = cli.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, repeats in REPEATS.items():
        command = commands.add_parser(name)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
        command.add_argument("--repeats", type=int, default=repeats, help="report the median of so many")
        if name == "robosuite":
            command.add_argument("--task", default="PickPlaceCan", help="Lift, PickPlaceCan or NutAssemblySquare")
        elif name != "simulator":
            command.add_argument("--preset", nargs="+", default=["vlm_tiny"], metavar="WORD", dest="overrides",
                                 help="presets, key=value and key:=string, as for train_vlm.py")
            command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
            command.add_argument("--threads", type=int, default=0, help="of torch; 0: as the config says")
    args = parser.parse_args(argv)
    cli.check_positive("--repeats", args.repeats)
    if args.json:
        cli.require_output_path(args.json, option="--json")
    return vars(args)


def print_results(results: dict) -> None:
    """Print one number a line."""
    for name, value in results.items():
        text = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        print(f"{name:36} {text:>14}")


@cli.report_user_errors
def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = parse_args(argv)
    command, path = options.pop("command"), options.pop("json")
    cli.use_quiet_threads()
    results = BENCHMARKS[command](**options)
    print_results(results)
    if path:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        path.write_text(json.dumps(results | options | machine, indent=2) + "\n")
    return 0


BENCHMARKS = {"simulator": benchmark_simulator, "policy": benchmark_policy, "ppo": benchmark_ppo,
              "robosuite": benchmark_robosuite}

if __name__ == "__main__":
    sys.exit(main())
