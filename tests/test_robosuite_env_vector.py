"""The robosuite vector env: autoreset, state, labels, and worker processes.

It runs before the tests that render here: a process must not fork after it has rendered.
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from robosuite_env_helpers import INSTRUCTIONS, METRICS, TASKS, same

from simulator.registry import EnvError
from simulator.robosuite.vector_env import RobosuiteVectorEnv

pytest_plugins = ["robosuite_env_fixtures"]
pytestmark = pytest.mark.usefixtures("rendering")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pair():
    env = RobosuiteVectorEnv(2, instructions=INSTRUCTIONS, task="Lift", goals=TASKS["Lift"], resolution=64, max_steps=3,
                             action_repeat=4, proprioception=True)
    yield env
    env.close()


def of(obs, index):
    """Return the observation of one env of a batch."""
    return {key: values[index] for key, values in obs.items()}


def test_vector_observations_endings_and_autoreset(pair):
    obs, infos = pair.reset(seed=[7, 8], options={"goals": ["push_cube", None], "instructions": [None, "do it"]})
    assert pair.observation_space.contains(obs) and obs["image"].shape == (2, 64, 64, 3)
    assert obs["goal"][0] in INSTRUCTIONS["push_cube"] and obs["goal"][1] == "do it" and infos["goal"][0] == "push_cube"
    for k in range(3):
        before = obs
        obs, rewards, terminated, truncated, infos = pair.step(np.array([4, 0]))
        assert rewards.dtype == np.float32 and not terminated.any() and truncated.all() == (k == 2)
        assert infos["success"].tolist() == [False, False] and ("episode_metrics" in infos) == (k == 2)
    metrics = infos["episode_metrics"]
    assert set(metrics) >= {"success", "goal", *METRICS} and metrics["goal"][0] == "push_cube"
    assert "episode" not in infos
    assert metrics["stage_reach"].tolist() == [0, 0] and np.isnan(metrics["stage_hover"]).all()
    for e in range(2):
        final = infos["final_obs"][e]
        assert pair.single_observation_space.contains(final) and final["goal"] == before["goal"][e]
        assert not same(final, of(obs, e))
        fresh = infos["final_obs"][e]["proprio"][:3] - obs["proprio"][e][:3]
        assert np.abs(fresh).max() > 0.02           # the next episode starts where this one did not end
    assert obs["goal"][1] != "do it"


def test_vector_success(pair):
    pair.reset(seed=0, options={"goals": ["push_cube", "lift_cube"]})
    pair.set_attr("object_start", [np.array([-1.0, 0, 1]), np.array([0, 0, 0.82])])       # as if pushed a metre
    _, rewards, terminated, truncated, infos = pair.step(np.array([7, 7]))
    assert terminated.tolist() == infos["success"].tolist() == [True, False]
    assert infos["episode_metrics"]["success"].tolist() == [True, False]
    assert not truncated.any() and rewards[0] > 0.9


def test_trajectories_do_not_depend_on_index_or_history(pair):
    actions = np.random.default_rng(1).integers(8, size=(7, 2))        # two episodes' ends in it
    run_local = RobosuiteVectorEnv(1, instructions=INSTRUCTIONS, **{key: getattr(pair.settings, key) for key in (
        "task", "goals", "resolution", "max_steps", "action_repeat", "proprioception")})
    try:
        for e, seed in ((0, 41), (1, 42)):
            both, one = pair.reset(seed=[41, 42])[0], run_local.reset(seed=[seed])[0]
            assert same(of(both, e), of(one, 0)) and not same(of(both, 0), of(both, 1))
            for action in actions:
                both, one = pair.step(action), run_local.step(action[[e]])
                assert same(of(both[0], e), of(one[0], 0))
                assert all(both[i][e] == one[i][0] for i in (1, 2, 3))
    finally:
        run_local.close()


def test_single_episode_stops_each_env_after_its_episode(pair):
    pair.reset(seed=[7, 8], options={"single_episode": True})
    *_, truncated, infos = [pair.step(np.array([4, 0])) for _ in range(3)][-1]
    assert truncated.all() and "episode_metrics" in infos
    rests, episodes = pair.step(np.array([4, 0]))[0], [json.loads(text)["episode"] for text in pair.state()["envs"]]
    assert all(same(of(rests, e), infos["final_obs"][e]) for e in range(2)) and episodes == [0, 0]
    obs, rewards, terminated, truncated, infos = pair.step(np.array([1, 1]))
    assert same(obs, rests) and not (rewards.any() or terminated.any() or truncated.any())
    assert "episode_metrics" not in infos
    pair.reset(seed=[7, 8])
    for _ in range(4):
        obs, *_ = pair.step(np.array([4, 0]))
    assert [json.loads(text)["episode"] for text in pair.state()["envs"]] == [1, 1] and not same(obs, rests)


def test_vector_state_is_restored(pair):
    pair.reset(seed=3)
    pair.step(np.array([1, 2]))
    state = json.loads(json.dumps(pair.state()))
    then = [pair.step(np.array([a, 5]))[:4] for a in (6, 4, 3)]
    pair.reset(seed=99)
    restored = pair.restore(state)
    assert pair.observation_space.contains(restored)
    for (obs, *rest), a in zip(then, (6, 4, 3), strict=True):
        again, *others = pair.step(np.array([a, 5]))[:4]
        assert same(obs, again) and all(map(np.array_equal, rest, others))


def test_vector_expert_labels(pair):
    obs, _ = pair.reset(seed=5, options={"goals": ["lift_cube", "push_cube"]})
    assert pair.expert_actions().tolist() == [7, 6]            # opens to grasp, closes to push
    asked, actions = pair.relabel_goals(np.random.default_rng(0), 0.0)
    assert actions.tolist() == [7, 6] and asked["goal_slots"].tolist() == [[1, 0], [0, 1]]
    assert asked["object_xy"].shape == (2, 2, 2) and np.isnan(asked["object_xy"][:, 1]).all()
    blind = RobosuiteVectorEnv(1, instructions=INSTRUCTIONS, render_images=False, task="Lift")
    try:
        assert not blind.reset(seed=5)[0]["image"].any() and blind.expert_actions().tolist() == [7]
    finally:
        blind.close()


def test_a_wrong_action_or_a_dead_worker_leaves_no_process():
    for harm in ("action", "death", "interrupt"):
        env = RobosuiteVectorEnv(2, instructions=INSTRUCTIONS, render_images=False, task="Lift")
        processes = list(env.processes)
        env.reset(seed=0)
        if harm == "action":
            with pytest.raises(EnvError, match="choose from 0 to 7"):
                env.step(np.array([0, 8]))
        elif harm == "death":
            os.kill(processes[0].pid, signal.SIGKILL)
            with pytest.raises(EnvError, match="a robot arm has ended"):
                env.step(np.array([0, 0]))
        else:       # Ctrl-C came when one answer had been read and the other not
            env.step_async(np.array([0, 0]))
            env.parent_pipes[0].recv()
        env.close()
        assert not any(process.is_alive() for process in processes), harm


LOOP = """
import signal, sys
from simulator.robosuite.vector_env import RobosuiteVectorEnv
signals = []
for number in (signal.SIGINT, signal.SIGTERM):      # as a trainer that finishes its step and saves
    signal.signal(number, lambda *_: signals.append(True))
env = RobosuiteVectorEnv(2, instructions={}, render_images=False, task="Lift")
env.reset(seed=0)
print(*(process.pid for process in env.processes), flush=True)
while not signals:
    env.step(env.noop_actions())
env.step(env.noop_actions())
if "close" in sys.argv:
    env.close()
"""


@pytest.mark.parametrize("number, end", [(signal.SIGINT, "close"), (signal.SIGTERM, "close"), (signal.SIGTERM, "exit"),
                                         (signal.SIGKILL, "")])
def test_no_worker_outlives_its_trainer(number, end):
    trainer = subprocess.Popen([sys.executable, "-c", LOOP, end], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, start_new_session=True)
    workers = [int(pid) for pid in trainer.stdout.readline().split()]
    time.sleep(0.3)
    if number == signal.SIGKILL:
        trainer.kill()
    else:
        os.killpg(trainer.pid, number)       # a terminal or a scheduler signals the whole group
    trainer.communicate(timeout=30)
    assert len(workers) == 2 and trainer.returncode == (-9 if number == signal.SIGKILL else 0)
    deadline = time.monotonic() + 20
    while (left := [pid for pid in workers if running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
