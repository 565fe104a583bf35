"""Goals and a drifting task for the tests of goals."""
import numpy as np

from simulator.particles import goals as G
from simulator.particles.goals import StateSummary
from simulator.particles.task import ParticleTask

NO_NOISE = {"em_force_strength": 0, "thermal_radiation_rate": 0, "heat_dissipation": 0, "vibration_scale": 0}
GOALS = [plan.goals[0] for plan in G.GOALS]
ids = [str(goal) for goal in GOALS]


def drifting(goal, velocity):
    """Return a task of one environment whose eight cold, neutral particles move with `velocity` from the middle."""
    task = ParticleTask(1, goals=[goal], physics=NO_NOISE)
    task.start_episode(np.array([0]))
    x, y = np.meshgrid([26, 30, 34, 38], [29, 35])
    task.sim.position[0, :8] = np.stack([x, y], -1).reshape(-1, 2)
    task.sim.velocity[0, :8] = velocity
    task.sim.radius[0, :8], task.sim.charge[0, :8], task.sim.temperature[0, :8] = 1.5, 0, 0
    task.current, task.initial = (StateSummary.from_sim(task.sim, task.num_scored) for _ in range(2))
    return task
