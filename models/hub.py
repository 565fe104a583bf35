"""The Hugging Face hub: folders with adapters, other trained weights and a model card; the base model of a policy."""
from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from config import UserError
from models.backbones import VisionLanguageBackbone, make_backbone
from models.checkpoint import CheckpointError, atomic_write, checksum, first_line, load, read_tensors, save

if TYPE_CHECKING:
    from models.vlm_policy import VLMPolicy

ADAPTERS_FILE = "adapter_model.safetensors"     # peft's name
POLICY_FILE = "policy.pt"
PREFIX = "backbone.model."                      # what the policy's names have before peft's


def save_pretrained(policy: VLMPolicy, folder: str | Path, meta: dict[str, Any] | None = None, results: str = "",
                    weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write a folder that `VLMPolicy.from_pretrained` loads.

    It holds the adapters in peft's format (adapter_config.json, adapter_model.safetensors), all other trained weights
    (policy.pt, policy.json) and a model card with the measured `results`, which are Markdown. Other files of an
    existing folder stay. `weights` are by default those of the policy. Raises OSError where it cannot write.
    """
    folder = Path(folder)
    meta = {"model_config": policy.model_config()} | (meta or getattr(policy, "meta", {}))
    weights = dict(weights or policy.trainable_state_dict())
    adapters = {name: weights.pop(name) for name in list(weights) if ".lora_" in name}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        if adapters:
            peft_weights = {name.removeprefix(PREFIX): tensor for name, tensor in adapters.items()}
            policy.backbone.model.save_pretrained(temporary, save_embedding_layers=False, state_dict=peft_weights)
        Path(temporary, "README.md").write_text(model_card(meta, results), encoding="utf-8")
        for source in Path(temporary).iterdir():
            with atomic_write(folder / source.name) as target:
                target.write_bytes(source.read_bytes())
    # written last, with the checksum of its adapters: `read_folder` then notices an interrupted save
    save(folder / POLICY_FILE, meta | {"adapters": checksum(adapters)}, weights)


def push_to_hub(policy: VLMPolicy, repo_id: str, private: bool = False, **kwargs: Any) -> str:
    """Upload the folder of `save_pretrained`, with its arguments `kwargs`, to the hub; return the repository's URL."""
    from huggingface_hub import HfApi
    api = HfApi()
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "policy"
        save_pretrained(policy, folder, **kwargs)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(url)


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (meta, weights) of a folder from `save_pretrained`. Raises CheckpointError for any other folder."""
    folder = Path(folder)
    if not (folder / POLICY_FILE).is_file():
        raise CheckpointError(f"{folder} is a folder without {POLICY_FILE}: give a .pt file, or a folder that "
                              "save_pretrained wrote")
    meta, weights, _ = load(folder / POLICY_FILE)
    if meta.get("model_config", {}).get("backbone", {}).get("lora"):
        _, adapters = read_tensors(folder / ADAPTERS_FILE)
        # peft leaves out the adapter's name, "default"
        adapters = {PREFIX + name.replace(".weight", ".default.weight"): tensor for name, tensor in adapters.items()}
        if meta.get("adapters") != checksum(adapters):
            raise CheckpointError(f"{folder} has the adapters of another agent, or was saved in part: save it again")
        weights |= adapters
    return meta, weights


def load_backbone(config: dict[str, Any], base_model: str | Path | None = None) -> VisionLanguageBackbone:
    """Return the backbone of a policy's `model_config()`; `base_model` is its folder or hub name if it moved.

    Raises CheckpointError if it is not the one that the policy was trained on, or cannot be loaded.
    """
    try:
        return _load_backbone(config, base_model)
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:
        name = str(base_model or config["base"])
        raise CheckpointError(f"needs its base model {name!r}, which cannot be loaded ({first_line(error)}): "
                              "give its folder or hub name as `base_model`") from None


def _load_backbone(config: dict[str, Any], base_model: str | Path | None) -> VisionLanguageBackbone:
    if config["config_files"]:
        if base_model:
            raise CheckpointError("has its own base model: leave out the other one")
        return make_backbone(config["base"], config["config_files"], **config["backbone"])
    backbone = make_backbone(base_model or config["base"], **config["backbone"])
    if backbone.base_hash != config["base_hash"]:
        raise CheckpointError(f"was trained on the base model {config['base']!r} ({config['base_hash']}), "
                              f"not on {backbone.name!r} ({backbone.base_hash}): give the folder of the first")
    return backbone


def model_card(meta: dict[str, Any], results: str = "") -> str:
    """Return the README.md of a folder for the hub: Markdown with a JSON header."""
    model_config = meta["model_config"]
    base_model = model_config["base"]
    has_base_elsewhere = not model_config["config_files"]
    is_adapter = model_config["backbone"].get("lora") and has_base_elsewhere
    header = {"base_model": base_model, "library_name": "peft"} if is_adapter else {}
    header |= {"pipeline_tag": "robotics", "tags": ["flexibleworld", "qwen2_vl", "reinforcement-learning"]}
    training = {key: value for key, value in meta.items() if key not in ("model_config", "results")}
    return CARD.format(header=json.dumps(header, ensure_ascii=False, indent=1),
                       base_model=base_model,
                       num_slots=len(model_config["heads"]["goal_vocab"]),
                       peft=PEFT_EXAMPLE.format(base_model=base_model) if is_adapter else "",
                       results=results.strip() or "Not measured.",
                       training=json.dumps(training, ensure_ascii=False, indent=1))


CARD = """---
{header}
---
# A policy that follows instructions

A vision-language model, {base_model}, with action and value heads, trained by FlexibleWorld. It reads instructions in
Korean and English. Its goal vocabulary has {num_slots} slots.

    from models.vlm_policy import VLMPolicy
    policy = VLMPolicy.from_pretrained("THIS FOLDER")
    actions, log_probs, output = policy.sample_action([image], ["move everything to the left"])
{peft}
## Results

{results}

## Training

```json
{training}
```
"""
PEFT_EXAMPLE = """
The adapters alone, with peft:

    from peft import PeftModel
    from transformers import Qwen2VLModel
    model = PeftModel.from_pretrained(Qwen2VLModel.from_pretrained("{base_model}"), "THIS FOLDER")
"""
