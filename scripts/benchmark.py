"""How fast it is, as ratios to a named reference in the same run.

    python scripts/benchmark.py simulator [--json out.json]
    python scripts/benchmark.py policy|ppo [--preset WORD...] [--device cpu|cuda] [--threads N] [--json out.json]
    python scripts/benchmark.py ppo --preset vlm_fast model.vlm.name:=qwen2_vl_50m model.vlm.init:=random
    python scripts/benchmark.py robosuite [--task Lift]

simulator: steps per second of a batch of particle worlds with everything on, without and with pictures; the
same as a plain Python loop over particles (tests/reference_simulator.py); what a particle costs in a large world.
policy: decisions per second, one at a time, 64 at once, and as many as a rollout has worlds.
ppo: samples per second of the trainer's own PPO update on a rollout of its own, whose pictures a frozen vision tower
saw while it was collected, as in training.
Both against a straightforward use of transformers, one sample at a time, with the same weights, samples and threads;
the words after --preset are those of train_vlm.py.
robosuite: control steps per second of the robot arm with an 84x84 picture from its hand after each, one process, two
processes, without pictures, and as robosuite.make gives it with its defaults.
"""
import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
REPEATS = {"simulator": 15, "policy": 7, "ppo": 3, "robosuite": 7}
WORLDS, STEPS, NUM_SINGLE = 64, 1, 8      # of a rollout; decisions that are timed together one by one


def median_time(function, prepare, repeats):
    """The median time of a call over `repeats`, each after an untimed `prepare()`; one more call warms up."""
    times = []
    for _ in range(repeats + 1):
        prepare()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def random_state(sim, n, rng, largest=3.0):
    """n particles in each world, all charged, warm and moving."""
    shape = (sim.batch_size, n)
    sim.clear(slice(None), rng.integers(2**63, size=sim.batch_size))
    sim.count[:] = n
    sim.position[:, :n] = rng.uniform(3, [sim.width - 3, sim.height - 3], (*shape, 2))
    sim.velocity[:, :n] = rng.normal(0, 1, (*shape, 2))
    sim.radius[:, :n] = radius = rng.uniform(1, largest, shape)
    sim.mass[:, :n], sim.conductivity[:, :n] = (radius / 2)**2, 0.1
    sim.charge[:, :n] = rng.choice([-1, 1], shape) * rng.uniform(0.1, 2, shape)
    sim.temperature[:, :n] = rng.uniform(0.5, 4, shape)


def benchmark_simulator(repeats, batch=1024, n=8, steps=20):
    from reference_simulator import ReferenceWorld

    from simulator.particles.kernels import THREADS
    from simulator.particles.physics import ParticleSimulator

    rng = np.random.default_rng(0)
    sim = ParticleSimulator(batch, max_particles=50)
    images = sim.render()

    def step(picture=False):
        for _ in range(steps):
            sim.step()
            if picture:
                sim.render(out=images)

    def fresh():       # worlds cool down and slow down: each repeat starts anew
        random_state(sim, n, rng)

    per_second = [batch * steps / median_time(lambda p=p: step(p), fresh, repeats) for p in (False, True)]

    def reference():
        for b in range(5):
            world = ReferenceWorld(sim, b)
            for _ in range(steps):
                world.step()

    reference_per_second = 5 * steps / median_time(reference, fresh, 5)

    per_particle = {}
    for many, side in ((256, 64), (10_000, 400)):      # 16 px^2 each
        large = ParticleSimulator(1, many, side, side)
        taken = median_time(large.step, lambda many=many, large=large: random_state(large, many, rng, 1.5), 25)
        per_particle[many] = taken / many * 1e6

    return {"steps_per_s": per_second[0], "render_steps_per_s": per_second[1],
            "reference_steps_per_s": reference_per_second,
            "speedup": per_second[0] / reference_per_second,
            "cost_per_particle_256_us": per_particle[256],
            "cost_per_particle_10000_us": per_particle[10_000],
            "large_world_ratio": per_particle[10_000] / per_particle[256],
            "worlds": batch, "particles": n, "threads": THREADS}


def baseline_forward(policy):
    """What a first implementation does: the official image processor, one picture at a time, all logits of the
    vocabulary; then the same heads. -> forward(image, goal), a PolicyOutput with the same weights."""
    import copy

    import torch
    from transformers import AutoImageProcessor, Qwen2VLForConditionalGeneration

    from models.backbones.hub_loading import resolve_hub_kwargs

    backbone, device, seen = policy.backbone, policy.device, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (backbone.config_files or {}).items():
            Path(folder, name).write_text(text, encoding="utf-8")
        name, hub_kwargs = (folder, {}) if backbone.config_files else (backbone.name, resolve_hub_kwargs(backbone.name))
        processor = AutoImageProcessor.from_pretrained(name, **hub_kwargs)
    if backbone.min_pixels:
        processor.size = {"shortest_edge": backbone.min_pixels,
                          "longest_edge": max(backbone.min_pixels, processor.size["longest_edge"])}
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(copy.deepcopy(backbone.vlm.config))
    model.model, embedding = backbone.vlm, backbone.vlm.get_input_embeddings().weight
    model.lm_head = torch.nn.Linear(*embedding.shape[::-1], bias=False, device=device, dtype=embedding.dtype)
    model.lm_head.requires_grad_(False)
    if model.config.tie_word_embeddings:       # else random ones, as good as any here
        model.lm_head.weight = embedding
    backbone.vlm.visual.blocks[-1].register_forward_hook(lambda module, args, out: seen.update(patches=out))
    merge, token = model.config.vision_config.spatial_merge_size, model.config.image_token_id

    def forward(image, goal):
        pixels = processor(images=[image], return_tensors="pt").to(device)
        before, after = backbone.prompt(goal)
        t, h, w = (int(v) for v in pixels["image_grid_thw"][0])
        count = t * h * w // merge**2
        ids = torch.tensor([[*before, *[token] * count, *after]], device=device)
        out = model(input_ids=ids, **pixels, mm_token_type_ids=(ids == token).int(),
                    attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False)
        hidden = out.hidden_states[-1].float()
        image = backbone.patch_features(hidden[:, len(before):len(before) + count], seen["patches"].view(1, t * h * w, -1))
        text = hidden[:, len(before) + count:]
        last_index = torch.tensor([text.shape[1] - 1], device=device)
        return policy.forward_heads(text, last_index, image, backbone.patch_centers(h, w, merge, device))

    return forward


def build_run(overrides, device="auto", threads=0):
    """What the words of a training run describe -> its config, policy, accelerator and worlds."""
    import torch

    from config import load
    from simulator.registry import make_env
    from train_vlm import build_policy, make_accelerator
    config = load([*overrides, "rl.target_kl=1e9", *([] if device == "auto" else [f"device:={device}"])])
    if threads or config.train.threads:
        torch.set_num_threads(threads or config.train.threads)
    accelerator = make_accelerator(config)
    env = make_env(config, num_envs=WORLDS)
    return config, build_policy(config, env).to(accelerator.device).eval(), accelerator, env


def memory(policy):
    """Sizes of the policy, and the most memory that was in use so far."""
    import torch
    sizes = {"parameters": sum(p.numel() for p in policy.parameters()),
             "trainable_parameters": sum(p.numel() for p in policy.parameters() if p.requires_grad),
             "peak_process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    return sizes | ({"peak_gpu_mib": torch.cuda.max_memory_allocated() / 2**20} if policy.device.type == "cuda" else {})


def throughput(contenders, repeats, device):
    """{name: (count, function)} -> {name: how many per second} and the same per second of CPU time (of all threads,
    which others on the machine hardly change): the medians of `repeats`, taken in turns; one more round warms up."""
    import torch
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, (_, function) in contenders.items():
            wait()
            start = np.array([time.perf_counter(), time.process_time()])
            function()
            wait()
            times[name].append(np.array([time.perf_counter(), time.process_time()]) - start)
    clocks = {name: count / np.median(times[name][1:], 0) for name, (count, _) in contenders.items()}
    return [{name: float(clock[i]) for name, clock in clocks.items()} for i in (0, 1)]


def benchmark_policy(overrides, device, threads, repeats):
    """Decisions per second: one at a time, 64 at once, as many as a rollout has worlds, and the straightforward way."""
    import torch

    config, policy, accelerator, env = build_run(overrides, device, threads)
    obs, envs, few = env.reset(seed=0)[0], config.env.num_envs, range(NUM_SINGLE)
    images, goals = obs["image"], np.array(obs["goal"])
    part = lambda first, count: {"image": images[(index := np.arange(first, first + count) % WORLDS)],
                                 "goal": goals[index]}
    many, worlds = part(0, 64), part(0, envs)
    with torch.no_grad():
        policy.act(many)
        sizes, reference = memory(policy), baseline_forward(policy)
        one_by_one = lambda: [sample(reference(images[i], goals[i])) for i in few]
        result, cpu = throughput({
            "decisions_per_s": (len(few), lambda: [policy.act(part(i, 1)) for i in few]),
            "decisions_per_s_batch_64": (64, lambda: policy.act(many)),
            "rollout_samples_per_s": (envs, lambda: policy.act(worlds)),
            "reference_decisions_per_s": (len(few), one_by_one)}, repeats, policy.device)
    *ours, reference = result
    names = ("speedup", "speedup_batch_64", "rollout_speedup")
    for name, own in zip(names, ours, strict=True):
        result |= {name: result[own] / result[reference], f"{name}_cpu_time": cpu[own] / cpu[reference]}
    return result | sizes | {
        "worlds": envs, "threads": torch.get_num_threads(), "device": str(policy.device)}


def sample(output):
    """An action and its log-probability, as `sample_action` draws them."""
    actions = output.distribution.sample()
    return actions, output.distribution.log_prob(actions)


def benchmark_ppo(overrides, device, threads, repeats):
    """Training samples per second: the trainer's PPO update of a rollout, all its passes; and one sample at a time the
    straightforward way, the gradient of a minibatch added up."""
    import torch

    from dataset import minibatches
    from models.training.losses import ppo_loss
    from simulator.rollout import collect
    from train_vlm import Learner, update_ppo

    config, policy, accelerator, env = build_run(overrides, device, threads)
    learner, rl = Learner(accelerator, policy, config), config.rl
    learner.set_learning_rates(dict.fromkeys(("backbone", "action", "value"), 1e-9))     # all updates do the same work
    policy.use_dropout(False)
    with policy.backbone.cache_vision_features():
        rollout, _ = collect(env, learner.actor, env.reset(seed=0)[0], STEPS)
        policy.train()
        obs, actions, old = rollout.flat_obs(), rollout.actions.flatten(0, 1), rollout.log_probs.flatten()
        update = lambda: update_ppo(learner, rollout, config, torch.Generator().manual_seed(0))
        batches = minibatches(len(actions), config.train.batch_size, torch.Generator().manual_seed(0))
        if policy.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        update()
        sizes, reference = memory(policy), baseline_forward(policy)
        parameters = [p for p in policy.parameters() if p.requires_grad]
        one, optimizer = torch.ones(1, device=policy.device), torch.optim.AdamW(parameters, lr=1e-9)

        def one_by_one():
            for i in batches[0].tolist():
                output, action = reference(obs["image"][i], obs["goal"][i]), actions[i:i + 1].to(policy.device)
                loss, _ = ppo_loss(output.distribution.log_prob(action), old[i:i + 1].to(policy.device), one,
                                   output.value, one, output.distribution.entropy(), clip_ratio=rl.clip_ratio,
                                   value_coef=rl.value_coef, entropy_coef=rl.entropy_coef)
                (loss / len(batches[0])).backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.train.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

        result, cpu = throughput({"samples_per_s": (rl.update_epochs * sum(map(len, batches)), update),
                             "reference_samples_per_s": (len(batches[0]), one_by_one)}, repeats, policy.device)
    speedup, cpu = (clock["samples_per_s"] / clock["reference_samples_per_s"] for clock in (result, cpu))
    return result | {"speedup": speedup, "speedup_cpu_time": cpu} | sizes | {
        "batch_size": len(batches[0]), "passes": rl.update_epochs, "threads": torch.get_num_threads(),
        "device": str(policy.device)}


def _default_robosuite(task, pipe):
    """A process in which robosuite is as it comes: it steps as often as it is told."""
    import robosuite
    env = robosuite.make(task, robots="Panda", has_renderer=False, has_offscreen_renderer=True, use_camera_obs=True,
                         camera_names="robot0_eye_in_hand", camera_heights=84, camera_widths=84, reward_shaping=True)
    env.reset()
    rng = np.random.default_rng(0)
    while steps := pipe.recv():
        for _ in range(steps):
            env.step(rng.uniform(-0.5, 0.5, 7))
        pipe.send(steps)


def benchmark_robosuite(repeats, task="PickPlaceCan", steps=20):
    import multiprocessing

    from simulator.robosuite.env import RobosuiteVectorEnv
    from simulator.robosuite.rendering import choose_backend
    backend, spawn = choose_backend(), multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    default = spawn.Process(target=_default_robosuite, args=(task, theirs), daemon=True)
    default.start()
    settings = {"task": task, "action_space": "continuous", "max_steps": 10**6}
    one, two, blind = (RobosuiteVectorEnv(count, pictures=pictures, **settings)
                       for count, pictures in ((1, True), (2, True), (1, False)))
    rng = np.random.default_rng(0)

    def run(env):
        def go():
            for _ in range(steps):
                env.step(rng.uniform(-0.5, 0.5, (env.num_envs, 7)).astype(np.float32))
        return go

    def run_default():
        ours.send(steps)
        ours.recv()

    for env in (one, two, blind):
        env.reset(seed=0)
    calls = {"default": run_default, "one": run(one), "two": run(two), "blind": run(blind)}
    times = {name: [] for name in calls}
    for _ in range(repeats + 1):        # all of them in turn, so that what else the machine does hits all alike
        for name, call in calls.items():
            times[name].append(seconds_of(call))
    median = {name: float(np.median(values[1:])) for name, values in times.items()}
    ours.send(0)
    for env in (one, two, blind):
        env.close()
    return {"steps_per_s": steps / median["one"], "robosuite_steps_per_s": steps / median["default"],
            "speedup": median["default"] / median["one"], "two_workers_steps_per_s": 2 * steps / median["two"],
            "two_workers_to_one": 2 * median["one"] / median["two"],
            "without_pictures_steps_per_s": steps / median["blind"], "backend": backend}


def seconds_of(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, repeats in REPEATS.items():
        command = commands.add_parser(name)
        command.add_argument("--json", type=Path, help="also write the numbers here")
        command.add_argument("--repeats", type=int, default=repeats, help="the median of so many")
        if name == "robosuite":
            command.add_argument("--task", default="PickPlaceCan", help="Lift, PickPlaceCan or NutAssemblySquare")
        elif name != "simulator":
            command.add_argument("--preset", nargs="+", default=["vlm_tiny"], metavar="WORD", dest="overrides",
                                 help="presets, key=value and key:=string, as for train_vlm.py")
            command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
            command.add_argument("--threads", type=int, default=0, help="of torch; 0: as the config says")
    options = vars(parser.parse_args(argv))
    command, path = options.pop("command"), options.pop("json")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")      # see inference.py
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        results = BENCHMARKS[command](**options)
    except Exception as error:
        from config import ConfigError
        from simulator.particles.goals import GoalError
        from simulator.registry import EnvError
        from train_vlm import UserError
        if not isinstance(error, (ConfigError, GoalError, UserError, EnvError)):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for name, value in results.items():
        print(f"{name:28} " + (f"{value:>14,.2f}" if isinstance(value, float) else f"{value:>14,}"
                               if isinstance(value, int) else f"{value:>14}"))
    if path:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        path.write_text(json.dumps(results | options | machine, indent=2) + "\n")
    return 0


BENCHMARKS = {"simulator": benchmark_simulator, "policy": benchmark_policy, "ppo": benchmark_ppo,
              "robosuite": benchmark_robosuite}

if __name__ == "__main__":
    sys.exit(main())
