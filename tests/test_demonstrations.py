"""Demonstrations: the file format, replay, splits, batches, recording; and fresh ones of the particle expert."""
import contextlib
import fcntl
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import config
import dataset
from dataset import DemoDataset, generate_demos, load_demos
from models.training.learner import minibatches
from simulator.formats import DatasetError, recorder
from simulator.formats.recorder import record_demos
from simulator.formats.robomimic import (
    PROPRIO,
    read_demonstrations,
    replay,
    split_demonstrations,
    write_demonstrations,
)
from simulator.registry import EnvError
from simulator.robosuite.env import RobosuiteEnv
from simulator.robosuite.env_config import ACTION_VECTORS
from simulator.robosuite.rendering import choose_backend
from simulator.robosuite.vector_env import RobosuiteVectorEnv

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


@pytest.fixture
def file(tmp_path):
    episodes = [episode(n, steps=3 + n % 3, goal=GOALS[n % 2]) for n in range(12)]
    write_demonstrations(tmp_path / "made.hdf5", episodes, ARGS, {"good": [10, 2]})
    return tmp_path / "made.hdf5"


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


def test_a_reader_of_the_format_reads_it(file):
    demos, args = read_as_described(file)
    assert args == ARGS and args["type"] == 1 and len(demos) == 12
    states, actions, rewards, dones, obs = demos[10]
    assert states.dtype == np.float64 and states[1, 2] == 6 / 7
    np.testing.assert_array_equal(actions, np.tile([0, 0.5, 0, 0, 0, 0, 0], (4, 1)))     # 3 is "right": y by 0.5
    assert rewards[0] == 0 and rewards[-1] == 1 and dones.tolist() == [0, 0, 0, 1]
    assert obs["side_image"].dtype == np.uint8 and obs["side_image"][2, 0, 0].tolist() == [102, 102, 102]


def test_round_trip(file):
    read = list(read_demonstrations(file))
    assert len(read) == 12
    for n, one in enumerate(read):
        assert_same(one, episode(n, steps=3 + n % 3, goal=GOALS[n % 2]))


def test_filter_keys(file):
    assert [one["seed"] for one in read_demonstrations(file, "good")] == [2, 10]
    with h5py.File(file) as raw:
        assert raw["mask/good"][:].tolist() == [b"demo_2", b"demo_10"]
    assert len(DemoDataset(file, "good")) == 5 + 4


def test_split_by_whole_demonstrations(file):
    before = list(read_demonstrations(file))
    keys = split_demonstrations(file, 0.25, seed=3)
    assert len(keys["valid"]) == 3 and len(keys["train"]) == 9
    assert not set(keys["valid"]) & set(keys["train"])
    assert set(keys["valid"]) | set(keys["train"]) == {f"demo_{n}" for n in range(12)}
    with h5py.File(file) as raw:
        for key, names in keys.items():
            assert raw[f"mask/{key}"].asstr()[:].tolist() == names
            assert [int(name[5:]) for name in names] == sorted(int(name[5:]) for name in names)
        assert "good" in raw["mask"]
    assert split_demonstrations(file, 0.25, seed=3) == keys != split_demonstrations(file, 0.25, seed=4)
    for one, other in zip(before, read_demonstrations(file), strict=True):
        assert_same(one, other)
    for fraction in (0, 0.01, 0.99, 1, float("nan")):
        with pytest.raises(DatasetError, match="empty: give one between 0 and 1"):
            split_demonstrations(file, fraction, seed=0)


def test_a_killed_write_leaves_what_was_there(file):
    before = file.read_bytes()

    def killed(kill):
        yield from [episode(0), episode(1)]
        assert file.with_name("made.hdf5.tmp").exists()
        kill()

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demonstrations(file, killed(interrupt), ARGS)
    assert file.read_bytes() == before and os.listdir(file.parent) == ["made.hdf5"]
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            write_demonstrations(file, killed(lambda: os._exit(9)), ARGS)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert file.read_bytes() == before
    write_demonstrations(file, [episode(0)], ARGS)      # what the killed one left does not stand in the way
    assert os.listdir(file.parent) == ["made.hdf5"]


# --- batches ----------------------------------------------------------------------------------------------------
def test_samples_have_the_recorded_goals_and_the_experts_labels(file):
    demos = DemoDataset(file)
    assert len(demos) == sum(3 + n % 3 for n in range(12)) and demos.episodes[1][:2] == (3, 7)
    assert demos.episodes[1][2] == {"goal": "push_cube", "text": "들어 올려", "seed": 1, "success": False}
    obs, actions = demos.sample(np.random.default_rng(0), 300, GOALS, sample_instruction)
    assert obs["image"].shape == (300, 6, 12, 3) and obs["image"].dtype == np.uint8
    assert (obs["image"][:, :, 6:] == 200).all()         # side, above: the order of the recording env's cameras
    assert obs["proprio"].shape == (300, 9) and obs["proprio"].dtype == np.float32
    assert not obs["active_goal"].any() and actions.dtype.is_floating_point is False
    sampled = set()
    for i in range(300):
        number, t = divmod(int(obs["image"][i, 0, 0, 0]), 10)
        goal = GOALS[number % 2]
        assert actions[i] == label(goal, number, t)      # the expert's, not the executed 3
        assert obs["goal"][i] == f"please {goal}"
        assert obs["goal_slots"][i].tolist() == [goal == "lift_cube", goal == "push_cube"]
        assert (obs["object_xy"][i] == GOALS.index(goal)).all() and obs["proprio"][i, 0] == number
        sampled.add((number, t))
    assert len(sampled) == len(demos)
    again, same = demos.sample(np.random.default_rng(0), 300, GOALS, sample_instruction)
    assert (again["image"] == obs["image"]).all() and (same == actions).all()


def test_relabelling_asks_for_another_goal(file):
    obs, actions = DemoDataset(file).sample(np.random.default_rng(0), 1000, GOALS, sample_instruction, relabel=0.5)
    changed = 0
    for i in range(1000):
        number, t = divmod(int(obs["image"][i, 0, 0, 0]), 10)
        goal = obs["goal"][i].removeprefix("please ")
        changed += goal != GOALS[number % 2]
        assert actions[i] == label(goal, number, t) and (obs["object_xy"][i] == GOALS.index(goal)).all()
        assert obs["goal_slots"][i].tolist() == [goal == "lift_cube", goal == "push_cube"]
    assert abs(changed - 250) < 60       # half is drawn anew, and half of that comes out the same; 60 is 4.4 deviations
    obs, _ = DemoDataset(file).sample(np.random.default_rng(0), 50, ("push_cube",), sample_instruction)
    assert set(obs["goal"]) == {"please push_cube"} and (obs["goal_slots"] == 1).all()


def test_both_action_spaces(file, tmp_path):
    _, named = DemoDataset(file).sample(np.random.default_rng(0), 64, GOALS, sample_instruction)
    _, vectors = DemoDataset(file, discrete=False).sample(np.random.default_rng(0), 64, GOALS, sample_instruction)
    assert vectors.numpy().dtype == np.float32 and (vectors.numpy() == ACTION_VECTORS[named]).all()
    write_demonstrations(tmp_path / "vectors.hdf5", [episode(0, discrete=False)], ARGS)
    with pytest.raises(DatasetError, match="no named actions .* use the continuous action space"):
        DemoDataset(tmp_path / "vectors.hdf5")
    assert len(DemoDataset(tmp_path / "vectors.hdf5", discrete=False)) == 5


def test_several_files_and_folders(file, tmp_path):
    write_demonstrations(tmp_path / "a.hdf5", [episode(20)], ARGS)
    both = DemoDataset(tmp_path)
    assert [attributes["seed"] for _, _, attributes in both.episodes] == [20, *range(12)]
    assert len(both) == len(DemoDataset([tmp_path / "a.hdf5", file]))
    assert both.cameras == ("side", "above") and DemoDataset(file, cameras=["above"]).cameras == ("above",)
    write_demonstrations(tmp_path / "b.hdf5", [episode(0, size=8)], ARGS)
    with pytest.raises(DatasetError, match="another shape than the first"):
        DemoDataset(tmp_path)


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


def test_files_of_robomimic(robomimic_file):
    demos = DemoDataset(robomimic_file, "train", discrete=False)
    goals = ("place_can", "place_can_near")
    obs, actions = demos.sample(np.random.default_rng(0), 20, goals, sample_instruction, relabel=1)
    assert set(obs["goal"]) == {"please place_can"} and obs["goal_slots"].tolist() == [[1, 0]] * 20
    given = np.linspace(-1, 1, 28).reshape(4, 7).astype(np.float32)
    assert all(any((row == one).all() for one in given) for row in actions.numpy())
    assert np.isnan(obs["object_xy"]).all() and obs["proprio"].dtype == np.float32
    with pytest.raises(DatasetError, match="no named actions"):
        DemoDataset(robomimic_file)
    with pytest.raises(DatasetError, match="no demonstrations of lift_nut but of place_can"):
        demos.sample(np.random.default_rng(0), 1, ("lift_nut",), sample_instruction)
    with h5py.File(robomimic_file, "r+") as file:
        del file["data/demo_0/obs/agentview_image"]
    with pytest.raises(DatasetError, match="no images: render them with .*replay"):
        DemoDataset(robomimic_file, discrete=False)


# --- errors -----------------------------------------------------------------------------------------------------
def one_line(call, *parts):
    with pytest.raises(DatasetError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_errors_of_files(file, tmp_path):
    one_line(lambda: DemoDataset(tmp_path / "none.hdf5"), "no demonstrations at", "collect_demonstrations.py")
    (tmp_path / "empty").mkdir()
    one_line(lambda: DemoDataset(tmp_path / "empty"), "no .hdf5 file in")
    (tmp_path / "text.hdf5").write_text("hello")
    one_line(lambda: DemoDataset(tmp_path / "text.hdf5"), "not an HDF5 file")
    (tmp_path / "cut.hdf5").write_bytes(file.read_bytes()[:-3000])
    one_line(lambda: DemoDataset(tmp_path / "cut.hdf5"), "damaged")
    h5py.File(tmp_path / "bare.hdf5", "w").close()
    one_line(lambda: DemoDataset(tmp_path / "bare.hdf5"), "a group `data` with demo_0")
    one_line(lambda: DemoDataset(file, "god"), "no filter key 'god'", "choose from good")
    with h5py.File(file, "r+") as raw:
        raw["mask/lost"] = np.array([b"demo_99"])
        raw["data"].attrs["env_args"] = "{"
    one_line(lambda: DemoDataset(file), "env_args is not a JSON object")
    with h5py.File(file, "r+") as raw:
        raw["data"].attrs["env_args"] = "{}"
        del raw["data/demo_0"].attrs["goal"]
    one_line(lambda: DemoDataset(file, "lost"), "must name demonstrations of this file")
    one_line(lambda: DemoDataset(file), "has no goals", "attribute `goal`")
    one_line(lambda: DemoDataset(file, "good", cameras=["bird"]), "no images of 'bird'", "side")


@pytest.mark.parametrize("key, value, part", [
    ("actions", np.full((5, 7), np.nan, np.float32), "not in [-1, 1]"),
    ("actions", np.full((5, 7), 1.5, np.float32), "not in [-1, 1]"),
    ("actions", np.zeros((5, 6), np.float32), "not [T,7]"),
    ("actions", np.zeros((0, 7), np.float32), "no `actions`"),
    ("states", np.zeros(5), "not [T,S]"),
    ("states", None, "no `states`"),
    ("rewards", np.zeros(4, np.float32), "rewards is float32 [4], not [T], T = 5"),
    ("index", np.full(5, 8), "not in [0, 7]"),
    ("obs", {"side_image": np.zeros((5, 6, 6, 3), np.float32)}, "not uint8 [T,H,W,3]"),
    ("obs", {"robot0_eef_quat": np.zeros((5, 3), np.float32)}, "not [T,4]"),
    ("labels", {"push_cube": {"actions": np.zeros((5, 2), np.float32)}}, "labels/push_cube/actions"),
])
def test_errors_of_arrays(tmp_path, key, value, part):
    path = tmp_path / "bad.hdf5"
    one_line(lambda: write_demonstrations(path, [episode(0), episode(1) | {key: value}], ARGS), "episode 1", part)
    assert not os.listdir(tmp_path)
    write_demonstrations(path, [episode(0)], ARGS)
    with h5py.File(path, "r+") as raw:      # and as well where another program wrote it
        del raw[f"data/demo_0/{key}"]
        for name, array in (value.items() if isinstance(value, dict) else [("", value)]):
            if isinstance(array, dict):
                name, array = f"{name}/actions", array["actions"]
            if array is not None:
                raw[f"data/demo_0/{key}/{name}".rstrip("/")] = array
    one_line(lambda: list(read_demonstrations(path)), "demo_0", part)


def test_errors_of_writing(tmp_path):
    one_line(lambda: write_demonstrations(tmp_path / "a.hdf5", [], ARGS), "no episodes to write")
    one_line(lambda: write_demonstrations(tmp_path / "a.hdf5", [episode(0)], ARGS, {"x": [1]}), "'x'", "0 to 0")
    assert not os.listdir(tmp_path)


def test_without_h5py(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    one_line(lambda: DemoDataset(file), "pip install 'flexibleworld[robosuite]'")


# --- files that do not fit ----------------------------------------------------------------------------------------
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


def test_a_file_that_is_open_elsewhere_is_in_use(file):
    with open(file, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        one_line(lambda: DemoDataset(file), f"{file} is in use")
    assert len(DemoDataset(file).episodes) == 12


def test_other_arrays_and_attributes_are_not_checked(robomimic_file, tmp_path):
    """LIBERO has an array as an attribute; MimicGen has arrays of another length."""
    with h5py.File(robomimic_file, "r+") as raw:
        demo = raw["data/demo_0"]
        demo.attrs["init_state"] = np.arange(4.0)
        demo["src_demo_inds"], demo["src_demo_labels"] = np.arange(3), np.array([b"a", b"b"])
        demo["datagen_info/object_poses/can"] = np.zeros((2, 4, 4))
        demo["obs/notes"] = np.zeros(9)
    read, = read_demonstrations(robomimic_file)
    assert "init_state" not in read and read["src_demo_inds"].tolist() == [0, 1, 2]
    assert len(DemoDataset(robomimic_file, discrete=False)) == 4
    write_demonstrations(tmp_path / "copy.hdf5", [read], ARGS)
    again, = read_demonstrations(tmp_path / "copy.hdf5")
    assert again["src_demo_labels"].tolist() == [b"a", b"b"]
    assert again["datagen_info"]["object_poses"]["can"].shape == (2, 4, 4)


def test_the_summary_of_a_file(file, tmp_path, capsys):
    assert dataset.main([str(file)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{file}: 12 episodes, 48 samples" and printed[1] == "goals: lift_cube (6), push_cube (6)"
    assert printed[2].startswith("Lift: cameras=")
    for path in (tmp_path / "none.hdf5", tmp_path / "notes.txt"):
        assert dataset.main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        dataset.main(["--help"])
    assert stop.value.code == 0 and "summary" in capsys.readouterr().out


# --- fresh demonstrations -----------------------------------------------------------------------------------------
class CountingEnv:
    """Two environments. The expert's action is the number of the step; random actions are negative."""
    num_envs = 2

    def __init__(self):
        self.executed = []

    def observe(self):
        return {"step": np.full(2, len(self.executed))}

    def reset(self, seed=None):
        return self.observe(), {}

    def expert_actions(self):
        return np.full((2, 1), len(self.executed), np.float32)

    def relabel_goals(self, rng, fraction):
        return {"goal": ("a", "b")}, self.expert_actions()

    def random_actions(self, rng):
        return -1 - rng.random((2, 1), np.float32)

    def step(self, actions):
        self.executed.append(actions)
        return self.observe(), None, None, None, {}


@pytest.mark.parametrize("noise, low, high", [(0.0, 1, 1), (0.5, 0.3, 0.7), (1.0, 0, 0)])
def test_action_noise_changes_what_is_executed_and_never_the_labels(noise, low, high):
    env = CountingEnv()
    obs, labels = generate_demos(env, 100, seed=0, action_noise=noise, relabel=0.0)
    expert = np.repeat(np.arange(100), 2)
    assert (labels[:, 0].numpy() == expert).all() and (obs["step"] == expert).all()
    assert low <= (np.concatenate(env.executed)[:, 0] == expert).mean() <= high


def test_minibatches_are_shuffled_anew_in_each_pass_and_hold_every_index():
    generator = torch.Generator().manual_seed(0)
    passes = [torch.cat(minibatches(100, 25, generator)).tolist() for _ in range(3)]
    assert all(sorted(order) == list(range(100)) for order in passes)
    assert len(set(map(tuple, [*passes, range(100)]))) == 4
    assert [len(batch) for batch in minibatches(60, 25, generator)] == [25, 25]      # 10 is under half of 25
    assert [len(batch) for batch in minibatches(65, 25, generator)] == [25, 25, 15]
    assert [len(batch) for batch in minibatches(3, 25, generator)] == [3]


# --- with the simulator -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def env():
    """Two environments, in processes of their own: this process never renders."""
    pytest.importorskip("robosuite")
    try:
        choose_backend()
    except EnvError as error:
        pytest.skip(str(error))
    env = RobosuiteVectorEnv(2, task="Lift", goals=GOALS, action_repeat=5, max_steps=7, resolution=48,
                             cameras=("robot0_eye_in_hand", "agentview"))
    yield env
    env.close()


@pytest.fixture(scope="module")
def collected(env):
    return list(record_demos(env, 4, seed=5, action_noise=0.4))


@pytest.fixture(scope="module")
def recorded(env, collected, tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "lift.hdf5"
    write_demonstrations(path, collected, env.call("env_args")[0])
    return path


def test_recorded_episodes(collected):
    assert len(collected) == 4 and len({one["seed"] for one in collected}) == 2
    assert sorted(one["episode"] for one in collected) == [0, 0, 1, 1]
    own = []
    for one in collected:
        steps = len(one["actions"])
        assert one["dones"].tolist() == [False] * (steps - 1) + [True]
        assert one["success"] or steps == 7             # failed ones are kept and truncated
        assert one["states"].shape == (steps, 32) and one["obs"]["agentview_image"].shape == (steps, 48, 48, 3)
        assert one["labels"].keys() == set(GOALS) and one["text"] and one["goal"] in GOALS
        assert (one["actions"] == ACTION_VECTORS[one["index"]]).all()
        assert len(np.unique(one["states"], axis=0)) == steps
        own.append(one["index"] == one["labels"][one["goal"]]["actions"])
    assert 0.3 < np.concatenate(own).mean() < 0.95       # expected: 0.65 of 28 steps are the expert's


def test_recording_is_a_function_of_the_seed(env, collected):
    fewer = list(record_demos(env, 2, seed=5, action_noise=0.4))
    firsts = {one["seed"]: one for one in collected if one["episode"] == 0}
    for one in fewer:
        assert_same(one, firsts[one["seed"]])
    other = next(record_demos(env, 1, seed=6, action_noise=0.4))
    assert not np.array_equal(other["states"][0], fewer[0]["states"][0])


def test_a_policy_may_act_and_the_expert_labels(env):
    calls = []
    act = lambda obs: np.full(len(obs["image"]), 4)
    one, = record_demos(env, 1, seed=0, action_noise=1.0, act=act, policy_fraction=1.0,
                        progress=lambda *counts: calls.append(counts))
    assert (one["index"] == 4).all() and not (one["labels"]["lift_cube"]["actions"] == 4).all()
    assert calls == [(1, int(one["success"]))]


def test_recording_ends_after_too_many_failures(env, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_FAILURES", 2)
    act = lambda obs: np.full(len(obs["image"]), 4)
    episodes = record_demos(env, 1, 0, 0.0, act=act, policy_fraction=1.0, only_success=True)
    one_line(lambda: list(episodes), "failed", "more steps")


def test_states_replay_to_the_same_observations(env, recorded):
    for number, one in enumerate(read_demonstrations(recorded)):
        if number % 2:
            continue
        for t, state in enumerate(one["states"]):
            env.call("set_state", state, t == 0)
            for observation_dict in env.call("observation_dict"):
                assert observation_dict.keys() == one["obs"].keys()
                for key, value in observation_dict.items():
                    if key.endswith("_image"):
                        np.testing.assert_array_equal(value, one["obs"][key][t])
                    else:
                        np.testing.assert_allclose(value, one["obs"][key][t], atol=1e-6)
        assert not one["success"] or env.call("reached", one["goal"])[0] is False     # states are from before the end


def test_mujoco_alone_reproduces_the_end_effector(recorded):
    """With the XML and the states of the file, without our code."""
    import mujoco
    demos, args = read_as_described(recorded)
    with h5py.File(recorded) as file:
        model = mujoco.MjModel.from_xml_string(file["data/demo_0"].attrs["model_file"])
    data, (states, _, _, _, obs) = mujoco.MjData(model), demos[0]
    assert args["env_name"] == "Lift" and args["flexibleworld"]["action_repeat"] == 5
    for state, place in zip(states, obs["robot0_eef_pos"], strict=True):
        data.qpos[:] = state[1:1 + model.nq]
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(data.site("gripper0_right_grip_site").xpos, place, atol=1e-5)


def test_samples_look_like_those_of_the_env(env, recorded):
    demos = DemoDataset(recorded)
    obs, actions = demos.sample(np.random.default_rng(0), 16, GOALS, env.sample_instruction, relabel=0.5)
    assert obs["image"].shape[1:] == env.single_observation_space["image"].shape
    relabelled, _ = env.relabel_goals(np.random.default_rng(0), 0.5)
    assert relabelled.keys() | {"image", "proprio"} == obs.keys()
    for key in ("goal_slots", "active_goal", "object_xy"):
        assert obs[key].dtype == relabelled[key].dtype, key
        assert obs[key].shape[1:] == relabelled[key].shape[1:], key
    assert env.single_action_space.contains(actions[0].item())



def test_replay(env, recorded):
    one = next(read_demonstrations(recorded))
    single = RobosuiteEnv(task="Lift", goals=GOALS, render_images=False)
    again = replay(single, one)
    for key in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"):
        np.testing.assert_allclose(again["obs"][key], one["obs"][key], atol=1e-6)
    with pytest.raises(EnvError, match="32 numbers, not 5"):
        single.set_state(np.zeros(5))
    single.close()


def stopping(episodes, error):
    yield from episodes
    raise error


def test_the_script(env, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    script = importlib.import_module("collect_demonstrations")
    path = tmp_path / "out" / "lift.hdf5"
    arguments = ["robosuite_lift", "env.max_steps=4", "--episodes", "2", "--output", str(path), "--val-fraction", "0.5"]
    assert script.main([*arguments, "--workers", "2", "--seed", "1"]) == 0
    printed = capsys.readouterr()
    assert " of 2 episodes successful" in printed.out and "episodes/s" in printed.out and "2/2" in printed.err
    assert len(DemoDataset(path, "valid").episodes) == len(DemoDataset(path, "train").episodes) == 1
    first, some = path.read_bytes(), list(read_demonstrations(path))
    for stop, code, message in ((KeyboardInterrupt(), 130, "stopped"), (EnvError("an env has ended"), 2, "ended; ")):
        monkeypatch.setattr(recorder, "record_demos", lambda *_, stop=stop, **__: stopping(some[:1], stop))
        assert script.main([*arguments[:-2], "--workers", "1"]) == code
        assert message in capsys.readouterr().err and len(DemoDataset(path).episodes) == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    kept = path.read_bytes()
    assert script.main([*arguments[:-2], "--workers", "1"]) == 2 and path.read_bytes() == kept != first
    assert "No space left" in capsys.readouterr().err and [path] == list(path.parent.iterdir())
    assert script.main(["robosuite_lift", "--output", str(path), "--episodes", "3", "--val-fraction", "0.1"]) == 2
    assert "leaves none to hold out" in capsys.readouterr().err
    assert script.main(["vlm_tinny", "--output", str(path)]) == 2
    assert script.main(["vlm_tiny", "--output", str(path)]) == 2           # its expert needs no file
    assert script.main(["robosuite_lift", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 3
