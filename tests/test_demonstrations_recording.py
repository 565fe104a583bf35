"""Demonstrations recorded with the simulator: labels, seeds, replay, and the script."""
import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from demonstrations_helpers import GOALS, assert_same, h5py, one_line, read_as_described

from dataset import DemoDataset
from simulator.formats import recorder
from simulator.formats.recorder import record_demos
from simulator.formats.robomimic import read_demonstrations, replay, write_demonstrations
from simulator.registry import EnvError
from simulator.robosuite.env import RobosuiteEnv
from simulator.robosuite.env_config import ACTION_VECTORS
from simulator.robosuite.rendering import choose_backend
from simulator.robosuite.vector_env import RobosuiteVectorEnv


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
