"""Demonstrations in robomimic's HDF5 (https://robomimic.github.io/docs/datasets/overview.html): read, write, check.

Keys marked * are our own; robomimic ignores them. Row t is the state of the environment before action t.

    data                                attributes total (samples), env_args (JSON, see RobosuiteEnv.env_args)
    data/demo_0                         attributes num_samples, model_file (XML); *goal, *text, *seed, *success ...
      states [T,S], actions [T,7]       float64: time, qpos, qvel; float32 in [-1, 1]
      rewards [T], dones [T]            float32; 1 at the last step of the episode
      obs/<camera>_image [T,H,W,3]      uint8, upright
      obs/robot0_eef_pos [T,3], obs/robot0_eef_quat [T,4] (xyzw), obs/robot0_gripper_qpos [T,2]     float32
      *index [T]                        int64, the named action; absent for continuous actions
      *labels/<goal>/actions            the expert's action for each goal of the scene: int64 [T] or float32 [T,7]
      *labels/<goal>/object_xy          float32 [T,2,2], see RobosuiteEnv.object_xy
    mask/<filter key>                   names of demonstrations

In memory an episode is a dict with the same keys: attributes, arrays, and dicts of arrays. Other data sets hold more.
Other arrays are carried unchecked; attributes that are arrays are skipped.
"""
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from simulator.formats import DatasetError
from simulator.robosuite.tasks import TASKS

SUFFIXES = (".hdf5", ".h5")
PROPRIO = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
ROW_SHAPES = {"actions": (7,), "rewards": (), "dones": (), "index": ()}


# --- writing ------------------------------------------------------------------------------------------------------
def write_demonstrations(path: str | Path, episodes: Iterable[dict], env_args: dict,
                         filter_keys: dict[str, list[int]] | None = None) -> int:
    """Write the episodes one at a time and return the number of samples.

    `filter_keys` maps a filter key to numbers of episodes. The write is atomic: a killed run leaves the old file.
    Raises DatasetError for invalid arrays or no episode, OSError if the disk is too full for the next episode.
    """
    path, count, total = Path(path), 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with _atomic_file(path) as file:
        data = file.create_group("data")
        for episode in episodes:
            _check_episode(episode, f"episode {count}")
            _check_disk_space(path, episode)
            demo = data.create_group(f"demo_{count}")
            _write_tree(demo, episode)
            demo.attrs["num_samples"] = len(episode["actions"])
            count += 1
            total += len(episode["actions"])
        if not total:
            raise DatasetError(f"no episodes to write to {path}: at least one is required")
        data.attrs.update({"total": total, "env_args": json.dumps(env_args)})
        for key, numbers in (filter_keys or {}).items():
            if not set(numbers) <= set(range(count)):
                raise DatasetError(f"filter key {key!r}: choose from the episodes 0 to {count - 1}")
            _write_filter_key(file, key, [f"demo_{number}" for number in sorted(numbers)])
    return total


def split_demonstrations(path: str | Path, val_fraction: float, seed: int) -> dict[str, list[str]]:
    """Write the filter keys `train` and `valid` into a file and return {key: names of demonstrations}.

    `valid` is a random fraction `val_fraction` of the demonstrations, drawn with `seed`; `train` is the rest.
    Raises DatasetError if one of them would be empty.
    """
    path = Path(path)
    with _open(path) as file:
        names = _demo_names(file, path)
    count = round(val_fraction * len(names)) if 0 < val_fraction < 1 else 0
    if not 0 < count < len(names):
        raise DatasetError(f"a fraction of {val_fraction} of the {len(names)} demonstrations in {path} leaves train or "
                           "valid empty: give one between 0 and 1, and at least two demonstrations")
    held_out = set(np.random.default_rng(seed).permutation(len(names))[:count])
    keys = {"train": [name for i, name in enumerate(names) if i not in held_out],
            "valid": [name for i, name in enumerate(names) if i in held_out]}
    with _atomic_file(path, copy=True) as file:
        for key, chosen in keys.items():
            _write_filter_key(file, key, chosen)
    return keys


@contextlib.contextmanager
def _atomic_file(path: Path, copy: bool = False) -> Iterator:
    """Open a temporary HDF5 file (or a `copy` of `path`) to write; on success it replaces `path`."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)       # a killed run may have left one
    try:
        if copy:
            shutil.copyfile(path, temporary)
        with import_h5py().File(temporary, "r+" if copy else "w") as file:
            yield file
        with open(temporary, "r+b") as raw:
            os.fsync(raw.fileno())          # a power failure must not leave a partial file under the final name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_disk_space(path: Path, episode: dict) -> None:
    """Raise OSError (ENOSPC) if an episode does not fit: HDF5 crashes on a full disk."""
    needed = 2**21 + sum(array.nbytes for _, array in _arrays(episode))
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _write_tree(group, tree: dict) -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _write_tree(group.create_group(key), value)
        elif not isinstance(value, np.ndarray):
            group.attrs[key] = value
        elif key.endswith("_image"):
            group.create_dataset(key, data=value, compression="gzip", compression_opts=1,
                                 chunks=(min(8, len(value)), *value.shape[1:]))
        else:
            group[key] = value.astype(np.int64) if value.dtype == bool else value


def _write_filter_key(file, key: str, names: list[str]) -> None:
    masks = file.require_group("mask")
    if key in masks:
        del masks[key]
    masks[key] = np.array(names, dtype="S")


# --- reading ------------------------------------------------------------------------------------------------------
def read_demonstrations(path: str | Path, filter_key: str | None = None) -> Iterator[dict]:
    """Yield the episodes of a file, or of one of its filter keys, in the order of their numbers.

    A file without our attribute `goal` gets the first goal of its task. Raises DatasetError for an invalid file.
    """
    task = read_env_args(path).get("env_name")
    with _open(path) as file:
        for name in _demo_names(file, path, filter_key):
            episode = _read_tree(file["data"][name])
            episode.pop("num_samples", None)
            if "goal" not in episode:
                if task not in TASKS:
                    raise DatasetError(f"{path} has no goals, and its task {task!r} is not one of {', '.join(TASKS)}: "
                                       "give each demonstration the attribute `goal`")
                episode["goal"] = TASKS[task].goals[0]
            _check_episode(episode, f"{path}, {name}")
            if "dones" in episode:
                episode["dones"] = episode["dones"].astype(bool)
            yield episode


def read_env_args(path: str | Path) -> dict:
    """Return `env_args`, from which the environment of a file was made (see RobosuiteEnv.env_args)."""
    with _open(path) as file:
        try:
            args = json.loads(file["data"].attrs.get("env_args", "{}"))
        except (ValueError, TypeError):
            args = None
    if not isinstance(args, dict):
        raise DatasetError(f"{path}: the attribute env_args is not a JSON object")
    return args


def replay(env, episode: dict) -> dict:
    """Return the episode with the observations of its `states` rendered anew by a RobosuiteEnv of its scene.

    This adds images to a file: write_demonstrations(other, (replay(env, e) for e in read_demonstrations(path)),
    env.env_args()). Raises EnvError for the states of another scene.
    """
    env.reset(seed=0, options={"goal": episode["goal"]})
    observations = []
    for t, state in enumerate(episode["states"]):
        env.set_state(state, first=t == 0)
        observations.append(env.observation_dict())
    rendered = {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return episode | {"obs": episode.get("obs", {}) | rendered}


def import_h5py() -> ModuleType:
    """Return the module h5py; DatasetError if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise DatasetError("demonstration files require h5py: make robosuite, or pip install "
                           "'flexibleworld[robosuite]'") from None
    return h5py


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator:
    h5py = import_h5py()
    if not Path(path).is_file():
        raise DatasetError(f"no demonstrations at {path}: collect some with scripts/collect_demonstrations.py, "
                           "or name a .hdf5 file")
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group) or not len(file["data"]):
                raise DatasetError(f"{path} has no demonstrations: they belong in a group `data` with demo_0 in it")
            yield file
    except (OSError, RuntimeError, KeyError) as error:      # h5py raises all three for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, BlockingIOError):      # no other error of a lock means that
            raise DatasetError(f"{path} is in use: another process is writing it; try again when it has "
                               "finished") from None
        if "unable to lock file" in reason:
            raise DatasetError(f"{path} cannot be locked ({reason[:80]}): set HDF5_USE_FILE_LOCKING=FALSE") from None
        raise DatasetError(f"{path} is not an HDF5 file, or it is damaged ({reason[:80]})") from None


def _demo_names(file, path: str | Path, filter_key: str | None = None) -> list[str]:
    """Return the names of the demonstrations, demo_2 before demo_10."""
    names, masks = list(file["data"]), file.get("mask", {})
    if filter_key is not None:
        if filter_key not in masks:
            hint = f"choose from {', '.join(masks)}" if len(masks) else "split_demonstrations writes train and valid"
            raise DatasetError(f"{path} has no filter key {filter_key!r}: {hint}")
        chosen = {name.decode() if isinstance(name, bytes) else str(name) for name in masks[filter_key][()]}
        if not chosen or not chosen <= set(names):
            raise DatasetError(f"{path}: the filter key {filter_key!r} must name demonstrations of this file")
        names = chosen
    return sorted(names, key=lambda name: (len(name), name))


def _read_tree(group) -> dict:
    tree = {key: value.item() if isinstance(value, np.generic) else value for key, value in group.attrs.items()}
    tree = {key: value for key, value in tree.items() if isinstance(value, (str, bytes, bool, int, float))}
    for key, value in group.items():
        if key != "next_obs":
            tree[key] = value[()] if hasattr(value, "dtype") else _read_tree(value)
    return tree


# --- checking -----------------------------------------------------------------------------------------------------
def check_env_args(args: dict, settings, where: str) -> None:
    """Raise DatasetError if a file's `env_args` differ from an environment's `settings` (a RobosuiteConfig).

    Compared are the control frequency, the repeats of actions, and the controller of the arm: OSC_POSE with relative
    actions. Settings that are not in the file are not compared.
    """
    kwargs = _as_dict(args.get("env_kwargs"))
    recorded = {key: kwargs[key] for key in ("control_freq",) if key in kwargs}
    recorded |= args.get("flexibleworld", {"action_repeat": 1})         # in robomimic's own files a row is one step
    for key in ("control_freq", "action_repeat", "gripper_repeat")[:3 if settings.discrete else 2]:
        expected = getattr(settings, key)
        if recorded.get(key, expected) != expected:
            raise DatasetError(f"{where} was recorded with {key}={recorded[key]}, but this environment has "
                               f"{expected}: set robosuite.{key}={recorded[key]}")
    for name, controller in _arm_controllers(kwargs.get("controller_configs")):
        for key, expected in (("type", "OSC_POSE"), ("control_delta", True), ("input_type", "delta")):
            if controller.get(key, expected) != expected:
                raise DatasetError(f"{where} was recorded with {name}.{key}={controller[key]!r}, but the actions of "
                                   f"this environment require {expected!r}: use other demonstrations")


def _arm_controllers(configs: object) -> Iterator[tuple[str, dict]]:
    """Yield (key, controller) of each arm, from `controller_configs` as robosuite 1.4 or 1.5 writes it."""
    for config in map(_as_dict, configs if isinstance(configs, list) else [configs]):
        if "body_parts" not in config:          # 1.4: the controller of the only arm
            yield "env_kwargs.controller_configs", config
            continue
        parts = _as_dict(config["body_parts"])
        arms = _as_dict(parts.get("arms", parts))
        yield "env_kwargs.controller_configs.body_parts.right", _as_dict(arms.get("right"))


def _as_dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _check_episode(episode: dict, where: str) -> None:
    """Raise DatasetError for arrays of a wrong shape, dtype or length, and for invalid actions."""
    actions = episode.get("actions")
    if not isinstance(actions, np.ndarray) or not actions.ndim or not len(actions):
        raise DatasetError(f"{where} has no `actions`: they are float32 [T,7], one row for each step")
    if not isinstance(episode.get("states"), np.ndarray):
        raise DatasetError(f"{where} has no `states`: they are float64 [T,S], one row for each step")
    for key, array in _arrays(episode):
        problem = _shape_problem(key, array, len(actions)) or _action_problem(key, array)
        if problem:
            raise DatasetError(f"{where}: {key} {problem}")


def _shape_problem(key: str, array: np.ndarray, steps: int) -> str | None:
    """Return what is wrong with the shape or dtype of an array; None if nothing is, or if the key is not ours."""
    group, _, name = key.rpartition("/")
    if group == "obs" and name.endswith("_image"):
        valid = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
        expected = "uint8 [T,H,W,3]"
    elif key == "states":
        valid, expected = array.ndim == 2, "[T,S]"
    else:
        row = _row_shape(group, name, array)
        if row is None:
            return None
        valid = array.shape[1:] == row
        expected = f"[{','.join(['T', *map(str, row)])}]"
    if valid and len(array) == steps:
        return None
    return f"is {array.dtype} {list(array.shape)}, not {expected}, T = {steps}"


def _row_shape(group: str, name: str, array: np.ndarray) -> tuple | None:
    """Return the shape of a row of the array `group`/`name`; None for an array that we do not use."""
    if not group:
        return ROW_SHAPES.get(name)
    if group == "obs":
        return (PROPRIO[name],) if name in PROPRIO else None
    if not group.startswith("labels/"):
        return None
    named = array.ndim == 1 and array.dtype.kind == "i"
    return {"actions": () if named else (7,), "object_xy": (2, 2)}.get(name)


def _action_problem(key: str, array: np.ndarray) -> str | None:
    """Return what is wrong with the values of actions; None for other arrays."""
    if key not in ("actions", "index") and not (key.startswith("labels/") and key.endswith("/actions")):
        return None
    low, high = (-1, 1) if array.ndim == 2 else (0, 7)
    valid = (array >= low) & (array <= high)        # False for NaN
    return None if valid.all() else f"holds numbers that are not in [{low}, {high}]"


def _arrays(tree: dict, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield (path, array) of all arrays of an episode."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _arrays(value, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray):
            yield prefix + key, value
