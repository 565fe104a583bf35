"""Checkpoints: tensors and JSON, never code. What acts is `{"format", "meta", "weights"}`; what resumes adds state.

`meta` is a JSON string that says what made the weights; the same JSON lies beside the file for people to read.
"""
import contextlib
import errno
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch

FORMAT = "flexibleworld-1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line for the person who named it."""


@contextlib.contextmanager
def replacing(path):
    """A temporary name to write to; what is there at the end takes the place of `path`, and nothing is left behind."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(path, meta, weights, state=None):
    """Writes atomically (a killed save leaves the old file). `state`: tensors and plain data to resume from."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "meta": json.dumps(meta, ensure_ascii=False), "weights": weights}
    with replacing(path) as temporary:
        try:
            torch.save(content | ({"state": state} if state is not None else {}), temporary)
        except RuntimeError as error:       # what torch makes of a write that fails half-way
            raise OSError(errno.EIO, f"the write failed half-way: {str(error).splitlines()[0][:80]}") from None
    if state is None:
        readable = {key: value for key, value in meta.items() if key != "architecture"}
        with replacing(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(readable, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load(path):
    """-> (meta dict, weights, state or None). CheckpointError in one line if that is not to be had."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: name the .pt file in it")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: train one with `python train_vlm.py vlm_tiny`, "
                              "or name a .pt file that train_vlm.py wrote")
    try:
        with warnings.catch_warnings(action="ignore"):        # of files that are not ours
            content = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:      # torch does not look at the checksums it writes
            if archive.testzip():
                raise ValueError("a checksum does not fit")
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path} holds more than tensors and plain data, or is damaged; it was not executed. "
                              "Use a .pt file that train_vlm.py wrote") from None
    except Exception as error:     # damaged bytes lead torch's reader to nearly any exception; it executes none of them
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise CheckpointError(f"{path} is damaged or cut short ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a FlexibleWorld checkpoint (format {FORMAT!r})")
    try:
        return json.loads(content["meta"]), content["weights"], content.get("state")
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} is damaged: it lacks its weights or its description") from None
