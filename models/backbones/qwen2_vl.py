"""Qwen2-VL (Wang et al. 2024, arXiv:2409.12191) as a `VisionLanguageBackbone`.

The weights and the numbers are those of transformers' Qwen2VLModel (checked in tests/test_qwen2_vl.py). The forward
pass computes only what the heads read: no vocabulary logits, one vision tower pass for all images of a batch (they have
one size), and the tokens that all prompts begin with only once.

Legend: B samples, H x W pixels, a grid of h x w patches, P = h * w, m x m patches merge into one image token,
S = P / m^2 image tokens, T text tokens after the image, L all tokens, D width of the language model,
E width of the vision tower.
"""
import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from models.backbones import Features, VisionLanguageBackbone, hub_loading
from models.backbones import qwen2_vl_vision as vision
from models.backbones.prompt import PromptEncoder

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MIN_PIXELS, DEFAULT_MAX_PIXELS = 56 * 56, 28 * 28 * 1280    # if the preprocessor's file has no limits
MIN_SHARED_PREFIX = 4       # tokens; a shorter prefix is not worth a cache
GROUP_SIZE = 16             # samples of similar length that a CPU runs together
Prefix = list[tuple[torch.Tensor, torch.Tensor]]        # keys and values [1,heads,tokens,d] of each layer


class Qwen2VLBackbone(VisionLanguageBackbone):
    """Qwen2-VL without its vocabulary head.

    Args:
        model: transformers' Qwen2VLModel.
        preprocessor: the contents of preprocessor_config.json.
        name: hub name or folder of the base model.
        lora: {"r", "alpha", "dropout", "targets"} of adapters in the language model (LoRA, Hu et al. 2021). All
            other weights are then frozen. None: all weights are trained.
        min_pixels: smaller images are enlarged to this area. 0: the preprocessor's own limit.
        config_files: the small files of the model folder if checkpoints hold all weights, else None.
    """

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", preprocessor: dict, name: str,
                 lora: dict | None = None, min_pixels: int = 0, config_files: dict[str, str] | None = None):
        super().__init__()
        self.name = name
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.lora = lora
        self.min_pixels = min_pixels
        self.config_files = config_files
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.load_in_4bit = getattr(model, "is_quantized", False)
        self.width = model.config.text_config.hidden_size
        self.patch_width = self.width + model.config.vision_config.embed_dim
        self.base_hash = hub_loading.compute_base_hash(model)
        self.model = add_lora(model, lora, name) if lora else model
        self.prompt_encoder = PromptEncoder(tokenizer)
        self._layout_cache = {}         # position ids, rotary embeddings and masks by their shapes
        self._feature_cache = None      # {image: (tokens [S,D], features [P,E], grid)} in cache_vision_features()

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: str = "auto", lora: dict | None = None, min_pixels: int = 0,
                        attention: str = "sdpa", load_in_4bit: bool = False) -> "Qwen2VLBackbone":
        """Return the backbone of a hub name or local folder, with its weights. Raises OSError (one line)."""
        loaded = hub_loading.load_pretrained(name, dtype, attention, load_in_4bit)
        return cls(*loaded, str(name), lora, min_pixels)

    @classmethod
    def from_files(cls, config_files: dict[str, str], name: str, dtype: str = "auto", lora: dict | None = None,
                   min_pixels: int = 0, attention: str = "sdpa",
                   device: str | torch.device = "cpu") -> "Qwen2VLBackbone":
        """Return the backbone that `config_files` describe, with random weights that follow from torch's seed.

        `config_files` come from `tiny.init_model_files` or `hub_loading.read_config_files`. `device` may be "meta".
        """
        built = hub_loading.build_model(config_files, dtype, attention, device)
        return cls(*built, name, lora, min_pixels, config_files)

    def init_kwargs(self) -> dict:
        """Return the kwargs with which `from_pretrained` or `from_files` builds this backbone again."""
        kwargs = {"lora": self.lora, "dtype": self.dtype, "min_pixels": self.min_pixels}
        return kwargs | {"load_in_4bit": True} if self.load_in_4bit else kwargs

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the activations inside the language model's layers in the backward pass, to save memory."""
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # 5.0 lacks the argument's new name
            self.vlm.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    def check_trainable(self) -> None:
        """Raise ValueError if the whole backbone would be trained in half precision.

        Without a float32 copy of the weights, an update below half a unit in the last place is lost: at lr 2e-5 in
        bfloat16, ten updates change 28 % of the language layers' weights and none of the norms'.
        """
        if not self.lora and self.dtype in ("bfloat16", "float16"):
            raise ValueError(f"{self.dtype} weights lose small updates: train the whole backbone in float32 "
                             "(model.vlm.dtype:=float32), or use LoRA (model.vlm.use_lora=True)")

    @property
    def vlm(self) -> "PreTrainedModel":
        """transformers' Qwen2VLModel, with or without adapters in it."""
        return self.model.base_model.model if self.lora else self.model

    @property
    def merge_size(self) -> int:
        """m: m x m patches merge into one image token."""
        return self.vlm.config.vision_config.spatial_merge_size

    def forward(self, images: torch.Tensor, instructions: list[str]) -> Features:
        """Return the `Features` of images (uint8 [B,H,W,3]) and B instructions."""
        tokens, features, (h, w) = self.encode_image(images)                    # [B,S,D], [B,P,E]
        m = self.merge_size
        text, last_index, image_hidden = self._encode_batch(tokens, instructions, (h // m, w // m))
        return Features(text, last_index, vision.patch_features(image_hidden, features),
                        vision.patch_centers(h, w, m, self.device))

    def encode_text(self, instructions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return text [B,T,D] and last_index [B] as `forward` does, computed without images."""
        no_image = torch.zeros(len(instructions), 0, self.width, device=self.device)
        text, last_index, _ = self._encode_batch(no_image, instructions, (0, 0))
        return text, last_index

    def prompt(self, instruction: str) -> tuple[list[int], list[int]]:
        """Return the token ids before and after the image's tokens. BPE-dropout applies in training mode only."""
        return self.prompt_encoder.encode(instruction, self.bpe_dropout if self.training else 0.0)

    # --- the image --------------------------------------------------------------------------------------------
    def resize_limits(self) -> tuple[int, int, int]:
        """Return (factor, min_pixels, max_pixels): both sides are multiples of `factor`, the limits are areas."""
        settings = self.preprocessor
        size = settings.get("size") or {}       # the hub's files have either `size` or `min_pixels` and `max_pixels`
        low = self.min_pixels or settings.get("min_pixels") or size.get("shortest_edge") or DEFAULT_MIN_PIXELS
        high = settings.get("max_pixels") or size.get("longest_edge") or DEFAULT_MAX_PIXELS
        return self.vlm.config.vision_config.patch_size * self.merge_size, low, max(low, high)

    def pixels(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the normalised patches [B,P,3*p*p] of images (uint8 [B,H,W,3]), and their grid (h, w)."""
        p = self.vlm.config.vision_config.patch_size
        height, width = vision.smart_resize(*images.shape[1:3], *self.resize_limits())
        x = images.permute(0, 3, 1, 2)                                          # [B,3,H,W]
        x = vision.resize(x, height, width).to(self.device)
        x = vision.normalize(x, self.preprocessor["image_mean"], self.preprocessor["image_std"])
        return vision.split_into_patches(x, p, self.merge_size), (height // p, width // p)

    def run_vision_tower(self, patches: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image tokens [B,S,D] of patches [B,P,3*p*p], and the patches' features [B,P,E]."""
        tower = self.vlm.visual
        head_width = self.vlm.config.vision_config.embed_dim // vision.num_heads(tower)
        key = "rotary", grid, patches.device
        if key not in self._layout_cache:
            self._layout_cache[key] = vision.rotary_embedding(*grid, self.merge_size, head_width, patches.device)
        return vision.run_vision_tower(tower, patches, self._layout_cache[key])

    @contextlib.contextmanager
    def cache_vision_features(self) -> Iterator[None]:
        """Within this context a frozen vision tower runs once per image: its output is kept on the device.

        Use it around a rollout and the PPO epochs on it. A vision tower that is trained gets no cache.
        """
        self._feature_cache = {} if self.lora else None
        try:
            yield
        finally:
            self._feature_cache = None

    def encode_image(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        """Return image tokens [B,S,D], patch features [B,P,E] and the grid (h, w) of images (uint8 [B,H,W,3])."""
        if self._feature_cache is None:
            return self._compute_image_features(images)
        cache = self._feature_cache
        keys = [(image.shape, image.tobytes()) for image in images.cpu().numpy()]
        new = {key: i for i, key in enumerate(keys) if key not in cache}
        if new:
            new_tokens, new_features, grid = self._compute_image_features(images[list(new.values())])
            for key, tokens, features in zip(new, new_tokens, new_features, strict=True):
                cache[key] = tokens, features, grid
        tokens, features, grids = zip(*(cache[key] for key in keys), strict=True)
        return torch.stack(tokens), torch.stack(features), grids[0]

    def _compute_image_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
        patches, grid = self.pixels(images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.lora):
            tokens, features = self.run_vision_tower(patches, grid)
        return tokens, features, grid

    # --- the language model -----------------------------------------------------------------------------------
    def _encode_batch(self, image: torch.Tensor, instructions: list[str],
                      token_grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return text [B,T,D], last_index [B] and the image tokens' hidden states [B,S,D].

        `image` are the image tokens [B,S,D] of a grid (h/m, w/m).
        """
        if self.training and torch.is_grad_enabled():
            self.check_trainable()
        prompts = [self.prompt(instruction) for instruction in instructions]
        before_image = prompts[0][0]
        texts = [after_image for _, after_image in prompts]
        longest = max(map(len, texts))
        prefix = self._prefix_kv_cache(before_image, len(texts))
        # samples of similar length run together, which saves padding; a GPU is faster with all at once
        order = np.argsort([len(text) for text in texts], kind="stable")
        num_groups = max(1, len(order) // GROUP_SIZE) if self.device.type == "cpu" else 1
        text_parts, image_parts = [], []
        for group in np.array_split(order, num_groups):
            group_image = image[torch.from_numpy(group).to(self.device)]
            group_texts = [texts[i] for i in group]
            text, image_hidden = self._run_language_model(before_image, prefix, group_image, group_texts, token_grid)
            text_parts.append(F.pad(text, (0, 0, 0, longest - text.shape[1])))      # [b,T,D]
            image_parts.append(image_hidden)                                        # [b,S,D]
        original_order = torch.from_numpy(np.argsort(order)).to(self.device)
        last_index = torch.tensor([len(text) - 1 for text in texts], device=self.device)
        return torch.cat(text_parts)[original_order], last_index, torch.cat(image_parts)[original_order]

    def _prefix_kv_cache(self, before_image: list[int], batch_size: int) -> Prefix | None:
        """Return keys and values of the tokens before the image, or None if computing them once does not pay.

        These tokens attend to neither image nor instruction, so they are the same for all samples.
        """
        model = self.vlm.language_model
        # transformers' checkpointed layers ignore a cache in training mode, with or without gradients
        recompute = model.training and any(getattr(layer, "gradient_checkpointing", False) for layer in model.layers)
        if batch_size == 1 or len(before_image) < MIN_SHARED_PREFIX or recompute:
            return None
        from transformers import DynamicCache
        cache = DynamicCache()
        ids = torch.tensor([before_image], device=self.device)                              # [1,prefix]
        positions = torch.arange(len(before_image), device=self.device).expand(3, 1, -1)    # [3,1,prefix]
        model(inputs_embeds=self.vlm.get_input_embeddings()(ids), use_cache=True, past_key_values=cache,
              attention_mask=self.causal_mask(0, 0, ids), position_ids=positions)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _run_language_model(self, before_image: list[int], prefix: Prefix | None, image: torch.Tensor,
                            texts: list[list[int]], token_grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states of B texts [B,T,D] and of their image tokens [B,S,D], float32.

        Every sample is: the token ids `before_image`, the image tokens `image` [B,S,D], one of the `texts` of token
        ids. With a `prefix` the first part is read from its keys and values.
        """
        start, batch_size, num_image = len(before_image), len(texts), image.shape[1]
        embed = self.vlm.get_input_embeddings()
        text_embeds = embed(pad_right(texts).to(image.device))                              # [B,T,D]
        embeds = torch.cat([image.to(text_embeds.dtype), text_embeds], 1)                   # [B,S+T,D]
        num_new = embeds.shape[1]
        positions = self.position_ids(start, token_grid, start + num_new, image.device)     # [3,1,L]
        positions = positions.expand(-1, batch_size, -1)                                    # [3,B,L]
        if prefix is None:
            prefix_embeds = embed(torch.tensor(before_image, device=image.device)).expand(batch_size, -1, -1)
            output = self.vlm.language_model(
                inputs_embeds=torch.cat([prefix_embeds, embeds], 1), position_ids=positions, use_cache=False,
                attention_mask=self.causal_mask(0, 0, embeds))
        else:
            output = self.vlm.language_model(
                inputs_embeds=embeds, position_ids=positions[..., start:], use_cache=True,
                past_key_values=expand_prefix(prefix, batch_size),
                attention_mask=self.causal_mask(start, num_new, embeds))
        hidden = output.last_hidden_state[:, -num_new:].float()                             # [B,S+T,D]
        return hidden[:, num_image:], hidden[:, :num_image]

    def position_ids(self, start: int, token_grid: tuple[int, int], length: int,
                     device: torch.device) -> torch.Tensor:
        """Return M-RoPE position ids (time, row, column), int64 [3,1,L] (Qwen2-VL, sec. 2.1).

        The L tokens are `start` text tokens, an image of `token_grid` (rows, columns), and text.
        """
        key = "positions", start, token_grid, length, device
        if key not in self._layout_cache:
            h, w = token_grid
            before = torch.arange(start).expand(3, -1)
            rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            time = torch.zeros(h, w, dtype=torch.long)
            image = torch.stack([time, rows, columns]).flatten(1) + start                   # [3,S]
            after = torch.arange(length - start - h * w).expand(3, -1) + start + max(h, w)
            self._layout_cache[key] = torch.cat([before, image, after], 1)[:, None].to(device)
        return self._layout_cache[key]

    def causal_mask(self, start: int, length: int, embeds: torch.Tensor) -> dict[str, torch.Tensor | None] | None:
        """Return the attention mask of transformers' language model: `length` tokens that follow `start` cached ones.

        With `start` 0 the model makes its own causal mask. Padding needs no mask: it follows all tokens that are read.
        """
        attention = self.vlm.config._attn_implementation
        if attention == "eager" and not start:
            return None
        if not start or attention == "flash_attention_2":
            return {"full_attention": None}
        key = "mask", start, length, embeds.dtype, embeds.device
        if key not in self._layout_cache:
            hidden = torch.ones(length, start + length, dtype=torch.bool).triu(start + 1)
            mask = torch.zeros(hidden.shape, dtype=embeds.dtype).masked_fill(hidden, torch.finfo(embeds.dtype).min)
            self._layout_cache[key] = mask[None, None].to(embeds.device)                    # [1,1,length,L]
        return {"full_attention": self._layout_cache[key]}

    patch_features = staticmethod(vision.patch_features)
    patch_centers = staticmethod(vision.patch_centers)


def add_lora(model: "PreTrainedModel", lora: dict, name: str) -> "PreTrainedModel":
    """Return `model`, frozen, with LoRA adapters in its language model, as a PeftModel."""
    from peft import LoraConfig, get_peft_model
    model.requires_grad_(False)
    model.name_or_path = name       # peft writes it into adapter_config.json
    config = LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"],
                        target_modules=r".*language_model.*\.(" + "|".join(lora["targets"]) + ")")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):      # peft calls a deprecated function
        return get_peft_model(model, config)


def pad_right(texts: list[list[int]]) -> torch.Tensor:
    """Return lists of token ids as int64 [B,T], padded with zeros."""
    padded = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, ids in zip(padded, texts, strict=True):
        row[:len(ids)] = ids
    return torch.from_numpy(padded)


def expand_prefix(prefix: Prefix, batch_size: int) -> "DynamicCache":
    """Return a cache of `batch_size` samples that all begin with `prefix`."""
    from transformers import DynamicCache
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix):
        cache.update(keys.expand(batch_size, -1, -1, -1), values.expand(batch_size, -1, -1, -1), layer)
    return cache


