"""Load base models from the Hugging Face hub or a folder, or build them with random weights.

Every error of a model that cannot be loaded is an OSError with a one-line message.
"""
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from models.backbones import get_backbone_class
from models.checkpoint import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REQUIRED_FILES = ("config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")     # one of them is enough
HUB_TIMEOUT_S = 10


def is_cached(name: str, agent: bool = False) -> bool:
    """Return whether the hub cache holds all weights of a model, or of an `agent`. A download may be incomplete."""
    from huggingface_hub import try_to_load_from_cache

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file), str)

    if agent:
        return has("policy.pt") and (has("adapter_model.safetensors") or not has("adapter_config.json"))
    index = "model.safetensors.index.json"
    weight_files = ["model.safetensors"]
    if has(index):
        weight_files = json.loads(Path(try_to_load_from_cache(name, index)).read_text())["weight_map"].values()
    return has("config.json") and all(map(has, weight_files))


def check_model_folder(folder: Path) -> None:
    """Raise OSError if a local model folder lacks one of its small files."""
    present = {path.name for path in folder.iterdir()}
    missing = sorted(set(REQUIRED_FILES) - present)
    if not present & set(TOKENIZER_FILES):
        missing.append(TOKENIZER_FILES[0])
    if missing:
        raise OSError(f"the folder has no {missing[0]}")


def resolve_hub_kwargs(name: str | Path, agent: bool = False) -> dict:
    """Return the keyword arguments with which `from_pretrained` reads a hub name or a local folder.

    Raises OSError at once if neither can be read. Without a network, transformers alone would retry for a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    if Path(name).is_file():
        raise OSError("a file, not a model's folder")
    if Path(name).is_dir():
        check_model_folder(Path(name))
        return {}
    try:
        if is_cached(name, agent):
            return {"local_files_only": True}
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
        return {}
    except HFValidationError:
        raise OSError("no such folder") from None
    except RepositoryNotFoundError:
        raise OSError("no such model on the hub, or it requires a token: run `hf auth login`") from None
    except Exception as error:      # without a network, the hub client raises errors of many kinds
        raise OSError(f"not in the cache, and the hub cannot be reached: {first_line(error)[:80]}") from None


def read_config_files(folder: str | Path) -> dict[str, str]:
    """Return the texts of all files in a model folder but the weights, {file name: text}."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())
            if path.suffix in (".json", ".jinja", ".txt") and ".index." not in path.name}


def read_model_type(name: str | Path, hub_kwargs: dict | None = None) -> str | None:
    """Return the `model_type` in the config.json of a hub name or folder. Raises OSError if it cannot be read.

    `hub_kwargs` come from `resolve_hub_kwargs`, which is called if they are not given.
    """
    from transformers import PreTrainedConfig
    hub_kwargs = resolve_hub_kwargs(name) if hub_kwargs is None else hub_kwargs
    return PreTrainedConfig.get_config_dict(name, **hub_kwargs)[0].get("model_type")


def build_model(config_files: dict[str, str], dtype: str = "auto", attention: str = "sdpa",
                device: str | torch.device = "cpu") -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", dict]:
    """Return (model with random weights, tokenizer, preprocessor settings) that `config_files` describe.

    `config_files` come from `tiny.init_model_files` or `read_config_files`. The weights follow from torch's seed.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    with tempfile.TemporaryDirectory() as folder:
        for file, text in config_files.items():
            Path(folder, Path(file).name).write_text(text, encoding="utf-8")
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    torch_dtype = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    with torch.device(device):
        model = AutoModel.from_config(config, dtype=torch_dtype, attn_implementation=attention)
    return model, tokenizer, json.loads(config_files["preprocessor_config.json"])


def load_pretrained(name: str | Path, dtype: str = "auto", attention: str = "sdpa", load_in_4bit: bool = False,
                    with_lm_head: bool = False) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", dict]:
    """Return (model, tokenizer, preprocessor settings) of a hub name or folder.

    `with_lm_head`: the model can generate text. `load_in_4bit`: NF4 weights but for the vision tower (QLoRA, Dettmers
    et al. 2023). Raises OSError if the model cannot be read, lacks weights, or its `model_type` is not registered.
    """
    from transformers import AutoTokenizer
    from transformers.image_processing_base import ImageProcessingMixin
    hub_kwargs = resolve_hub_kwargs(name)
    get_backbone_class(read_model_type(name, hub_kwargs))       # refuses a type that the policy cannot use
    preprocessor, _ = ImageProcessingMixin.get_image_processor_dict(name, **hub_kwargs)
    tokenizer = AutoTokenizer.from_pretrained(name, **hub_kwargs)
    kwargs = {"dtype": dtype, "attn_implementation": attention} | hub_kwargs
    if load_in_4bit:
        kwargs["quantization_config"] = _nf4_config()
    return _load_weights(name, with_lm_head, kwargs), tokenizer, preprocessor


def _nf4_config():
    from transformers import BitsAndBytesConfig
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
                              llm_int8_skip_modules=["visual"])


def _load_weights(name: str | Path, with_lm_head: bool, kwargs: dict) -> "PreTrainedModel":
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForImageTextToText
    model_class = AutoModelForImageTextToText if with_lm_head else AutoModel
    try:
        model, info = model_class.from_pretrained(
            name, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise OSError(f"its weights are damaged or cut short: {first_line(error)[:80]}") from None
    # transformers fills missing and mismatched weights with random numbers
    wrong = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if wrong:
        raise OSError(f"{len(wrong)} of its weights are missing or do not fit its config.json, such as {wrong[0]}")
    return model


def compute_base_hash(model: nn.Module) -> str:
    """Return 16 hex digits that identify a base model however it was loaded, "" on the meta device.

    It hashes the first token embeddings and the norms, rounded to bfloat16: no quantisation changes these.
    """
    parts = {name: parameter[:16] for name, parameter in model.named_parameters()
             if name.endswith("embed_tokens.weight") or "norm" in name.rsplit(".", 2)[-2]}
    if any(part.is_meta for part in parts.values()):
        return ""
    shapes = str([(name, tuple(part.shape)) for name, part in parts.items()])
    digest = hashlib.sha256(shapes.encode())
    for part in parts.values():
        digest.update(part.detach().bfloat16().cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
