"""How fast it is, as ratios to a named reference in the same run.

    python scripts/benchmark.py simulator [--json out.json]

simulator: steps per second of a batch of particle worlds with everything on, without and with pictures,
against a plain Python loop over particles (tests/reference_simulator.py); what a particle costs in a large world.
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
    import numba
    from reference_simulator import ReferenceWorld

    from simulator.core import ParticleSimulator

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
            "worlds": batch, "particles": n, "threads": numba.get_num_threads()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in BENCHMARKS:
        commands.add_parser(name).add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args(argv)
    results = BENCHMARKS[arguments.command]()
    for name, value in results.items():
        print(f"{name:28} {value:>14,.2f}" if isinstance(value, float) else f"{name:28} {value:>14,}")
    if arguments.json:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        arguments.json.write_text(json.dumps(results | machine, indent=2) + "\n")


BENCHMARKS = {"simulator": benchmark_simulator}

if __name__ == "__main__":
    main()
