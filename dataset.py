"""What becomes a training batch: demonstrations of the scripted expert, fresh from the simulator or out of files.

Files of the robosuite arm are robomimic's HDF5 (https://robomimic.github.io/docs/datasets/overview.html), with what it
does not know, and passes over, marked *. Row t is from before action t.

    data                                attributes total (samples), env_args (JSON: RobosuiteEnv.env_args)
    data/demo_0                         attributes num_samples, model_file (XML); *goal, *text, *seed, *success ...
      states [T,S], actions [T,7]       float64: time, qpos, qvel; float32 in [-1, 1]
      rewards [T], dones [T]            float32; 1 where the episode ends
      obs/<camera>_image [T,H,W,3]      uint8, upright
      obs/robot0_eef_pos [T,3], obs/robot0_eef_quat [T,4] (xyzw), obs/robot0_gripper_qpos [T,2]     float32
      *index [T]                        the named action, int64, where actions are named
      *labels/<goal>/actions            what the expert would have done for each goal of the scene: int64 [T] or float32
                                        [T,7]; and places [T,2,2], see RobosuiteEnv.places
    mask/<filter key>                   names of demonstrations

An episode in memory is the same: a dict of attributes, arrays, and dicts of them.
"""
import contextlib
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from models.checkpoint import atomic_write, first_line
from simulator.robosuite.env import ACTION_VECTORS, TASKS
from simulator.rollout import stack_obs, tree_map

PROPRIO = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
MAX_FAILURES = 50       # episodes of a world in a row without success


class DatasetError(ValueError):
    """Demonstrations that cannot be had as asked for; the message is one line that says what would be right."""


def generate_demos(env, steps, seed, action_noise, relabel):
    """`steps` steps of all worlds under the expert -> obs (leaves [T*E,...]), with what else is known of what is asked
    (the environment's `ask_otherwise`), and actions float32 [T*E,A].

    Before a share `perturb` of the steps a world takes a random action instead of the expert's, so that the states
    hold mistakes and the labels (always the expert's) how to mend them (the idea of DART, Laskey et al. 2017,
    arXiv:1703.09327). A share `relabel` of the pairs asks for another goal in the same state, which teaches that the
    sentence decides. A function of `seed` alone: the worlds are reset first.
    """
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=rng.integers(2**31, size=env.num_envs))
    seen, labels = [], []
    for _ in range(steps):
        expert = env.expert_actions()
        instructed, actions = env.relabel_goals(rng, relabel)
        seen.append(obs | instructed)
        labels.append(actions)
        noise_mask = rng.random(env.num_envs) < action_noise
        executed = np.where(noise_mask[:, None], env.random_actions(rng), expert)
        obs, *_ = env.step(executed)
    flat = tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stack_obs(seen))
    return flat, torch.from_numpy(np.concatenate(labels))


def minibatches(count, size, generator):
    """Index tensors of shuffled minibatches over `count` samples; a last one under half the size is left out."""
    order = torch.randperm(count, generator=generator)
    return [batch for batch in order.split(size) if len(batch) * 2 >= min(size, count)]


def select(obs, index):
    """The samples `index` of an observation with leaves [N,...]."""
    index = index.numpy()
    return tree_map(lambda leaf: leaf[index], obs)


# --- files of demonstrations ------------------------------------------------------------------------------------
def write_demonstrations(path, episodes, env_args, filter_keys=None):
    """Writes an iterable of episodes, one at a time, and `filter_keys` {name: numbers of episodes}; atomically: `path`
    is there when all is -> how many samples. DemonstrationsError for wrong shapes, unfit actions, or no episode;
    OSError where the disk is too full for one more."""
    h5py, path, count, total = import_h5py(), Path(path), 0, 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        with h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            for count, episode in enumerate(episodes, 1):       # noqa: B007
                _check(episode, f"episode {count - 1}")
                if shutil.disk_usage(path.parent).free < 2**21 + sum(array.nbytes for _, array in _arrays(episode)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))   # HDF5 would not survive it
                demo = data.create_group(f"demo_{count - 1}")
                _write_tree(demo, episode)
                demo.attrs["num_samples"] = len(episode["actions"])
                total += len(episode["actions"])
            if not total:
                raise DatasetError(f"no episodes to write to {path}: collect one at least")
            data.attrs.update({"total": total, "env_args": json.dumps(env_args)})
            for key, numbers in (filter_keys or {}).items():
                if not set(numbers) <= set(range(count)):
                    raise DatasetError(f"filter key {key!r}: there are episodes 0 to {count - 1} to choose from")
                _write_mask(file, key, [f"demo_{number}" for number in sorted(numbers)])
        _sync(temporary)
    return total


def read_demonstrations(path, filter_key=None):
    """Yields the episodes of a file, or of one of its filter keys, in the order of their numbers; robomimic's own get
    their task's goal. DemonstrationsError for what is not such a file."""
    task = env_args_of(path).get("env_name")
    with _open(path) as file:
        for name in _names(file, path, filter_key):
            episode = _read_tree(file["data"][name])
            episode.pop("num_samples", None)
            if "dones" in episode:
                episode["dones"] = episode["dones"].astype(bool)
            if "goal" not in episode and task not in TASKS:
                raise DatasetError(f"{path} does not say what it shows, and its task {task!r} is none of "
                                          f"{', '.join(TASKS)}: give each demonstration the attribute `goal`")
            episode.setdefault("goal", TASKS[task].goals[0] if task in TASKS else None)
            _check(episode, f"{path}, {name}")
            yield episode


def env_args_of(path):
    """What the world of a file's demonstrations was made from: see RobosuiteEnv.env_args."""
    with _open(path) as file:
        try:
            args = json.loads(file["data"].attrs.get("env_args", "{}"))
        except ValueError:
            args = None
        if not isinstance(args, dict):
            raise DatasetError(f"{path}: the attribute env_args is not the JSON of a dict")
        return args


def split_demonstrations(path, policy_fraction, seed):
    """Writes the filter keys `valid`, a `share` of the demonstrations drawn by `seed`, and `train`, the others -> {key:
    names}. DemonstrationsError where one would be empty."""
    path = Path(path)
    with _open(path) as file:
        names = _names(file, path)
    count = round(policy_fraction * len(names)) if 0 < policy_fraction < 1 else 0
    if not 0 < count < len(names):
        raise DatasetError(f"a share of {policy_fraction} of the {len(names)} demonstrations in {path} leaves train or "
                                  "valid empty: give one between 0 and 1, of two demonstrations at least")
    drawn = set(np.random.default_rng(seed).permutation(len(names))[:count])
    keys = {"train": [name for i, name in enumerate(names) if i not in drawn],
            "valid": [name for i, name in enumerate(names) if i in drawn]}
    with atomic_write(path) as temporary:
        shutil.copyfile(path, temporary)
        with import_h5py().File(temporary, "r+") as file:
            for key, chosen in keys.items():
                _write_mask(file, key, chosen)
        _sync(temporary)
    return keys


def replay(env, episode):
    """The episode with the `obs` of its `states` as a RobosuiteEnv of its scene sees them; WorldError for another
    scene's. So a file gets pictures: write_demonstrations(other, (replay(env, e) for e in read_demonstrations(path)),
    env.env_args())."""
    env.reset(seed=0, options={"goal": episode["goal"]})
    seen = []
    for t, state in enumerate(episode["states"]):
        env.set_state(state, first=t == 0)
        seen.append(env.observation_dict())
    return episode | {"obs": episode.get("obs", {}) | stack_obs(seen)}


class DemoDataset:
    """Samples from files in memory: one file, several, or all *.hdf5 of a folder; of a filter key if given.

    `discrete`: actions are named ones. `cameras`: the pictures put side by side (default: those of the world that wrote
    the file, else all by name). `len()` counts samples; `episodes` lists (start, stop, attributes)."""

    def __init__(self, paths, filter_key=None, discrete=True, cameras=None):
        self.discrete, self.cameras, self.episodes, self._data = discrete, cameras and tuple(cameras), [], []
        self._settings = []
        for path in _files(paths):
            recorded_settings = env_args_of(path).get("flexibleworld", {"action_repeat": 1})   # robomimic: a row is a step
            self._settings.append(recorded_settings)
            for i, episode in enumerate(read_demonstrations(path, filter_key)):
                self._add(episode, recorded_settings.get("cameras"), f"{path}, demonstration {i}")

    def __len__(self):
        return self.episodes[-1][1]

    def _add(self, episode, cameras, where):
        obs, steps = episode.get("obs", {}), len(episode["actions"])
        available = [key.removesuffix("_image") for key in obs if key.endswith("_image")]
        if not available:
            raise DatasetError(f"{where} has no pictures: render them with dataset.replay")
        self.cameras = self.cameras or tuple(cameras or sorted(available))
        for camera in self.cameras:
            if camera not in available:
                raise DatasetError(f"{where} has no pictures of {camera!r}: choose from {', '.join(available)}")
        images = np.concatenate([obs[f"{camera}_image"] for camera in self.cameras], axis=2)
        proprio = np.concatenate([obs[key] for key in PROPRIO], axis=1) if PROPRIO.keys() <= obs.keys() else None
        if self._data:
            first = self._data[0]
            if images.shape[1:] != first["images"].shape[1:] or (proprio is None) != (first["proprio"] is None):
                raise DatasetError(f"{where} has observations of another shape than the first: read files "
                                          "together that share cameras, resolution and obs keys")
        nan_xy = np.full((steps, 2, 2), np.nan, np.float32)
        own = {episode["goal"]: {"actions": episode.get("index", episode["actions"])}}
        labels = {goal: (self._actions(label["actions"], where), label.get("object_xy", nan_xy))
                  for goal, label in episode.get("labels", own).items()}
        start = self.episodes[-1][1] if self.episodes else 0
        attributes = {key: value for key, value in episode.items()
                      if not isinstance(value, (dict, np.ndarray)) and key != "model_file"}
        self.episodes.append((start, start + steps, attributes))
        self._data.append({"images": images, "proprio": proprio, "labels": labels})

    def validate(self, env):
        """DemonstrationsError where these samples are not of what a RobosuiteVectorEnv asks for, does and shows."""
        self._labelled_goals(env.goals)
        for recorded in self._settings:
            for key in ("control_freq", "action_repeat", "gripper_repeat")[:3 if self.discrete else 2]:
                mine = getattr(env.settings, key)
                if recorded.get(key, mine) != mine:
                    raise DatasetError(f"the demonstrations were recorded with robosuite.{key}={recorded[key]}, "
                                              f"and here it is {mine}: give that")
        first, space = self._data[0], env.single_observation_space
        if first["images"].shape[1:] != space["image"].shape:
            raise DatasetError(f"the pictures of the demonstrations are {list(first['images'].shape[1:])} and "
                                      f"those of this world {list(space['image'].shape)}: give robosuite.resolution "
                                      "and robosuite.cameras as recorded, or render them anew with dataset.replay")
        if first["proprio"] is None and "proprio" in space.spaces:
            raise DatasetError(f"the demonstrations do not hold {', '.join(PROPRIO)}: give "
                                      "robosuite.proprioception=False")

    def _labelled_goals(self, goals):
        """Of each episode, those of `goals` that it has labels for."""
        known = [[goal for goal in goals if goal in data["labels"]] for data in self._data]
        if not all(known):
            available = ", ".join(self._data[known.index([])]["labels"])
            raise DatasetError(f"no demonstrations of {', '.join(goals)} but of {available}: give the scene and the "
                                      "env.goals that were recorded")
        return known

    def _actions(self, actions, where):
        if self.discrete and actions.ndim != 1:
            raise DatasetError(f"{where} has no named actions (`index`): use the continuous action space")
        return ACTION_VECTORS[actions] if not self.discrete and actions.ndim == 1 else actions

    def sample(self, rng, n, goals, sample_instruction, relabel=0.0):
        """n samples at random -> obs, actions. obs is what RobosuiteVectorEnv shows and `ask_otherwise` gives: uint8
        `image` [n,H,W*k,3]; `goal`, n sentences of `say(goal, rng)`; float32 `proprio` [n,9] if recorded, `words` [n,V]
        and `places` [n,2,2]; `due` [n], 0. actions: int64 [n], or float32 [n,7]: the expert's where there are labels,
        else those taken. A share `relabel` of the samples, and those of a goal not among `goals`, ask for one of
        `goals` drawn out of those with labels. DemonstrationsError where none has."""
        stops, known = [stop for _, stop, _ in self.episodes], self._labelled_goals(goals)
        instructed, rows = [], []
        for i in rng.integers(len(self), size=n):
            e = int(np.searchsorted(stops, i, side="right"))
            (start, _, attributes), data = self.episodes[e], self._data[e]
            goal = attributes["goal"]
            if rng.random() < relabel or goal not in known[e]:
                goal = known[e][rng.integers(len(known[e]))]
            instructed.append(goal)
            rows.append((data, data["labels"][goal], i - start))
        slots = [f"1 {goal}" for goal in sorted(goals)]
        obs = {"image": np.stack([data["images"][t] for data, _, t in rows]),
               "goal": np.array([sample_instruction(goal, rng) for goal in instructed], object),
               "goal_slots": np.array([[slot == f"1 {goal}" for slot in slots] for goal in instructed], np.float32),
               "active_goal": np.zeros(n, np.int64), "object_xy": np.stack([object_xy[t] for _, (_, object_xy), t in rows])}
        if self._data[0]["proprio"] is not None:
            obs["proprio"] = np.stack([data["proprio"][t] for data, _, t in rows]).astype(np.float32)
        actions = np.stack([actions[t] for _, (actions, _), t in rows])
        return obs, torch.from_numpy(actions.astype(np.int64 if self.discrete else np.float32))


# --- collecting them --------------------------------------------------------------------------------------------
def record_demos(env, count, seed, action_noise, act=None, policy_fraction=0.0, progress=None, only_success=False):
    """Yields `count` finished episodes of a RobosuiteVectorEnv, failed ones too unless `only_success`.

    Before each step a world takes a random action with probability `perturb`, else the expert's (the idea of DART,
    Laskey et al. 2017, arXiv:1703.09327); in a `share` of the episodes it takes what `act(obs) -> actions [E,...]` says
    (DAgger, Ross et al. 2011, arXiv:1011.0686). The labels are the expert's throughout. Every world gives its share of
    `count`, for the first to end are the easy ones; without `act`, world e's k-th is a function of (seed, e, k).
    `progress(finished, successful)` hears of every episode. DemonstrationsError where success does not come."""
    worlds = range(env.num_envs)
    quota, episode = [len(range(e, count, env.num_envs)) for e in worlds], [0] * env.num_envs
    seeds = [int(np.random.SeedSequence([seed, e]).generate_state(1)[0]) for e in worlds]
    obs, infos = env.reset(seed=seeds)
    model, finished, successes, consecutive_failures = env.call("model_file")[0], 0, 0, [0] * env.num_envs

    def begin(e):
        """The random numbers of a world's episode, who acts in it, and its steps to be."""
        rng = np.random.default_rng([seed, e, episode[e]])
        return rng, bool(rng.random() < policy_fraction), []

    running = [begin(e) for e in worlds]
    while any(quota):
        goals, texts, moments = infos["goal"], obs["goal"], env.call("snapshot")
        busy = [e for e in worlds if quota[e]]
        policy_actions = act(obs) if act and any(running[e][1] for e in busy) else None
        actions = env.noop_actions()
        for e in busy:
            rng, by_policy, _ = running[e]
            if policy_actions is not None and by_policy:
                actions[e] = policy_actions[e] if env.settings.discrete else np.clip(policy_actions[e], -1, 1)
            elif rng.random() < action_noise:
                actions[e] = rng.integers(8) if env.settings.discrete else rng.uniform(-1, 1, 7)
            else:
                actions[e] = moments[e]["labels"][goals[e]]["actions"]
        obs, rewards, terminated, truncated, infos = env.step(actions)
        for e in busy:
            named = {"index": np.asarray(actions[e])} if env.settings.discrete else {}
            running[e][2].append(named | {
                "states": moments[e]["state"], "actions": ACTION_VECTORS[actions[e]] if named else actions[e].copy(),
                "rewards": rewards[e], "dones": terminated[e] | truncated[e],
                "obs": moments[e]["obs"], "labels": moments[e]["labels"]})
            if not terminated[e] | truncated[e]:
                continue
            success = bool(infos["episode"]["success"][e])
            finished, successes, consecutive_failures[e] = finished + 1, successes + success, 0 if success else consecutive_failures[e] + 1
            if progress:
                progress(finished, successes)
            if success or not only_success:
                quota[e] -= 1
                yield {"goal": goals[e], "text": texts[e], "seed": seeds[e], "episode": episode[e], "success": success,
                       "model_file": model, **stack_obs([tree_map(np.asarray, step) for step in running[e][2]])}
            elif consecutive_failures[e] == MAX_FAILURES:
                raise DatasetError(f"{MAX_FAILURES} episodes in a row failed: perturb less than {action_noise}, or allow "
                                          "more steps")
            episode[e] += 1
            running[e] = begin(e)


# --- what files are made of -------------------------------------------------------------------------------------
def import_h5py():
    try:
        import h5py
    except ImportError:
        raise DatasetError("files of demonstrations need h5py: make robosuite, or pip install "
                                  "'flexibleworld[robosuite]'") from None
    return h5py


@contextlib.contextmanager
def _open(path):
    h5py = import_h5py()
    if not Path(path).is_file():
        raise DatasetError(f"no demonstrations at {path}: write some with scripts/collect_demonstrations.py, or "
                                  "name a .hdf5 file")
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("data"), h5py.Group) or not len(file["data"]):
                raise DatasetError(f"{path} has no demonstrations in it: a group `data` with demo_0 in it is "
                                          "where they stand")
            yield file
    except OSError as error:
        raise DatasetError(f"{path} is not an HDF5 file, or damaged ({first_line(error)[:80]})") from None


def _files(paths):
    files = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        files += sorted(Path(path).glob("*.hdf5")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise DatasetError(f"no .hdf5 file in {paths}: write some with scripts/collect_demonstrations.py")
    return files


def _names(file, path, filter_key=None):
    """Those of the demonstrations, demo_2 before demo_10."""
    names, masks = list(file["data"]), file.get("mask", {})
    if filter_key is not None:
        if filter_key not in masks:
            raise DatasetError(f"{path} has no filter key {filter_key!r}: " + (
                f"choose from {', '.join(masks)}" if len(masks) else
                "dataset.split_demonstrations makes train and valid"))
        chosen = {name.decode() if isinstance(name, bytes) else str(name) for name in masks[filter_key][()]}
        if not chosen or not chosen <= set(names):
            raise DatasetError(f"{path}: the filter key {filter_key!r} must name demonstrations of this file")
        names = chosen
    return sorted(names, key=lambda name: (len(name), name))


def _write_tree(group, tree):
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


def _read_tree(group):
    tree = {key: value.item() if isinstance(value, np.generic) else value for key, value in group.attrs.items()}
    for key, value in group.items():
        if key != "next_obs":
            tree[key] = value[()] if hasattr(value, "dtype") else _read_tree(value)
    return tree


def _write_mask(file, key, names):
    masks = file.require_group("mask")
    if key in masks:
        del masks[key]
    masks[key] = np.array(names, dtype="S")


def _sync(path):
    with open(path, "r+b") as file:
        os.fsync(file.fileno())     # so that the name never stands for less than the whole, also where the power fails


def _check(episode, where):
    """DemonstrationsError for arrays of wrong shapes, types or lengths, and for actions that are none."""
    if not isinstance(episode.get("actions"), np.ndarray) or not episode["actions"].ndim or not len(episode["actions"]):
        raise DatasetError(f"{where} has no `actions`: they are float32 [T,7], one row a step")
    steps = len(episode["actions"])
    shapes = {"actions": (7,), "rewards": (), "dones": (), "index": (), "object_xy": (2, 2)}
    shapes |= {key: (size,) for key, size in PROPRIO.items()}
    for key, array in _arrays(episode):
        name = key.rpartition("/")[2]
        if name.endswith("_image"):
            right = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
            policy_actions = "uint8 [T,H,W,3]"
        else:
            named = key.startswith("labels/") and array.ndim == 1 and array.dtype.kind == "i"
            shape = () if named and name == "actions" else shapes.get(name)
            right = array.ndim == 2 if name == "states" else shape is None or array.shape[1:] == shape
            policy_actions = "[T,S]" if name == "states" else str(["T", *(shape or ())]).replace("'", "").replace(" ", "")
        if not right or len(array) != steps:
            raise DatasetError(f"{where}: {key} is {array.dtype} {list(array.shape)}, not {policy_actions}, T = {steps}")
        if name in ("actions", "index"):
            low, high = (-1, 1) if array.ndim == 2 else (0, 7)
            if not ((array >= low) & (array <= high)).all():         # also where it is NaN
                raise DatasetError(f"{where}: {key} holds numbers that are not in [{low}, {high}]")
    if not isinstance(episode.get("states"), np.ndarray):
        raise DatasetError(f"{where} has no `states`: they are float64 [T,S], one row a step")


def _arrays(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _arrays(value, f"{prefix}{key}/")
        elif isinstance(value, np.ndarray):
            yield prefix + key, value
