"""Vision-language backbones: the interface, the registry, and `make_backbone`.

To add a backbone: subclass `VisionLanguageBackbone`, then register it under its `model_type`:

    register_backbone("my_vlm", "my_package.my_module:MyBackbone")
    backbone = make_backbone("path/to/a/model/folder")

The registry holds "module:Class" strings, so importing this package does not import transformers.
"""
import abc
import contextlib
import importlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

BACKBONES = {"qwen2_vl": "models.backbones.qwen2_vl:Qwen2VLBackbone"}  # {model_type of config.json: "module:Class"}


class Features(NamedTuple):
    """The output of a backbone. B samples, T text tokens, P patches, D `width`, D+E `patch_width`."""
    text: torch.Tensor          # [B,T,D] float32, hidden states of the tokens after the image, padded on the right
    last_index: torch.Tensor    # [B] int64, index in `text` of each sample's last token; padding follows it
    patches: torch.Tensor       # [B,P,D+E] float32, features of each patch of the image
    patch_xy: torch.Tensor      # [P,2] float32, patch centres (x, y) in [0, 1], the same for all samples


class VisionLanguageBackbone(nn.Module, abc.ABC):
    """The interface between a vision-language model and the policy.

    A subclass sets `name`, `width` and `patch_width`, and implements `from_pretrained`, `forward` and `encode_text`.
    Everything else has a default. Every parameter with `requires_grad` is trained and saved in checkpoints.
    """
    name: str                                       # hub name or folder of the base model
    width: int                                      # D, size of a text token's hidden state
    patch_width: int                                # D+E, size of a patch's features
    base_hash: str = ""                             # identifies the base weights; checkpoints compare it
    config_files: dict[str, str] | None = None      # {file name: text} if checkpoints must hold the base weights too
    lora: dict | None = None                        # {"r", "alpha", "dropout", "targets"} if adapters are trained
    bpe_dropout: float = 0.0                        # the policy sets it: fraction of places where words are split

    @classmethod
    @abc.abstractmethod
    def from_pretrained(cls, name: str | Path, **kwargs) -> "VisionLanguageBackbone":
        """Return the backbone of a hub name or local folder, with its weights.

        `kwargs` are `init_kwargs()` of a checkpoint, or the trainer's: dtype, lora, min_pixels, attention,
        load_in_4bit. Raises OSError with a one-line message if the model cannot be loaded.
        """

    @classmethod
    def from_files(cls, config_files: dict[str, str], name: str, **kwargs) -> "VisionLanguageBackbone":
        """Return the backbone that `config_files` describe, with random weights. `kwargs` may include `device`."""
        raise ValueError(f"{cls.__name__} does not support random weights")

    @abc.abstractmethod
    def forward(self, images: torch.Tensor, instructions: list[str]) -> Features:
        """Return the `Features` of images (uint8 [B,H,W,3]) and B instructions."""

    @abc.abstractmethod
    def encode_text(self, instructions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `text` [B,T,D] and `last_index` [B] as in `Features`, computed without images."""

    def cache_vision_features(self) -> contextlib.AbstractContextManager:
        """Return a context in which a frozen vision tower may reuse the features of an image. Default: no cache."""
        return contextlib.nullcontext()

    def gradient_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass to save memory. Raises ValueError if not supported."""
        raise ValueError(f"{type(self).__name__} does not support gradient checkpointing")

    def check_trainable(self) -> None:
        """Raise ValueError (one line) if the optimiser cannot train these weights. The trainer calls it first."""

    def resize_limits(self) -> tuple[int, int, int]:
        """Return (factor, min_pixels, max_pixels) of resized images.

        Both sides become multiples of `factor`, the area in pixels lies within the limits.
        """
        return 2, 4, 4096 * 4096

    def init_kwargs(self) -> dict:
        """Return the JSON-able kwargs with which `from_pretrained` or `from_files` builds this backbone again."""
        return {}

    @property
    def device(self) -> torch.device:
        """The device of the weights, where outputs are computed."""
        return next(self.parameters()).device


def register_backbone(model_type: str, path: str) -> None:
    """Register a backbone class as "module:Class" for a `model_type`, the key in the model's config.json."""
    BACKBONES[model_type] = path


def get_backbone_class(model_type: str) -> type[VisionLanguageBackbone]:
    """Return the backbone class of a `model_type`. Raises OSError (one line) if none is registered."""
    if model_type not in BACKBONES:
        raise OSError(f"no backbone is registered for model_type {model_type!r}: choose from {', '.join(BACKBONES)}, "
                      "or call models.backbones.register_backbone")
    module, name = BACKBONES[model_type].split(":")
    return getattr(importlib.import_module(module), name)


def make_backbone(name: str | Path, config_files: dict[str, str] | None = None, **kwargs) -> VisionLanguageBackbone:
    """Return the registered backbone of a hub name or folder, with its weights.

    With `config_files` {file name: text}, the weights are random. `kwargs`: see `from_pretrained`, `from_files`.
    Raises OSError with a one-line message if the model cannot be loaded or its `model_type` is not registered.
    """
    from models.backbones.hub_loading import read_model_type
    if config_files:
        model_type = json.loads(config_files["config.json"]).get("model_type")
        return get_backbone_class(model_type).from_files(config_files, str(name), **kwargs)
    return get_backbone_class(read_model_type(name)).from_pretrained(name, **kwargs)
