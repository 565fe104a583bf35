"""Made-up episodes, and an independent reader of the file format, for the tests of demonstrations."""
import json

import numpy as np
import pytest

from simulator.formats import DatasetError
from simulator.robosuite.env_config import ACTION_VECTORS

h5py = pytest.importorskip("h5py")
GOALS = ("lift_cube", "push_cube")
ARGS = {"env_name": "Lift", "env_version": "1.5.2", "type": 1, "env_kwargs": {"robots": "Panda"},
        "flexibleworld": {"cameras": ["side", "above"]}}


def label(goal, number, t):
    """The made-up expert's named action; it differs between goals, episodes and steps (modulo 8)."""
    return (4 * GOALS.index(goal) + number + t) % 8


def episode(number, steps=5, goal="lift_cube", discrete=True, size=6):
    """An episode without a simulator. Its images encode the episode and the step."""
    index, t = np.full(steps, 3), np.arange(steps)
    images = np.zeros((2, steps, size, size, 3), np.uint8)
    images[...], images[1] = 10 * number + t[:, None, None, None], 200
    labels = {goal: {"actions": np.array([label(goal, number, t) for t in range(steps)]),
                     "object_xy": np.full((steps, 2, 2), GOALS.index(goal), np.float32)} for goal in GOALS}
    if not discrete:
        labels = {goal: {"actions": ACTION_VECTORS[one["actions"]], "object_xy": one["object_xy"]}
                  for goal, one in labels.items()}
    return ({"index": index} if discrete else {}) | {
        "goal": goal, "text": "들어 올려", "seed": number, "success": number % 2 == 0, "model_file": "<mujoco/>",
        "states": np.arange(steps * 4).reshape(steps, 4) / 7, "actions": ACTION_VECTORS[index],
        "rewards": np.linspace(0, 1, steps, dtype=np.float32), "dones": t == steps - 1,
        "obs": {"side_image": images[0], "above_image": images[1],
                "robot0_eef_pos": np.full((steps, 3), number, np.float32),
                "robot0_eef_quat": np.full((steps, 4), 0.5, np.float32),
                "robot0_gripper_qpos": np.full((steps, 2), 0.04, np.float32)}, "labels": labels}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[key])
        elif isinstance(value, np.ndarray):
            assert value.dtype == other[key].dtype, key
            np.testing.assert_array_equal(value, other[key], key)
        else:
            assert value == other[key] and type(value) is type(other[key]), key


def sample_instruction(goal, rng):
    return f"please {goal}"


# --- the format -------------------------------------------------------------------------------------------------
def read_as_described(path):
    """Read a file by the format's description only: [(states, actions, rewards, dones, obs)], env_args."""
    with h5py.File(path) as file:
        data, demos = file["data"], []
        for name in sorted(data, key=lambda name: int(name.removeprefix("demo_"))):
            demo = data[name]
            arrays = [demo[key][:] for key in ("states", "actions", "rewards", "dones")]
            obs = {key: value[:] for key, value in demo["obs"].items()}
            assert {len(array) for array in [*arrays, *obs.values()]} == {demo.attrs["num_samples"]}
            assert demo.attrs["model_file"].startswith("<mujoco")
            demos.append((*arrays, obs))
        assert data.attrs["total"] == sum(len(demo[0]) for demo in demos)
        return demos, json.loads(data.attrs["env_args"])


# --- errors -----------------------------------------------------------------------------------------------------
def one_line(call, *parts):
    with pytest.raises(DatasetError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message
