"""The robosuite arm without images: spaces, actions, options, and errors."""
import unicodedata

import gymnasium
import numpy as np
import pytest
from robosuite_env_helpers import HAND, INSTRUCTIONS, TABLE

from simulator.registry import EnvError
from simulator.robosuite import env as R
from simulator.robosuite.env import RobosuiteEnv
from simulator.robosuite.env_config import PROPRIO, PROPRIO_HIGH, PROPRIO_LOW
from simulator.robosuite.tasks import GoalError
from simulator.robosuite.vector_env import RobosuiteVectorEnv

pytest_plugins = ["robosuite_env_fixtures"]
pytestmark = pytest.mark.usefixtures("rendering")


def test_misuse_is_one_line():
    env = RobosuiteEnv(task="Lift", render_images=False, instructions=INSTRUCTIONS)
    with pytest.raises(EnvError, match="reset"):
        env.step(0)
    with pytest.raises(EnvError, match="unknown reset option 'gaol': did you mean goal.* instruction, monitor_goal"):
        env.reset(options={"gaol": "lift_cube"})
    assert "lift_cube, push_cube" in env.reset(options={"goal": "open the drawer"})[1]["note"]
    env.step(True)      # Gymnasium takes it for 1
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step(0), env.object_pos):
        with pytest.raises(EnvError, match="this env is closed"):
            call()
    with pytest.raises(EnvError, match="cameras is empty"):
        R.RobosuiteConfig(cameras=())


def test_instructions_outside_the_space_are_refused_in_one_line():
    env = RobosuiteEnv(task="Lift", render_images=False, instructions=INSTRUCTIONS)
    try:
        decomposed = unicodedata.normalize("NFD", "큐브를 들어 올려줘")
        obs, info = env.reset(seed=0, options={"goal": decomposed})
        assert obs["goal"] == "큐브를 들어 올려줘" and info["goal"] == "lift_cube"
        assert env.observation_space.contains(obs)
        for option in ("goal", "instruction"):
            for text, message in (("x" * 501, "501 characters"), ("lift it \U0001f680", "contains"), (" ", "is empty")):
                with pytest.raises(EnvError, match=message) as error:
                    env.reset(options={option: text})
                assert "\n" not in str(error.value)
    finally:
        env.close()


def test_unknown_goals_name_the_nearest():
    env = RobosuiteEnv(task="Lift", render_images=False, instructions=INSTRUCTIONS)
    try:
        for options in ({"goal": "lift_cub"}, {"monitor_goal": "lift_nut"}):
            with pytest.raises(GoalError, match="unknown goal .*: did you mean lift_cube"):
                env.reset(options=options)
        with pytest.raises(EnvError, match="reset"):
            env.step(0)
        with pytest.raises(GoalError, match="did you mean place_can_near"):
            R.RobosuiteConfig(goals=["place_can_neer"])
    finally:
        env.close()


def test_record_episode_statistics_of_gymnasium():
    env = RobosuiteEnv(task="Lift", render_images=False, instructions=INSTRUCTIONS, max_steps=3)
    env = gymnasium.wrappers.RecordEpisodeStatistics(env)
    try:
        env.reset(seed=0)
        infos = [env.step(4)[4] for _ in range(3)]
        assert infos[-1]["episode"]["l"] == 3 and infos[-1]["episode_metrics"]["stage_reach"] == 0
        assert all("episode" not in info for info in infos[:-1])
    finally:
        env.close()


def test_proprio_layout():
    assert sum(PROPRIO.values()) == len(PROPRIO_LOW) == len(PROPRIO_HIGH) == 9
    space = R.RobosuiteConfig(proprioception=True).spaces()[0]["proprio"]
    assert np.array_equal(space.low, PROPRIO_LOW) and np.array_equal(space.high, PROPRIO_HIGH)


def test_unseeded_envs_differ():
    env = gymnasium.make("FlexibleWorld/Robosuite-v0", task="Lift", render_images=False, instructions=INSTRUCTIONS)
    try:
        assert env.reset()[0]["goal"] in INSTRUCTIONS["lift_cube"]
        first = env.unwrapped.seed
        env.reset()
        assert env.unwrapped.seed == first and env.unwrapped.episode == 1
    finally:
        env.close()
    assert len({FakeEnv().reset()[1]["goal"] for _ in range(3)}) == 3


class FakeEnv(RobosuiteEnv):
    """Its info holds its seed in place of a goal."""
    def __init__(self):
        self.seed, self.episode = None, -1

    def start_episode(self):
        self.goal, self.scored = self.seed, True

    def observe(self):
        return {}


def test_action_table():
    assert R.ACTIONS == ("backward", "forward", "left", "right", "up", "down", "close gripper", "open gripper")
    assert R.ACTION_VECTORS.tolist() == [
        [-0.5, 0, 0, 0, 0, 0, 0], [0.5, 0, 0, 0, 0, 0, 0], [0, -0.5, 0, 0, 0, 0, 0], [0, 0.5, 0, 0, 0, 0, 0],
        [0, 0, 0.5, 0, 0, 0, 0], [0, 0, -0.5, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, -1]]


def test_named_actions_do_what_they_are_called(make):
    # 10 control steps: 250 mm are commanded, the controller makes about 55 mm of it while they last
    env = make(render_images=False, action_repeat=10, gripper_repeat=10, proprioception=True)
    ways = R.ACTION_VECTORS[:6, :3] * 2
    for seed in (0, 1):
        for action, name in enumerate(R.ACTIONS):
            env.reset(seed=seed)
            place, fingers = env.eef_pos(), np.ptp(env.proprio()[7:])
            env.apply_action(action)
            moved, widened = env.eef_pos() - place, np.ptp(env.proprio()[7:]) - fingers
            if action < 6:
                assert 0.04 < moved @ ways[action] < 0.08 and np.linalg.norm(moved * (ways[action] == 0)) < 0.01, name
                assert abs(widened) < 0.002, name
            else:
                assert np.abs(moved).max() < 0.002 and widened * (-1 if action == 6 else 1) > 0.03, name


def test_nonfinite_and_large_actions(make):
    env = make(render_images=False, action_space="continuous")
    assert env.action_space == gymnasium.spaces.Box(-1, 1, (7,), np.float32)
    after = {}
    for name, action in {"nan": [np.nan] * 7, "zero": [0] * 7, "inf": [np.inf] * 7, "ten": [10] * 7, "one": [1] * 7,
                         "-inf": [-np.inf] * 7, "-one": [-1] * 7}.items():
        action = np.array(action, np.float32)
        env.reset(seed=0)
        reward = env.step(action)[1]
        action[:] = 0.3             # the array is the caller's: it may be written to
        env.step(np.zeros(7, np.float32))
        after[name] = env.sim.data.qpos.copy()
        assert np.isfinite(after[name]).all() and np.isfinite(reward)
        env.restore(env.state())
        assert np.array_equal(env.sim.data.qpos, after[name])
    assert np.array_equal(after["nan"], after["zero"]) and np.array_equal(after["-inf"], after["-one"])
    assert np.array_equal(after["inf"], after["one"]) and np.array_equal(after["ten"], after["one"])
    with pytest.raises(EnvError, match="7 numbers"):
        env.step(np.zeros(6))


@pytest.mark.parametrize("action", [-1, 8, 2.5, np.nan, "up", None, np.array([1])])
def test_wrong_named_actions(make, action):
    env = make(render_images=False, action_repeat=10, gripper_repeat=10, proprioception=True)
    env.reset(seed=0)
    with pytest.raises(EnvError, match="choose from 0 to 7"):
        env.step(action)
    assert not env.action_history


@pytest.mark.parametrize("wrong, right", [
    ({"task": "Stack"}, "PickPlaceCan"), ({"task": "Lift", "goals": ["place_can"]}, "lift_cube"),
    ({"cameras": ["wrist"]}, HAND), ({"cameras": []}, HAND), ({"robot": "Panada"}, "Panda"),
    ({"action_space": "hybrid"}, "discrete, continuous"), ({"reward": "dense"}, "shaped"), ({"resolution": 0}, "1024"),
    ({"action_repeat": 0}, "from 1"), ({"max_steps": -5}, "from 1"), ({"control_freq": 1000}, "500"),
    ({"resolution": 84.5}, "84.5"), ({"control_freq": "20"}, "'20'")])
def test_wrong_settings(wrong, right):
    for kind in (RobosuiteEnv, lambda **settings: RobosuiteVectorEnv(1, **settings)):
        with pytest.raises(EnvError) as error:
            kind(instructions=INSTRUCTIONS, **wrong)
        assert right in str(error.value) and "\n" not in str(error.value)


def test_a_single_name_is_accepted_for_a_list():
    settings = R.RobosuiteConfig(cameras=TABLE, goals="place_can_near")
    assert settings.cameras == (TABLE,) and settings.goals == ("place_can_near",)
