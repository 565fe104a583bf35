"""Batches of demonstrations from files, and fresh ones of the particle expert."""
import numpy as np
import pytest
import torch
from demonstrations_helpers import ARGS, GOALS, episode, h5py, label, sample_instruction

from dataset import DemoDataset, generate_demos
from models.training.learner import minibatches
from simulator.formats import DatasetError
from simulator.formats.robomimic import write_demonstrations
from simulator.robosuite.env_config import ACTION_VECTORS

pytest_plugins = ["demonstrations_fixtures"]


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
