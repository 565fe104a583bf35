"""The robosuite arm: stages, rewards, endings, starts, and experts."""
import numpy as np
import pytest
from robosuite_env_helpers import METRICS, TASKS, put

from simulator.robosuite import env as R

pytest_plugins = ["robosuite_env_fixtures"]
pytestmark = pytest.mark.usefixtures("rendering")


# --- stages and endings ---------------------------------------------------------------------------------------------
def test_stages_of_the_can_by_hand(make, monkeypatch):
    env = make("PickPlaceCan", render_images=False, max_steps=3, reward="progress", goals=TASKS["PickPlaceCan"])
    env.reset(seed=0, options={"goal": "place_can"})
    target, start, eef = env.target(), env.object_start, env.eef_pos()
    assert env.shaped_value() == pytest.approx(0.1 * (1 - np.tanh(10 * np.linalg.norm(start - eef))))
    put(env, eef - [0, 0, 0.1])                 # 10 cm below the gripper: 0.1 (1 - tanh 1) = 0.0238
    reach = env.shaped_value()
    assert reach == pytest.approx(0.0238, abs=1e-4) and not any(env.stages()[name] for name in ("reach", "grasp"))
    monkeypatch.setattr(env, "grasped", lambda: True)
    put(env, start)
    grasp = env.shaped_value()         # 25 cm below where it is carried: 1 - tanh(3.75) = 0.0011
    away = 0.2 * (1 - np.tanh(10 * np.linalg.norm((target - start)[:2])))
    assert grasp == pytest.approx(0.35 + 0.15 * (1 - np.tanh(3.75)) + away, abs=1e-4)
    put(env, start + [0, 0, 0.25])
    lift = env.shaped_value()
    assert lift == pytest.approx(0.5 + away, abs=1e-4) and not env.stages()["hover"]
    put(env, [*target[:2], start[2] + 0.25])
    hover = env.shaped_value()
    assert hover == pytest.approx(0.7, abs=1e-4) and env.stages()["hover"] and not env.is_success()
    monkeypatch.undo()
    assert env.shaped_value() == 0.5                    # let go over its compartment
    put(env, target + [0, 0, 0.06])
    assert env.is_success() and env.shaped_value() == 1 and not env.is_success("place_can_near")
    put(env, env.target("place_can_near") + [0, 0, 0.06])
    assert env.is_success("place_can_near") and not env.is_success()
    assert reach < grasp < lift < hover < 1


def test_success_terminates_and_the_limit_truncates_never_both(make):
    for goal in TASKS["PickPlaceCan"]:
        for reward in ("sparse", "progress"):
            env = make("PickPlaceCan", render_images=False, max_steps=3, reward=reward, goals=TASKS["PickPlaceCan"])
            env.reset(seed=0, options={"goal": goal})
            steps = [env.step(4) for _ in range(3)]
            assert [step[2:4] for step in steps] == [(False, False), (False, False), (False, True)]
            assert steps[2][4]["episode_metrics"]["success"] is False and "episode_metrics" not in steps[1][4]
            env.reset(seed=0, options={"goal": goal})
            start, total = env.shaped_value(), env.step(4)[1] + env.step(4)[1]
            put(env, env.target() + [0, 0, 0.06])
            _, last, *ends, info = env.step(4)                     # on the last step: success, not the time limit
            assert ends == [True, False] and info["success"] and info["episode_metrics"]["goal"] == goal
            assert (total + last == pytest.approx(1 - start)) if reward == "progress" else last == 1
    env.reset(seed=0, options={"goal": "juggle"})
    put(env, env.target() + [0, 0, 0.06])                          # an unknown instruction is not scored
    _, reward, *ends, info = env.step(4)
    assert (reward, ends, info["success"], info["goal"]) == (0, [False, False], False, None)
    state = env.state()
    env.restore(state)
    assert env.state() == state and not env.scored and env.instruction == "juggle"


def test_the_start_does_not_depend_on_the_goal(make):
    for settings, goals in (({}, ("lift_cube",)), ({"goals": TASKS["Lift"]}, TASKS["Lift"])):
        env, starts = make(render_images=False, **settings), set()
        for options in (None, {"goal": goals[0]}, {"goal": goals[-1], "instruction": "go"}, {"instruction": "go"}):
            env.reset(seed=4, options=options)
            starts.add(env.sim.data.qpos.tobytes())
        assert len(starts) == 1


# --- experts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task, space, repeat, seeds", [
    ("Lift", "discrete", 4, (0, 1, 2)), ("PickPlaceCan", "discrete", 5, (0, 1, 2)),
    ("NutAssemblySquare", "continuous", 4, (1, 2))])
def test_experts_reach_every_goal(make, task, space, repeat, seeds):
    env = make(task, render_images=False, action_space=space, action_repeat=repeat, goals=TASKS[task], max_steps=100)
    for goal in TASKS[task]:
        runs = []
        for seed in (*seeds, *seeds[:goal == "lift_cube"]):
            env.reset(seed=seed, options={"goal": goal})
            actions, order, total, ended = [], [], env.shaped_value(), False
            while not ended:
                actions.append(env.expert_action())
                assert env.action_space.contains(actions[-1])
                _, reward, success, ended, info = env.step(actions[-1])
                total, ended = total + reward, ended or success
                order += [name for name in R.STAGES if env.stages_reached.get(name) and name not in order]
            assert success and total == pytest.approx(1), (goal, seed)
            assert order == [name for name in R.STAGES if name in order] and order, (goal, seed)
            if env.target() is not None:
                assert order == list(R.STAGES) and all(info["episode_metrics"][name] == 1 for name in METRICS)
            runs.append((seed, np.array(actions).tolist(), env.sim.data.qpos.tolist()))
        assert len(runs) == len(seeds) or runs[-1] == runs[0]
