"""Fixtures of files with demonstrations, a pytest plugin."""
import json

import numpy as np
import pytest
from demonstrations_helpers import ARGS, GOALS, episode, h5py

from simulator.formats.robomimic import PROPRIO, write_demonstrations


@pytest.fixture
def file(tmp_path):
    episodes = [episode(n, steps=3 + n % 3, goal=GOALS[n % 2]) for n in range(12)]
    write_demonstrations(tmp_path / "made.hdf5", episodes, ARGS, {"good": [10, 2]})
    return tmp_path / "made.hdf5"


@pytest.fixture
def robomimic_file(tmp_path):
    """A file as robomimic writes it: float64, next_obs, none of our keys."""
    with h5py.File(tmp_path / "image.hdf5", "w") as file:
        data = file.create_group("data")
        args = {"env_name": "PickPlaceCan", "type": 1, "env_kwargs": {}}
        data.attrs.update({"total": 4, "env_args": json.dumps(args)})
        demo = data.create_group("demo_0")
        demo.attrs.update({"num_samples": 4, "model_file": "<mujoco/>"})
        demo["states"], demo["actions"] = np.zeros((4, 71)), np.linspace(-1, 1, 28).reshape(4, 7)
        demo["rewards"], demo["dones"] = np.zeros(4), np.array([0, 0, 0, 1])
        for group in ("obs", "next_obs"):
            demo[f"{group}/agentview_image"] = np.zeros((4, 84, 84, 3), np.uint8)
            for key, size in (PROPRIO | {"object": 14}).items():
                demo[f"{group}/{key}"] = np.zeros((4, size))
        file["mask/train"] = np.array([b"demo_0"])
    return tmp_path / "image.hdf5"
