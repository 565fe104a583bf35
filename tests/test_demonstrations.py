"""Demonstrations on disk: the format, replay, splits, what a batch is drawn from, and how they are collected."""
import contextlib
import importlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium import spaces

import dataset
from dataset import (
    PROPRIO,
    DatasetError,
    DemoDataset,
    read_demonstrations,
    record_demos,
    replay,
    split_demonstrations,
    write_demonstrations,
)
from simulator.registry import EnvError
from simulator.robosuite.env import ACTION_VECTORS, RobosuiteEnv, RobosuiteVectorEnv
from simulator.robosuite.rendering import choose_backend

h5py = pytest.importorskip("h5py")
GOALS = ("lift_cube", "push_cube")
ARGS = {"env_name": "Lift", "env_version": "1.5.2", "type": 1, "env_kwargs": {"robots": "Panda"},
        "flexibleworld": {"cameras": ["side", "above"]}}


def label(goal, number, t):
    """The named action that the made-up expert knows: of every goal, episode and step another, as far as 8 go."""
    return (4 * GOALS.index(goal) + number + t) % 8


def episode(number, steps=5, goal="lift_cube", discrete=True, size=6):
    """An episode without a simulator; its pictures say which step of which episode they are of."""
    index, t = np.full(steps, 3), np.arange(steps)
    images = np.zeros((2, steps, size, size, 3), np.uint8)
    images[...], images[1] = 10 * number + t[:, None, None, None], 200
    labels = {goal: {"actions": np.array([label(goal, number, t) for t in range(steps)]),
                     "object_xy": np.full((steps, 2, 2), GOALS.index(goal), np.float32)} for goal in GOALS}
    if not discrete:
        labels = {goal: {"actions": ACTION_VECTORS[one["actions"]], "object_xy": one["object_xy"]} for goal, one in labels.items()}
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
    """A reader that knows the format's description only -> [(states, actions, rewards, dones, obs)], env_args."""
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
    for share in (0, 0.01, 0.99, 1, float("nan")):
        with pytest.raises(DatasetError, match="empty: give one between 0 and 1"):
            split_demonstrations(file, share, seed=0)


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
def test_a_batch_asks_for_what_was_asked(file):
    demos = DemoDataset(file)
    assert len(demos) == sum(3 + n % 3 for n in range(12)) and demos.episodes[1][:2] == (3, 7)
    assert demos.episodes[1][2] == {"goal": "push_cube", "text": "들어 올려", "seed": 1, "success": False}
    obs, actions = demos.sample(np.random.default_rng(0), 300, GOALS, sample_instruction)
    assert obs["image"].shape == (300, 6, 12, 3) and obs["image"].dtype == np.uint8
    assert (obs["image"][:, :, 6:] == 200).all()         # side, above: the order of the world's cameras
    assert obs["proprio"].shape == (300, 9) and obs["proprio"].dtype == np.float32
    assert not obs["active_goal"].any() and actions.dtype.is_floating_point is False
    seen = set()
    for i in range(300):
        number, t = divmod(int(obs["image"][i, 0, 0, 0]), 10)
        goal = GOALS[number % 2]
        assert actions[i] == label(goal, number, t)      # the expert's, not the 3 that was taken
        assert obs["goal"][i] == f"please {goal}"
        assert obs["goal_slots"][i].tolist() == [goal == "lift_cube", goal == "push_cube"]
        assert (obs["object_xy"][i] == GOALS.index(goal)).all() and obs["proprio"][i, 0] == number
        seen.add((number, t))
    assert len(seen) == len(demos)
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
def other_language_only(tmp_path):
    """As robomimic writes them: float64, next_obs, none of our extras."""
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


def test_robomimics_own_files(other_language_only):
    demos = DemoDataset(other_language_only, "train", discrete=False)
    obs, actions = demos.sample(np.random.default_rng(0), 20, ("place_can", "place_can_near"), sample_instruction, relabel=1)
    assert set(obs["goal"]) == {"please place_can"} and obs["goal_slots"].tolist() == [[1, 0]] * 20
    given = np.linspace(-1, 1, 28).reshape(4, 7).astype(np.float32)
    assert all(any((row == one).all() for one in given) for row in actions.numpy())
    assert np.isnan(obs["object_xy"]).all() and obs["proprio"].dtype == np.float32
    with pytest.raises(DatasetError, match="no named actions"):
        DemoDataset(other_language_only)
    with pytest.raises(DatasetError, match="no demonstrations of lift_nut but of place_can"):
        demos.sample(np.random.default_rng(0), 1, ("lift_nut",), sample_instruction)
    with h5py.File(other_language_only, "r+") as file:
        del file["data/demo_0/obs/agentview_image"]
    with pytest.raises(DatasetError, match="no pictures: render them with dataset.replay"):
        DemoDataset(other_language_only, discrete=False)


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
    one_line(lambda: DemoDataset(file), "env_args is not the JSON of a dict")
    with h5py.File(file, "r+") as raw:
        raw["data"].attrs["env_args"] = "{}"
        del raw["data/demo_0"].attrs["goal"]
    one_line(lambda: DemoDataset(file, "lost"), "must name demonstrations of this file")
    one_line(lambda: DemoDataset(file), "does not say what it shows", "attribute `goal`")
    one_line(lambda: DemoDataset(file, "good", cameras=["bird"]), "no pictures of 'bird'", "side")


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


# --- with the simulator -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def env():
    """Two arms, in processes of their own: this process never renders."""
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


def test_what_is_collected(collected):
    assert len(collected) == 4 and len({one["seed"] for one in collected}) == 2
    assert sorted(one["episode"] for one in collected) == [0, 0, 1, 1]
    own = []
    for one in collected:
        steps = len(one["actions"])
        assert one["dones"].tolist() == [False] * (steps - 1) + [True]
        assert one["success"] or steps == 7             # failed ones are kept, and were cut off
        assert one["states"].shape == (steps, 32) and one["obs"]["agentview_image"].shape == (steps, 48, 48, 3)
        assert one["labels"].keys() == set(GOALS) and one["text"] and one["goal"] in GOALS
        assert (one["actions"] == ACTION_VECTORS[one["index"]]).all()
        assert len(np.unique(one["states"], axis=0)) == steps
        own.append(one["index"] == one["labels"][one["goal"]]["actions"])
    assert 0.3 < np.concatenate(own).mean() < 0.95       # expected: 0.65 of 28 steps are the expert's


def test_what_is_collected_is_a_function_of_the_seed(env, collected):
    fewer = list(record_demos(env, 2, seed=5, action_noise=0.4))
    firsts = {one["seed"]: one for one in collected if one["episode"] == 0}
    for one in fewer:
        assert_same(one, firsts[one["seed"]])
    other = next(record_demos(env, 1, seed=6, action_noise=0.4))
    assert not np.array_equal(other["states"][0], fewer[0]["states"][0])


def test_a_policy_may_act_and_the_expert_labels(env):
    heard = []
    act = lambda obs: np.full(len(obs["image"]), 4)
    one, = record_demos(env, 1, seed=0, action_noise=1.0, act=act, policy_fraction=1.0, progress=lambda *mean_episode_stats: heard.append(mean_episode_stats))
    assert (one["index"] == 4).all() and not (one["labels"]["lift_cube"]["actions"] == 4).all()
    assert heard == [(1, int(one["success"]))]


def test_hopeless_collecting_ends(env, monkeypatch):
    monkeypatch.setattr("dataset.MAX_FAILURES", 2)
    act = lambda obs: np.full(len(obs["image"]), 4)
    one_line(lambda: list(record_demos(env, 1, 0, 0.0, act=act, policy_fraction=1.0, only_success=True)), "failed", "more steps")


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


def test_mujoco_alone_finds_the_hand_where_it_was(recorded):
    """The file's XML and states, by nothing of ours."""
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


def test_the_arms_batches_are_the_files(env, recorded):
    demos = DemoDataset(recorded)
    obs, actions = demos.sample(np.random.default_rng(0), 16, GOALS, env.sample_instruction, relabel=0.5)
    assert obs["image"].shape[1:] == env.single_observation_space["image"].shape
    asked, _ = env.relabel_goals(np.random.default_rng(0), 0.5)
    assert asked.keys() | {"image", "proprio"} == obs.keys()
    for key in ("goal_slots", "active_goal", "object_xy"):
        assert obs[key].dtype == asked[key].dtype and obs[key].shape[1:] == asked[key].shape[1:], key
    assert env.single_action_space.contains(actions[0].item())


def test_a_world_that_does_not_fit_is_refused_before_training(env, recorded, monkeypatch):
    demos, space = DemoDataset(recorded), env.single_observation_space
    demos.validate(env)
    monkeypatch.setattr(env, "goals", ("place_can",))
    one_line(lambda: demos.validate(env), "no demonstrations of place_can but of lift_cube, push_cube")
    monkeypatch.undo()
    monkeypatch.setattr(env, "settings", replace(env.settings, action_repeat=7))
    one_line(lambda: demos.validate(env), "recorded with robosuite.action_repeat=5, and here it is 7")
    monkeypatch.undo()
    monkeypatch.setattr(dataset, "env_args_of", lambda path: {"env_name": "Lift"})   # as robomimic writes
    others = DemoDataset(recorded, cameras=env.settings.cameras)
    one_line(lambda: others.validate(env), "action_repeat=1, and here it is 5")
    monkeypatch.undo()
    monkeypatch.setattr(env, "single_observation_space", spaces.Dict(
        dict(space.spaces) | {"image": spaces.Box(0, 255, (8, 8, 3), np.uint8)}))
    one_line(lambda: demos.validate(env), "of this world [8, 8, 3]")
    monkeypatch.setattr(env, "single_observation_space", spaces.Dict(dict(space.spaces) | {"proprio": space["image"]}))
    monkeypatch.setitem(demos._data[0], "proprio", None)
    one_line(lambda: demos.validate(env), "give robosuite.proprioception=False")


def test_replay(env, recorded):
    one = next(read_demonstrations(recorded))
    world = RobosuiteEnv(task="Lift", goals=GOALS, pictures=False)
    again = replay(world, one)
    for key in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"):
        np.testing.assert_allclose(again["obs"][key], one["obs"][key], atol=1e-6)
    with pytest.raises(EnvError, match="a state of Lift with Panda has 32 numbers, not 5"):
        world.set_state(np.zeros(5))
    world.close()


def stopping(episodes, error):
    yield from episodes
    raise error


def test_the_script(env, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    script = importlib.import_module("collect_demonstrations")
    path = tmp_path / "out" / "lift.hdf5"
    words = ["robosuite_lift", "env.max_steps=4", "--episodes", "2", "--output", str(path), "--val-fraction", "0.5"]
    assert script.main([*words, "--workers", "2", "--seed", "1"]) == 0
    printed = capsys.readouterr()
    assert " of 2 episodes successful" in printed.out and "episodes/s" in printed.out and "2/2" in printed.err
    assert len(DemoDataset(path, "valid").episodes) == len(DemoDataset(path, "train").episodes) == 1
    seen, some = path.read_bytes(), list(read_demonstrations(path))
    for stop, code, goal_slots in ((KeyboardInterrupt(), 130, "stopped"), (EnvError("an arm has ended"), 2, "ended; ")):
        monkeypatch.setattr(dataset, "record_demos", lambda *_, stop=stop, **__: stopping(some[:1], stop))
        assert script.main([*words[:-2], "--workers", "1"]) == code
        assert goal_slots in capsys.readouterr().err and len(DemoDataset(path).episodes) == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    kept = path.read_bytes()
    assert script.main([*words[:-2], "--workers", "1"]) == 2 and path.read_bytes() == kept != seen
    assert "No space left" in capsys.readouterr().err and [path] == list(path.parent.iterdir())
    assert script.main(["robosuite_lift", "--output", str(path), "--episodes", "3", "--val-fraction", "0.1"]) == 2
    assert "leaves none to hold back" in capsys.readouterr().err
    assert script.main(["vlm_tinny", "--output", str(path)]) == 2
    assert script.main(["vlm_tiny", "--output", str(path)]) == 2           # its world needs no file
    assert script.main(["robosuite_lift", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 3
