"""How fast it is, as ratios to a named reference in the same run.

    python scripts/benchmark.py simulator|policy|ppo [--json out.json]

simulator: steps per second of a batch of particle worlds with everything on, without and with pictures; the
same as a plain Python loop over particles (tests/reference_simulator.py); what a particle costs in a large world.
"""
import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def seconds(function, prepare, repeats):
    """The median time of a call over `repeats`, each after an untimed `prepare()`; one more call warms up."""
    times = []
    for _ in range(repeats + 1):
        prepare()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def fill(sim, n, rng, largest=3.0):
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


def benchmark_simulator(batch=1024, n=8, steps=20, repeats=15):
    from reference_simulator import ReferenceWorld

    from simulator.core import ParticleSimulator
    from simulator.kernels import THREADS

    rng = np.random.default_rng(0)
    sim = ParticleSimulator(batch, max_particles=50)
    images = sim.render()

    def step(picture=False):
        for _ in range(steps):
            sim.step()
            if picture:
                sim.render(out=images)

    def fresh():       # worlds cool down and slow down: each repeat starts anew
        fill(sim, n, rng)

    per_second = [batch * steps / seconds(lambda p=p: step(p), fresh, repeats) for p in (False, True)]

    def reference():
        for b in range(5):
            world = ReferenceWorld(sim, b)
            for _ in range(steps):
                world.step()

    reference_per_second = 5 * steps / seconds(reference, fresh, 5)

    per_particle = {}
    for many, side in ((256, 64), (10_000, 400)):      # 16 px^2 each
        large = ParticleSimulator(1, many, side, side)
        taken = seconds(large.step, lambda many=many, large=large: fill(large, many, rng, 1.5), 25)
        per_particle[many] = taken / many * 1e6

    return {"steps_per_s": per_second[0], "render_steps_per_s": per_second[1],
            "reference_steps_per_s": reference_per_second,
            "speedup": per_second[0] / reference_per_second,
            "cost_per_particle_256_us": per_particle[256],
            "cost_per_particle_10000_us": per_particle[10_000],
            "large_world_ratio": per_particle[10_000] / per_particle[256],
            "worlds": batch, "particles": n, "threads": THREADS}


def straightforward(folder, policy):
    """What a first implementation does: the official image processor, one picture at a time, all logits of the
    vocabulary; then the same heads. -> forward(image, goal), a PolicyOutput with the same weights."""
    import torch
    from transformers import AutoImageProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor = AutoImageProcessor.from_pretrained(folder)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(folder))
    model.model = policy.backbone.vlm
    model.tie_weights()
    backbone, features = policy.backbone, {}
    model.model.visual.blocks[-1].register_forward_hook(lambda module, args, out: features.update(patches=out))

    def forward(image, goal):
        pixels = processor(images=[image], return_tensors="pt")
        before, after = backbone.prompt(goal)
        t, h, w = (int(v) for v in pixels["image_grid_thw"][0])
        merge = model.config.vision_config.spatial_merge_size
        count = t * h * w // merge**2
        token = model.config.image_token_id
        ids = torch.tensor([[*before, *[token] * count, *after]])
        out = model(input_ids=ids, **pixels, mm_token_type_ids=(ids == token).int(),
                    attention_mask=torch.ones_like(ids), output_hidden_states=True)
        hidden = out.hidden_states[-1]
        seen = backbone.seen(hidden[:, len(before):len(before) + count], features["patches"].view(1, t * h * w, -1))
        text = hidden[:, len(before) + count:]
        return policy.decide(text, torch.tensor([text.shape[1] - 1]), seen, backbone.centres(h, w, merge, text.device))

    return forward


def tiny_policy():
    """vlm_tiny with fresh weights, its folder, and 64 pictures with sentences."""
    import tempfile

    import torch

    from config import load
    from simulator.goal_env import make_env
    from train_vlm import build_policy
    config = load(["vlm_tiny"])
    folder = Path(tempfile.mkdtemp())
    env = make_env(config, num_envs=64)
    policy = build_policy(config, env).eval()
    for name, text in policy.backbone.files.items():
        (folder / name).write_text(text)
    obs, _ = env.reset(seed=0)
    with torch.no_grad():
        actions = policy.act(obs)[0]
    return policy, folder, obs, actions


def benchmark_policy(repeats=15):
    """Decisions per second on one core: one picture at a time, 64 at a time, and the straightforward way."""
    import torch

    torch.set_num_threads(1)
    policy, folder, obs, _ = tiny_policy()
    reference = straightforward(folder, policy)
    one = lambda: [policy.sample_action(obs["image"][i:i + 1], obs["goal"][i:i + 1]) for i in range(16)]
    plain = lambda: [reference(obs["image"][i], obs["goal"][i]).distribution.sample() for i in range(16)]
    nothing = lambda: None
    with torch.no_grad():
        rates = {"decisions_per_s": 16 / seconds(one, nothing, repeats),
                 "decisions_per_s_batch_64": 64 / seconds(lambda: policy.act(obs), nothing, repeats),
                 "reference_decisions_per_s": 16 / seconds(plain, nothing, repeats)}
    rates["speedup"] = rates["decisions_per_s"] / rates["reference_decisions_per_s"]
    rates["speedup_batch_64"] = rates["decisions_per_s_batch_64"] / rates["reference_decisions_per_s"]
    return rates | {"threads": 1}


def benchmark_ppo(repeats=7):
    """Training samples per second of a PPO update on one core: minibatches of 64, and one sample at a time the
    straightforward way."""
    import torch

    from models.losses import ppo_loss

    torch.set_num_threads(1)
    policy, folder, obs, actions = tiny_policy()
    reference = straightforward(folder, policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)

    def update(log_probs, entropy, values):
        loss, _ = ppo_loss(log_probs, log_probs.detach(), torch.ones_like(values), values, torch.zeros_like(values),
                           entropy, clip_ratio=0.2, value_coef=0.5, entropy_coef=0.01)
        loss.backward()

    def batched():
        optimizer.zero_grad()
        update(*policy.evaluate_actions(obs, actions))
        optimizer.step()

    def one_by_one():
        optimizer.zero_grad()
        for i in range(16):
            output = reference(obs["image"][i], obs["goal"][i])
            update(output.distribution.log_prob(actions[i:i + 1]), output.distribution.entropy(), output.value)
        optimizer.step()

    nothing = lambda: None
    rates = {"samples_per_s": 64 / seconds(batched, nothing, repeats),
             "reference_samples_per_s": 16 / seconds(one_by_one, nothing, repeats)}
    return rates | {"speedup": rates["samples_per_s"] / rates["reference_samples_per_s"], "threads": 1}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in BENCHMARKS:
        commands.add_parser(name).add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")      # see inference.py
    results = BENCHMARKS[arguments.command]()
    for name, value in results.items():
        print(f"{name:28} {value:>14,.2f}" if isinstance(value, float) else f"{name:28} {value:>14,}")
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        arguments.json.write_text(json.dumps(results | machine, indent=2) + "\n")


BENCHMARKS = {"simulator": benchmark_simulator, "policy": benchmark_policy, "ppo": benchmark_ppo}

if __name__ == "__main__":
    main()
