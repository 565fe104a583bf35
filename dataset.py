"""Behaviour-cloning batches: fresh demonstrations of the expert (`generate_demos`) or files of them (`DemoDataset`).

    python dataset.py data/lift.hdf5        checks a file and prints a summary

The file formats are in simulator/formats/, see DATASETS there.
"""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from config import UserError
from simulator.formats import DatasetError, format_of, list_files, summarize
from simulator.formats.recorder import record_demos
from simulator.formats.robomimic import PROPRIO, write_demonstrations
from simulator.robosuite.env_config import ACTION_VECTORS, RobosuiteConfig
from simulator.rollout import stack_obs, tree_map

__all__ = ["DemoDataset", "generate_demos", "load_demos", "record_demos", "write_demonstrations"]


def generate_demos(env, steps: int, seed, action_noise: float, relabel: float) -> tuple[dict, torch.Tensor]:
    """Return `steps` steps of all environments under the expert: obs (leaves [T*E,...]) and actions float32 [T*E,A].

    A fraction `action_noise` of the steps executes a random action, so that the states contain mistakes; the labels
    are always the expert's (the idea of DART, Laskey et al. 2017, arXiv:1703.09327). A fraction `relabel` of the
    samples asks for another goal in the same state (`env.relabel_goals`): the instruction decides the action.
    The result is a function of `seed` alone: the environments are reset first.
    """
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=rng.integers(2**31, size=env.num_envs))
    observations, labels = [], []
    for _ in range(steps):
        expert = env.expert_actions()
        instructed, actions = env.relabel_goals(rng, relabel)
        observations.append(obs | instructed)
        labels.append(actions)
        noise_mask = rng.random(env.num_envs) < action_noise
        mask = noise_mask.reshape(-1, *[1] * (expert.ndim - 1))             # [E] or [E,1]
        executed = np.where(mask, env.random_actions(rng), expert)
        obs, *_ = env.step(executed)
    flat = tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stack_obs(observations))     # [T,E,..] -> [T*E,..]
    return flat, torch.from_numpy(np.concatenate(labels))


def load_demos(config) -> "DemoDataset":
    """Return the demonstrations of `config.bc.data`, checked against the environment of `config`, which is not started.

    Raises DatasetError if the files are missing, damaged, or recorded with other settings.
    """
    robosuite = config["robosuite"]
    demos = DemoDataset(config["bc"]["data"], None, robosuite["action_space"] == "discrete", robosuite["cameras"])
    demos.validate_for(config)
    return demos


class DemoDataset:
    """Samples of demonstration files, in memory.

    `paths` is a file, a folder or a list of them; `filter_key` selects demonstrations. With `discrete`, actions are
    named ones, int64. `cameras` are put side by side (default: those of the recording env, else all, sorted).
    `len()` counts samples; `episodes` lists (start, stop, attributes).
    """

    def __init__(self, paths: str | Path | list, filter_key: str | None = None, discrete: bool = True,
                 cameras: list[str] | None = None):
        self.discrete, self.cameras = discrete, cameras and tuple(cameras)
        self.episodes, self._data, self._files = [], [], []
        for path in list_files(paths):
            file_format = format_of(path)
            env_args = file_format.read_env_args(path)
            self._files.append((path, file_format, env_args))
            for i, episode in enumerate(file_format.read_demonstrations(path, filter_key)):
                self._add(episode, env_args.get("flexibleworld", {}).get("cameras"), f"{path}, demonstration {i}")

    def __len__(self) -> int:
        return self.episodes[-1][1]

    def _add(self, episode: dict, recorded_cameras: list[str] | None, where: str) -> None:
        obs, steps = episode.get("obs", {}), len(episode["actions"])
        available = [key.removesuffix("_image") for key in obs if key.endswith("_image")]
        if not available:
            raise DatasetError(f"{where} has no images: render them with simulator.formats.robomimic.replay")
        self.cameras = self.cameras or tuple(recorded_cameras or sorted(available))
        for camera in self.cameras:
            if camera not in available:
                raise DatasetError(f"{where} has no images of {camera!r}: choose from {', '.join(available)}")
        images = np.concatenate([obs[f"{camera}_image"] for camera in self.cameras], axis=2)     # [T,H,W*k,3]
        proprio = np.concatenate([obs[key] for key in PROPRIO], axis=1) if PROPRIO.keys() <= obs.keys() else None
        for first in self._data[:1]:
            if images.shape[1:] != first["images"].shape[1:] or (proprio is None) != (first["proprio"] is None):
                raise DatasetError(f"{where} has observations of another shape than the first: files that are read "
                                   "together must have the same cameras, resolution and obs keys")
        nan_xy = np.full((steps, 2, 2), np.nan, np.float32)
        own = {episode["goal"]: {"actions": episode.get("index", episode["actions"])}}
        labels = {goal: (self._convert_actions(label["actions"], where), label.get("object_xy", nan_xy))
                  for goal, label in episode.get("labels", own).items()}
        start = self.episodes[-1][1] if self.episodes else 0
        attributes = {key: value for key, value in episode.items()
                      if not isinstance(value, (dict, np.ndarray)) and key != "model_file"}
        self.episodes.append((start, start + steps, attributes))
        self._data.append({"images": images, "proprio": proprio, "labels": labels})

    def _convert_actions(self, actions: np.ndarray, where: str) -> np.ndarray:
        if self.discrete and actions.ndim != 1:
            raise DatasetError(f"{where} has no named actions (`index`): use the continuous action space")
        return ACTION_VECTORS[actions] if not self.discrete and actions.ndim == 1 else actions

    def validate_for(self, config) -> None:
        """Raise DatasetError if the samples do not fit the robosuite environment of `config`, which is not started."""
        settings = RobosuiteConfig(**dict(config["robosuite"]), goals=tuple(config["env"]["goals"]))
        self._labelled_goals(settings.goals)
        for path, file_format, env_args in self._files:
            file_format.check_env_args(env_args, settings, str(path))
        shape, space = self._data[0]["images"].shape[1:], settings.spaces()[0]
        if shape != space["image"].shape:
            raise DatasetError(f"the images of the demonstrations are {list(shape)}, but those of this environment are "
                               f"{list(space['image'].shape)}: set robosuite.resolution and robosuite.cameras as "
                               "recorded, or render the images with simulator.formats.robomimic.replay")
        if self._data[0]["proprio"] is None and "proprio" in space.spaces:
            raise DatasetError(f"the demonstrations do not contain {', '.join(PROPRIO)}: set "
                               "robosuite.proprioception=False")

    def _labelled_goals(self, goals: tuple) -> list[list[str]]:
        """Return for each episode those of `goals` that it has labels for."""
        labelled = [[goal for goal in goals if goal in data["labels"]] for data in self._data]
        if not all(labelled):
            available = ", ".join(self._data[labelled.index([])]["labels"])
            raise DatasetError(f"no demonstrations of {', '.join(goals)} but of {available}: set robosuite.task and "
                               "env.goals as recorded")
        return labelled

    def sample(self, rng: np.random.Generator, n: int, goals: tuple, sample_instruction: Callable,
               relabel: float = 0.0) -> tuple[dict, torch.Tensor]:
        """Return n random samples as (obs, actions): actions int64 [n] or float32 [n,7].

        The actions are the expert's where there are labels, else the executed ones. obs has uint8 `image`
        [n,H,W*k,3]; `goal`, n instructions of `sample_instruction(goal, rng)`; float32 `goal_slots` [n,V] and
        `object_xy` [n,2,2]; int64 `active_goal` [n], 0; and float32 `proprio` [n,9] if recorded. A fraction `relabel`
        of the samples, and those of a goal not in `goals`, ask for a random one of `goals` with labels.
        Raises DatasetError if there is none.
        """
        stops, labelled = [stop for _, stop, _ in self.episodes], self._labelled_goals(goals)
        instructed, rows = [], []
        for i in rng.integers(len(self), size=n):
            e = int(np.searchsorted(stops, i, side="right"))
            start, _, attributes = self.episodes[e]
            goal = attributes["goal"]
            if rng.random() < relabel or goal not in labelled[e]:
                goal = labelled[e][rng.integers(len(labelled[e]))]
            instructed.append(goal)
            actions, object_xy = self._data[e]["labels"][goal]
            rows.append({"image": self._data[e]["images"][i - start], "action": actions[i - start],
                         "object_xy": object_xy[i - start]})
            if self._data[e]["proprio"] is not None:
                rows[-1]["proprio"] = self._data[e]["proprio"][i - start].astype(np.float32)
        columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        actions = columns.pop("action").astype(np.int64 if self.discrete else np.float32)
        slots = [[goal == other for other in sorted(goals)] for goal in instructed]
        instructions = np.array([sample_instruction(goal, rng) for goal in instructed], object)
        return columns | {"goal": instructions, "goal_slots": np.array(slots, np.float32),
                          "active_goal": np.zeros(n, np.int64)}, torch.from_numpy(actions)


def main(argv: list[str] | None = None) -> int:
    """Check a file of demonstrations and print a summary; return the exit code."""
    parser = argparse.ArgumentParser(description="Check a file of demonstrations and print a summary.")
    parser.add_argument("path", help="a .hdf5 file, as scripts/collect_demonstrations.py writes it")
    try:
        print(summarize(parser.parse_args(argv).path))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
