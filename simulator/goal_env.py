"""The small API of the particles, for notebooks: see simulator.particles.env.GoalConditionedEnv."""
from simulator.particles.env import GoalConditionedEnv

__all__ = ["GoalConditionedEnv"]
