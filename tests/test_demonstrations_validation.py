"""Files with demonstrations that do not fit the environment are refused."""
import pytest
from demonstrations_helpers import ARGS, episode, h5py, one_line

import config
from dataset import DemoDataset, load_demos
from simulator.formats.robomimic import write_demonstrations

pytest_plugins = ["demonstrations_fixtures"]


def lift_config(*overrides):
    cameras = "robosuite.cameras=['sideview','birdview']"
    return config.load(["robosuite_lift", "robosuite.resolution=16", cameras, *overrides])


OWN = {"control_freq": 20, "action_repeat": 4, "gripper_repeat": 10}


def write_with(path, settings=OWN, **kwargs):
    args = ARGS | {"env_kwargs": {"control_freq": 20} | kwargs, "flexibleworld": settings}
    episodes = [episode(0, size=16), episode(1, goal="push_cube", size=16)]
    for one in episodes:
        one["obs"]["sideview_image"] = one["obs"].pop("side_image")
        one["obs"]["birdview_image"] = one["obs"].pop("above_image")
    write_demonstrations(path, episodes, args)
    return path


def test_load_demos_checks_a_file_without_an_env(tmp_path, monkeypatch):
    monkeypatch.setattr("simulator.registry.make_env", lambda *_: pytest.fail("an env was started"))
    load = lambda path, *overrides: load_demos(lift_config(f"bc.data:={path}", *overrides))
    path = write_with(tmp_path / "lift.hdf5")
    assert len(load(path)) == 10
    one_line(lambda: load(tmp_path / "none.hdf5"), "no demonstrations at")
    one_line(lambda: load(tmp_path / "notes.txt"), "not a file of demonstrations", ".hdf5")
    (tmp_path / "cut.hdf5").write_bytes(path.read_bytes()[:-3000])
    one_line(lambda: load(tmp_path / "cut.hdf5"), "damaged")
    one_line(lambda: load(path, "robosuite.action_repeat=7"), "action_repeat=4, but this environment has 7")
    one_line(lambda: load(path, "robosuite.gripper_repeat=7"), "set robosuite.gripper_repeat=10")
    one_line(lambda: load(path, "robosuite.resolution=18"), "[16, 32, 3]", "[18, 36, 3]")
    can = ("robosuite.task:=PickPlaceCan", "env.goals=['place_can']")
    one_line(lambda: load(path, *can), "no demonstrations of place_can but of lift_cube, push_cube")
    other = write_with(tmp_path / "row_per_step.hdf5", settings={"action_repeat": 1})
    one_line(lambda: load(other), "action_repeat=1, but this environment has 4")
    with h5py.File(path, "r+") as raw:
        for demo in raw["data"].values():
            del demo["obs/robot0_eef_pos"]
    one_line(lambda: load(path), "set robosuite.proprioception=False")
    assert len(load(path, "robosuite.proprioception=False")) == 10


OSC = {"type": "OSC_POSE", "control_delta": True}
PART = {"type": "OSC_POSE", "input_type": "delta"}


@pytest.mark.parametrize("controllers", [OSC, [OSC], {"type": "BASIC", "body_parts": {"right": PART}}, None, "x",
                                         {"type": "BASIC", "body_parts": {"arms": {"right": PART}}}])
def test_relative_osc_pose_is_accepted_in_every_spelling(tmp_path, controllers):
    DemoDataset(write_with(tmp_path / "a.hdf5", controller_configs=controllers)).validate_for(lift_config())


@pytest.mark.parametrize("kwargs, part", [
    ({"control_freq": 10}, "control_freq=10"),
    ({"controller_configs": OSC | {"control_delta": False}}, "controller_configs.control_delta=False"),
    ({"controller_configs": [OSC | {"control_delta": False}]}, "controller_configs.control_delta=False"),
    ({"controller_configs": OSC | {"input_type": "absolute"}}, "controller_configs.input_type='absolute'"),
    ({"controller_configs": {"type": "JOINT_VELOCITY"}}, "controller_configs.type='JOINT_VELOCITY'"),
    ({"controller_configs": {"type": "BASIC", "body_parts": {"right": PART | {"input_type": "absolute"}}}},
     "body_parts.right.input_type='absolute'"),
    ({"controller_configs": {"type": "BASIC", "body_parts": {"arms": {"right": {"type": "JOINT_VELOCITY"}}}}},
     "body_parts.right.type='JOINT_VELOCITY'")])
def test_other_controllers_are_refused(tmp_path, kwargs, part):
    path = write_with(tmp_path / "a.hdf5", settings={"action_repeat": 4}, **kwargs)
    one_line(lambda: DemoDataset(path).validate_for(lift_config()), str(path), part)
