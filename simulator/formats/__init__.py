"""Demonstrations on disk, one module for each file format.

A module of DATASETS has SUFFIXES and the functions `read_demonstrations(path, filter_key)` (episodes as dicts),
`read_env_args(path)` and `check_env_args(args, settings, where)`.
"""
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType

from config import UserError

DATASETS = {"robomimic": "simulator.formats.robomimic"}


class DatasetError(UserError):
    """Demonstrations that cannot be read, written, recorded or used. The message is one line."""


def format_of(path: str | Path) -> ModuleType:
    """Return the module that reads a file, chosen by its suffix; DatasetError for an unknown suffix."""
    modules = [import_module(module) for module in DATASETS.values()]
    for module in modules:
        if Path(path).suffix in module.SUFFIXES:
            return module
    suffixes = ", ".join(suffix for module in modules for suffix in module.SUFFIXES)
    raise DatasetError(f"{path} is not a file of demonstrations: name one with the suffix {suffixes}")


def list_files(paths: str | Path | list) -> list[Path]:
    """Return the files that `paths` names: files, and the *.hdf5 of folders. DatasetError if there is none."""
    files = []
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        files += sorted(path.glob("*.hdf5")) if path.is_dir() else [path]
    if not files:
        raise DatasetError(f"no .hdf5 file in {paths}: collect some with scripts/collect_demonstrations.py")
    return files


def summarize(path: str | Path) -> str:
    """Check a file of demonstrations and return its numbers of episodes, samples and goals, and its settings."""
    file_format = format_of(path)
    env_args = file_format.read_env_args(path)
    goals, samples = Counter(), 0
    for episode in file_format.read_demonstrations(path):
        goals[episode["goal"]] += 1
        samples += len(episode["actions"])
    settings = env_args.get("flexibleworld", env_args.get("env_kwargs", {})).items()
    return "\n".join([
        f"{path}: {goals.total()} episodes, {samples} samples",
        "goals: " + ", ".join(f"{goal} ({count})" for goal, count in goals.items()),
        f"{env_args.get('env_name')}: " + ", ".join(f"{k}={v}" for k, v in settings if not isinstance(v, dict))])
