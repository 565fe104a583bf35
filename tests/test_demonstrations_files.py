"""Files with demonstrations: format, round trip, splits, damage, errors, and the summary."""
import contextlib
import errno
import fcntl
import os
import sys

import numpy as np
import pytest
from demonstrations_helpers import ARGS, GOALS, assert_same, episode, h5py, one_line, read_as_described

import dataset
from dataset import DemoDataset
from simulator.formats import DatasetError
from simulator.formats.robomimic import read_demonstrations, split_demonstrations, write_demonstrations

pytest_plugins = ["demonstrations_fixtures"]


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


def test_a_file_that_is_open_elsewhere_is_in_use(file):
    with open(file, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        one_line(lambda: DemoDataset(file), f"{file} is in use")
    assert len(DemoDataset(file).episodes) == 12


def test_a_file_system_without_locks_is_not_another_process(file, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOLCK, "unable to lock file, errno = 37")

    monkeypatch.setattr("h5py.File", fail)
    one_line(lambda: DemoDataset(file), f"{file} cannot be locked", "HDF5_USE_FILE_LOCKING=FALSE")


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
