"""Tasks, instructions and cameras, and small helpers, for the tests of the robosuite arm."""
import numpy as np

from simulator.robosuite import env as R

TASKS = {"Lift": ("lift_cube", "push_cube"), "PickPlaceCan": ("place_can", "place_can_near"),
         "NutAssemblySquare": ("place_nut", "lift_nut")}
INSTRUCTIONS = {goal: [f"please {goal}", f"{goal}, please"] for goals in TASKS.values() for goal in goals}
HAND, TABLE = "robot0_eye_in_hand", "agentview"
METRICS = [f"stage_{name}" for name in R.STAGES]


def put(env, place):
    """Put the object at a place, at rest."""
    joint = env.object_model().joints[0]
    env.sim.data.set_joint_qpos(joint, [*place, 1, 0, 0, 0])
    env.sim.data.set_joint_qvel(joint, np.zeros(6))
    env.sim.forward()


def same(a, b):
    """Return whether two observations are equal."""
    return all(np.array_equal(a[key], b[key]) for key in a)
