"""Checkpoints: safetensors files, whatever their names. They hold tensors and JSON, never code.

The header has `meta`, JSON that describes the training, and a checksum of the tensors. Beside an inference checkpoint
lies a .json file with the same `meta`, for people. A training state also has a `state`: nested plain data with tensors.
"""
import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from config import UserError

Tensors = dict[str, torch.Tensor]

FORMAT = "flexibleworld-3"
OLD_FORMAT = "flexibleworld-2"
# Format 2 had other names. Its inference checkpoints still load: (prefix of a parameter's name, today's prefix).
OLD_PARAMETERS = (
    ("reading_head.where.", "parser_head.token_query."),
    ("reading_head.goal.", "parser_head.slot_head."),
    ("reading_head.plan.", "parser_head.plan_head."),
    ("action_head.query.", "action_head.point_query."),
    ("action_head.glance.", "action_head.query."),
    ("action_head.look.", "action_head.value_proj."),
    ("action_head.join.", "action_head.fuse."),
    ("action_head.place.", "action_head.pos_embed."),
    ("action_head.key.", "action_head.key_proj."),
    ("action_head.due.", "action_head.subgoal."),
    ("action_head.kind.", "action_head.action_type."),
    ("action_head.classes.", "action_head.class_head."),
    ("action_head.mode.", "action_head.mixture_head."),
    ("action_head.other.", "action_head.param_head."),
    ("action_head.aim.", "action_head.point_query_bias."),
    ("action_head.seen", "action_head.point_out"),
)


class CheckpointError(UserError):
    """A checkpoint that cannot be used."""


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its class name if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- writing ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces `path`, on an error it is removed and `path` stays."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)       # a killed run may have left one
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename is None:      # a full disk's own message names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically: an interrupted save leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(to_bytes(tensors, metadata))
        file.flush()
        os.fsync(file.fileno())     # the content must be on the disk before the name is, also in a power failure


def save(path: str | Path, meta: dict[str, Any], weights: Tensors, state: Any = None) -> None:
    """Write a checkpoint, and beside an inference checkpoint its .json file.

    `meta` is JSON data. `state` makes it a training state: dicts, lists, tensors, arrays and plain values.
    Raises OSError where it cannot write.
    """
    path = Path(path)
    tensors = {f"w.{name}": tensor for name, tensor in weights.items()}
    state_json = json.dumps(_flatten_tensors(state, tensors))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(path, tensors, {"format": FORMAT,
                                  "meta": json.dumps(meta, ensure_ascii=False),
                                  "state": state_json,
                                  "crc32": str(checksum(tensors))})
    if state is None:
        readable = {key: value for key, value in meta.items() if key != "model_config"}
        with atomic_write(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(readable, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# --- reading ----------------------------------------------------------------------------------------------------
def load(path: str | Path) -> tuple[dict[str, Any], Tensors, Any]:
    """Return (meta, weights, state); the state of an inference checkpoint is None.

    Raises CheckpointError if there is no checkpoint at `path`, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give a .pt file in it")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: train one with `python train_vlm.py vlm_tiny`, "
                              "or give a .pt file that train_vlm.py wrote")
    metadata, tensors = read_tensors(path)
    file_format = metadata.get("format")
    if file_format not in (FORMAT, OLD_FORMAT):
        raise CheckpointError(f"{path} is not a FlexibleWorld checkpoint (format {FORMAT!r})")
    try:
        if int(metadata["crc32"]) != checksum(tensors):
            raise CheckpointError(f"{path} is damaged: its checksum does not match; use an earlier one")
        meta = json.loads(metadata["meta"])
        weights = {name.removeprefix("w."): tensor for name, tensor in tensors.items() if name.startswith("w.")}
        state = _unflatten_tensors(json.loads(metadata["state"]), tensors)
        if file_format == FORMAT:
            return meta, weights, state
        if state is not None:
            raise CheckpointError(f"{path} is a training state of an older version: resume with that version, "
                                  "or use the run's vlm_best.pt, which still loads")
        return _convert_meta(meta), _convert_weights(weights), None
    except (KeyError, TypeError, json.JSONDecodeError):
        raise CheckpointError(f"{path} is damaged: its weights or its description are missing") from None


def read_tensors(path: str | Path) -> tuple[dict[str, str], Tensors]:
    """Return (metadata, tensors) of a safetensors file. Raises CheckpointError for another file; runs no code of it."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            start = file.read(2)
            # a zip archive (torch.save) or a pickle; only now, for a valid header may start with 0x80 too
            if start == b"PK" or start[:1] == b"\x80":
                raise CheckpointError(f"{path} is a pickle, which may contain code, or damaged; it was not run. "
                                      "Use a .pt file that train_vlm.py wrote: it is in safetensors format") from None
        raise CheckpointError(f"{path} is damaged or incomplete ({first_line(error)[:80]})") from None


def check_weights(own: Tensors, weights: Tensors, path: str | Path) -> None:
    """Raise CheckpointError if the `weights` from `path` do not fit a policy's `own` weights, or are not finite."""
    mismatched = sorted(set(own) ^ set(weights))
    mismatched = mismatched or [name for name in own if own[name].shape != weights[name].shape]
    if mismatched:
        raise CheckpointError(f"{path} has another architecture: {len(mismatched)} weights do not fit, "
                              f"the first is {mismatched[0]}")
    not_finite = next((name for name, tensor in weights.items() if not tensor.isfinite().all()), None)
    if not_finite:
        raise CheckpointError(f"{path} has weights that are not finite, as {not_finite}: use an earlier one")


def checksum(tensors: Tensors) -> int:
    """Return the CRC-32 of names and contents."""
    crc = 0
    for name in sorted(tensors):
        content = tensors[name].detach().reshape(-1).view(torch.uint8)
        crc = zlib.crc32(content.numpy(), zlib.crc32(name.encode(), crc))
    return crc


# --- format 2 ---------------------------------------------------------------------------------------------------
def _convert_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """Return the meta of a format-2 file with today's keys."""
    model_config = meta.pop("architecture")
    model_config["heads"]["goal_vocab"] = model_config["heads"].pop("words")
    model_config["config_files"] = model_config.pop("files")
    spec = model_config["spec"]
    if "uses" in spec:
        spec["used_params"] = spec.pop("uses")
        spec["xy_params"] = spec.pop("point")
    return {"model_config": model_config} | meta


def _convert_weights(weights: Tensors) -> Tensors:
    """Return the weights of a format-2 file under today's names."""
    converted = {}
    for name, tensor in weights.items():
        old, new = next((pair for pair in OLD_PARAMETERS if name.startswith(pair[0])), ("", ""))
        converted[new + name.removeprefix(old)] = tensor
    return converted


# --- nested data with tensors -----------------------------------------------------------------------------------
def _flatten_tensors(value: Any, tensors: Tensors) -> Any:
    """Return nested data as JSON data; its tensors and arrays go into `tensors`, under numbered names."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        name = f"s.{len(tensors)}"
        tensors[name] = torch.as_tensor(value).detach().cpu()
        return {"tensor": name, "array": isinstance(value, np.ndarray)}
    if isinstance(value, dict):
        return {"items": [[key, _flatten_tensors(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_flatten_tensors(item, tensors) for item in value]
    return value


def _unflatten_tensors(value: Any, tensors: Tensors) -> Any:
    """Return the nested data from which `_flatten_tensors` made `value`; tuples have become lists."""
    if isinstance(value, dict) and "tensor" in value:
        tensor = tensors[value["tensor"]]
        return tensor.numpy() if value["array"] else tensor
    if isinstance(value, dict):
        return {key: _unflatten_tensors(item, tensors) for key, item in value["items"]}
    if isinstance(value, list):
        return [_unflatten_tensors(item, tensors) for item in value]
    return value


# --- tensors that FSDP distributed over the processes -----------------------------------------------------------
def full_tensor(tensor: Any) -> Any:
    """Return all of a distributed tensor; any other value unchanged. Every process must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def distribute_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return `tensor`, distributed over the processes as `other` is."""
    if not hasattr(other, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
