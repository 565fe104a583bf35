"""The particle world's small API, where notebooks look for it: see simulator.particles.env."""
from simulator.particles.env import GoalConditionedEnv

__all__ = ["GoalConditionedEnv"]
