"""Checkpoints: safetensors files, whatever they are called; tensors and JSON, never code.

In the header of the file stands `meta`, JSON that says what made the weights, and a checksum; the same JSON lies beside
a file to act from, for people to read. A file to resume from holds a `state` too: nested plain data with tensors in it.
"""
import contextlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

FORMAT = "flexibleworld-3"
# The words of format 2, whose inference checkpoints still load: parameters by a part of their names, in this order.
OLD_PARAMETERS = (
    ("reading_head.where.", "parser_head.token_query."), ("reading_head.goal.", "parser_head.slot_head."),
    ("reading_head.plan.", "parser_head.plan_head."), ("action_head.query.", "action_head.point_query."),
    ("action_head.glance.", "action_head.query."), ("action_head.look.", "action_head.value_proj."),
    ("action_head.join.", "action_head.fuse."), ("action_head.place.", "action_head.pos_embed."),
    ("action_head.key.", "action_head.key_proj."), ("action_head.due.", "action_head.subgoal."),
    ("action_head.kind.", "action_head.action_type."), ("action_head.classes.", "action_head.class_head."),
    ("action_head.mode.", "action_head.mixture_head."), ("action_head.other.", "action_head.param_head."),
    ("action_head.aim.", "action_head.point_query_bias."), ("action_head.seen", "action_head.point_out"),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line for the person who named it."""


def first_line(error):
    """What an exception says, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def atomic_write(path):
    """A temporary name to write to; what is there at the end takes the place of `path`, and nothing is left behind."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)       # a killed run may have left one
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path, tensors, metadata):
    """A safetensors file, written atomically: a killed save leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(to_bytes(tensors, metadata))
        file.flush()
        os.fsync(file.fileno())     # so that the name never stands for less than the whole, also where the power fails


def save(path, meta, weights, state=None):
    """Writes `weights` {name: tensor} and `meta`, JSON-able; `state`: dicts, lists, tensors, arrays, plain values."""
    path, tensors = Path(path), {f"w.{name}": tensor for name, tensor in weights.items()}
    plain = json.dumps(_flatten_tensors(state, tensors))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_tensors(path, tensors, {"format": FORMAT, "meta": json.dumps(meta, ensure_ascii=False), "state": plain,
                                  "crc32": str(checksum(tensors))})
    if state is None:
        readable = {key: value for key, value in meta.items() if key != "model_config"}
        with atomic_write(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(readable, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load(path):
    """-> (meta dict, weights, state or None). CheckpointError in one line if that is not to be had."""
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: name the .pt file in it")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: train one with `python train_vlm.py vlm_tiny`, "
                              "or name a .pt file that train_vlm.py wrote")
    metadata, tensors = read_tensors(path)
    if metadata.get("format") not in (FORMAT, "flexibleworld-2"):
        raise CheckpointError(f"{path} is not a FlexibleWorld checkpoint (format {FORMAT!r})")
    try:
        if int(metadata["crc32"]) != checksum(tensors):
            raise CheckpointError(f"{path} is damaged: its checksum does not fit; use an earlier one")
        weights = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("w.")}
        meta, state = json.loads(metadata["meta"]), _unflatten_tensors(json.loads(metadata["state"]), tensors)
        return (meta, weights, state) if metadata["format"] == FORMAT else _upgrade(path, meta, weights, state)
    except (KeyError, TypeError, json.JSONDecodeError):
        raise CheckpointError(f"{path} is damaged: it lacks its weights or its description") from None


def _upgrade(path, meta, weights, state):
    """What a file of format 2 holds, in today's words; a training state of that format is refused."""
    if state is not None:
        raise CheckpointError(f"{path} is a training state of an older version: its vlm_best.pt still loads, "
                              "to resume use the version that wrote it")
    model_config = meta.pop("architecture")
    model_config["heads"]["goal_vocab"] = model_config["heads"].pop("words")
    spec = model_config["spec"]
    if "uses" in spec:
        spec["used_params"], spec["xy_params"] = spec.pop("uses"), spec.pop("point")
    model_config["config_files"] = model_config.pop("files")
    renamed = {}
    for name, tensor in weights.items():
        old, new = next((pair for pair in OLD_PARAMETERS if name.startswith(pair[0])), ("", ""))
        renamed[new + name[len(old):]] = tensor
    return {"model_config": model_config} | meta, renamed, None


def read_tensors(path):
    """A safetensors file -> (metadata, {name: tensor}); CheckpointError for anything else, of which nothing is run."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            start = file.read(2)
            if start == b"PK" or start[:1] == b"\x80":       # what safetensors' own header begins with now and then
                raise CheckpointError(f"{path} is a pickle, which can hold code, or damaged; nothing in it was run. "
                                      "Use a .pt file that train_vlm.py wrote: those are safetensors inside") from None
        raise CheckpointError(f"{path} is damaged or cut short ({first_line(error)[:80]})") from None


def checksum(tensors):
    """CRC-32 of {name: tensor}."""
    crc = 0
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1).view(torch.uint8)
        crc = zlib.crc32(flat.numpy(), zlib.crc32(name.encode(), crc))
    return crc


def _flatten_tensors(value, tensors):
    """JSON of nested plain data; its tensors and arrays go to `tensors`, under numbered names."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        name = f"s.{len(tensors)}"
        tensors[name] = torch.as_tensor(value).detach().cpu()
        return {"tensor": name, "array": isinstance(value, np.ndarray)}
    if isinstance(value, dict):
        return {"items": [[key, _flatten_tensors(item, tensors)] for key, item in value.items()]}
    return [_flatten_tensors(item, tensors) for item in value] if isinstance(value, (list, tuple)) else value


def _unflatten_tensors(value, tensors):
    if isinstance(value, dict) and "tensor" in value:
        tensor = tensors[value["tensor"]]
        return tensor.numpy() if value["array"] else tensor
    if isinstance(value, dict):
        return {key: _unflatten_tensors(item, tensors) for key, item in value["items"]}
    return [_unflatten_tensors(item, tensors) for item in value] if isinstance(value, list) else value
