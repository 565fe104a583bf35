"""Qwen2-VL behind one small interface: a batch of pictures and sentences in, hidden states out.

The forward pass computes what the heads read and nothing else: no vocabulary logits, the vision tower once for
the whole batch (all pictures of a batch have one size), prompt tokens and position ids once per layout. The
weights and the numbers are those of transformers' own Qwen2VLModel (checked in tests/test_qwen2_vl.py).

Legend: B samples, H W image, P patches of a picture, S = P / merge^2 image tokens, L tokens, D hidden size,
E width of the vision tower.
"""
import contextlib
import itertools
import math
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.backbones import hub_loading as base_model
from models.backbones.hub_loading import CHAT_TEMPLATE, IMAGE


def smart_resize(height, width, factor, min_pixels, max_pixels):
    """The size Qwen2-VL sees: multiples of `factor`, area within bounds, aspect ratio kept (Qwen2-VL, sec. 2.1)."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"images must be no more than 200 times as long as wide, not {height} x {width}")
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(side / scale / factor) * factor) for side in (height, width))
    elif h * w < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * scale / factor) * factor for side in (height, width))
    return h, w


def _rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Backbone(nn.Module):
    """forward(images uint8 [B,H,W,3], goals: B strings) -> text [B,T,D], ends [B], image [B,P,D+E], centres [P,2].

    `text` are the hidden states of the tokens that follow the picture, float32, of sample b those up to `ends[b]`, its
    last one; what comes after it is padding. `image` tells of each patch the hidden state of its image
    token and its own features in the vision tower before m*m patches are merged into that token, where things side
    by side become hard to tell apart; `centres` where in the picture the patches lie (x, y in [0, 1]).

    `lora` {"r", "alpha", "dropout", "targets"} puts adapters into the language model; everything else is then frozen.
    `min_pixels`: smaller pictures are enlarged to this area (0: what the model's own preprocessor says).
    `files` are the model folder's small files where the weights are this run's own, and None where they come from
    elsewhere: from the hub or folder `name`.
    """

    def __init__(self, model, tokenizer, preprocessor, name, lora=None, min_pixels=0, config_files=None):
        super().__init__()
        self.name, self.tokenizer, self.lora, self.config_files = name, tokenizer, lora, config_files
        self.min_pixels, self.preprocessor = min_pixels, preprocessor
        self.dtype, self.load_in_4bit = str(model.dtype).removeprefix("torch."), getattr(model, "is_quantized", False)
        self.width = model.config.text_config.hidden_size
        self.patch_width = self.width + model.config.vision_config.embed_dim
        self.base_hash = base_model.compute_base_hash(model)
        if lora:
            from peft import LoraConfig, get_peft_model
            model.requires_grad_(False)
            model.name_or_path = name       # what the adapters' own files call their base
            targets = r".*language_model.*\.(" + "|".join(lora["targets"]) + ")"
            with warnings.catch_warnings(action="ignore", category=FutureWarning):      # between peft and transformers
                model = get_peft_model(model, LoraConfig(r=lora["r"], lora_alpha=lora["alpha"],
                                                         lora_dropout=lora["dropout"], target_modules=targets))
        self.model = model
        self._tokens, self._layouts, self._feature_cache, self.bpe_dropout = {}, {}, None, 0.0

    @classmethod
    def from_pretrained(cls, name, dtype="auto", lora=None, min_pixels=0, attention="sdpa", load_in_4bit=False):
        """From a hub name or a local folder, weights included. OSError where neither has it, at once."""
        return cls(*base_model.load_pretrained(name, dtype, attention, load_in_4bit), str(name), lora, min_pixels)

    @classmethod
    def from_files(cls, config_files, name, dtype="auto", lora=None, min_pixels=0, attention="sdpa", device="cpu"):
        """From the texts of a model folder's small files (`base_model.small_files`), without weights: random ones,
        which follow from torch's seed. `device` may be "meta"."""
        return cls(*base_model.build_model(config_files, dtype, attention, device), name, lora, min_pixels, config_files)

    def init_kwargs(self):
        """What `from_pretrained` or `from_files` is to be told to build the same again."""
        return {"lora": self.lora, "dtype": self.dtype, "min_pixels": self.min_pixels} | (
            {"load_in_4bit": True} if self.load_in_4bit else {})

    def gradient_checkpointing_enable(self):
        """Keeps no activations inside the language model's layers and computes them again in the backward pass."""
        with warnings.catch_warnings(action="ignore", category=FutureWarning):      # its next name is too new for 5.0
            self.vlm.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def vlm(self):
        """transformers' Qwen2VLModel itself, with or without adapters in it."""
        return self.model.base_model.model if self.lora else self.model

    # --- the prompt -------------------------------------------------------------------------------------------
    def prompt(self, goal):
        """Token ids before and after the picture's tokens, for one goal.

        With `subword_dropout` and in training mode words are cut into other pieces each time, at this share of their
        characters: unknown and misspelt ones are then less of a surprise (the idea of BPE-dropout, Provilkov et al.
        2020, arXiv:1910.13267, with torch's random numbers)."""
        if goal not in self._tokens:
            messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": goal}]}]
            template = self.tokenizer.chat_template or CHAT_TEMPLATE
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True)
            before, after = text.split(IMAGE, 1)
            encode = lambda part: self.tokenizer(part, add_special_tokens=False)["input_ids"]  # noqa: E731
            if len(self._tokens) > 20_000:
                self._tokens.clear()
            start, _, end = after.partition(goal) if goal else (after, "", "")
            self._tokens[goal] = encode(before), encode(after), encode(start), encode(end)
        before, after, start, end = self._tokens[goal]
        if self.bpe_dropout and self.training:
            after = [*start, *self._bpe_dropout(goal), *end]
        return before, after

    def _bpe_dropout(self, text):
        """Token ids of a text whose words are cut at random."""
        tokenizer = self.tokenizer.backend_tokenizer
        text = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        ids = []
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            cuts = (torch.rand(len(word) - 1) < self.bpe_dropout).nonzero().flatten().add(1).tolist()
            ids += [token.id for start, end in itertools.pairwise([0, *cuts, len(word)])
                    for token in tokenizer.model.tokenize(word[start:end])]
        return ids

    def positions(self, before, grid, length, device):
        """M-RoPE position ids [3,1,L] (Qwen2-VL, sec. 2.1) of: `before` tokens, a picture of grid (h, w), text."""
        key = before, grid, length, device
        if key not in self._layouts:
            h, w = grid
            text = torch.arange(before).expand(3, -1)
            rows, cols = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            image = torch.stack([torch.zeros(h, w, dtype=torch.long), rows, cols]).flatten(1) + before
            rest = torch.arange(length - before - h * w).expand(3, -1) + before + max(h, w)
            self._layouts[key] = torch.cat([text, image, rest], 1)[:, None].to(device)
        return self._layouts[key]

    # --- the picture ------------------------------------------------------------------------------------------
    def resize_limits(self):
        """What sizes a picture is brought to: sides are multiples of a number, its area lies between two others."""
        vision, settings = self.vlm.config.vision_config, self.preprocessor
        size = settings.get("size") or {}
        low = self.min_pixels or settings.get("min_pixels") or size.get("shortest_edge") or 56 * 56
        high = max(low, settings.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280)
        return vision.patch_size * vision.spatial_merge_size, low, high

    def pixels(self, images):
        """uint8 [B,H,W,3] -> normalised patches [B,P,3*p*p] in Qwen2-VL's merge order, and the grid (h, w)."""
        vision, settings = self.vlm.config.vision_config, self.preprocessor
        p, m = vision.patch_size, vision.spatial_merge_size
        height, width = smart_resize(*images.shape[1:3], *self.resize_limits())
        x = images.permute(0, 3, 1, 2)
        if (height, width) != tuple(images.shape[1:3]):
            # in whole numbers, as the official processor does on a CPU: in floating point edges come out otherwise
            x = F.interpolate(x.cpu(), (height, width), mode="bicubic", antialias=True)
        x = x.to(self.device)
        mean, std = (torch.tensor(settings[key], device=x.device).view(3, 1, 1) for key in ("image_mean", "image_std"))
        x = (x.float() / 255 - mean) / std
        h, w = height // p, width // p
        x = x.view(-1, 3, h // m, m, p, w // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        return x.reshape(len(x), h * w, 3 * p * p), (h, w)

    def run_vision_tower(self, patches, grid):
        """The vision tower on a batch of equal grids: [B,P,3*p*p] -> image tokens [B,S,D] and the patches' features
        [B,P,E] that they merge. No loop over the pictures."""
        tower, m, (h, w) = self.vlm.visual, self.vlm.config.vision_config.spatial_merge_size, grid
        # the two frames of a still picture are equal, so the Conv3d is a matrix product with the frames' sum
        kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)
        x = patches.to(kernel.dtype) @ kernel.T                                                        # [B,P,E]
        heads = tower.blocks[0].attn.num_heads if len(tower.blocks) else 1
        cos, sin = self.rotary_embedding(h, w, m, x.shape[-1] // heads, x.device)
        for block in tower.blocks:
            q, k, v = block.attn.qkv(block.norm1(x)).view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
            q, k = (_rotate(t.float(), cos, sin).to(v.dtype) for t in (q, k))
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + block.attn.proj(attended)
            x = x + block.mlp(block.norm2(x))
        return tower.merger(x).view(len(x), h * w // m**2, -1), x

    def rotary_embedding(self, h, w, m, dim, device):
        """Cosines and sines [P,dim] of the vision tower's 2-D rotary embedding (Qwen2-VL, sec. 2.1)."""
        key = h, w, dim, device
        if key not in self._layouts:
            order = self.patch_order(h, w, m, device)
            freq = 10000.0 ** (-torch.arange(0, dim // 2, 2, device=device, dtype=torch.float) / (dim // 2))
            angles = torch.cat([(order // w)[:, None] * freq, (order % w)[:, None] * freq], -1).repeat(1, 2)
            self._layouts[key] = angles.cos(), angles.sin()
        return self._layouts[key]

    @contextlib.contextmanager
    def cache_vision_features(self):
        """Within this context a frozen vision tower sees every picture once: what it made of it is kept, on the
        device, under the picture itself. PPO's epochs, and the rollout before them, are run in it."""
        self._feature_cache = {} if self.lora else None
        try:
            yield
        finally:
            self._feature_cache = None

    def encode_image(self, images):
        """uint8 [B,H,W,3] -> image tokens [B,S,D], the patches' features [B,P,E], and the grid (h, w)."""
        if self._feature_cache is None:
            patches, grid = self.pixels(images)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.lora):
                return *self.run_vision_tower(patches, grid), grid
        keys = [(image.shape, image.tobytes()) for image in images.cpu().numpy()]
        new = {key: i for i, key in enumerate(keys) if key not in self._feature_cache}
        if new:
            saved, self._feature_cache = self._feature_cache, None
            try:
                tokens, features, grid = self.encode_image(images[list(new.values())])
            finally:
                self._feature_cache = saved
            saved |= {key: (*rows, grid) for key, *rows in zip(new, tokens, features, strict=True)}
        tokens, features, grids = zip(*(self._feature_cache[key] for key in keys), strict=True)
        return torch.stack(tokens), torch.stack(features), grids[0]

    def forward(self, images, goals):
        image, features, (h, w) = self.encode_image(images)
        m = self.vlm.config.vision_config.spatial_merge_size
        text, last_index, hidden = self._encode_batch(image, goals, (h // m, w // m))
        return text, last_index, self.patch_features(hidden, features), self.patch_centers(h, w, m, self.device)

    def encode_text(self, goals):
        """As `forward` without a picture -> text [B,T,D], ends [B]."""
        return self._encode_batch(torch.zeros(len(goals), 0, self.width, device=self.device), goals, (0, 0))[:2]

    def _encode_batch(self, image, goals, grid):
        """The language model on image tokens [B,S,D] and B sentences -> as `_read`."""
        prompts = [self.prompt(goal) for goal in goals]
        before, texts = prompts[0][0], [after for _, after in prompts]
        order = np.argsort([len(text) for text in texts], kind="stable")        # of like length together: less padding
        groups = max(1, len(order) // 16) if self.device.type == "cpu" else 1     # a GPU would rather have them at once
        shared, longest, parts = self._prefix_kv_cache(before, len(texts)), max(map(len, texts)), []
        for group in np.array_split(order, groups):
            text, hidden = self._run_language_model(before, shared, image[torch.from_numpy(group).to(self.device)],
                                      [texts[i] for i in group], grid)
            parts.append((F.pad(text, (0, 0, 0, longest - text.shape[1])), hidden))
        back = torch.from_numpy(np.argsort(order)).to(self.device)
        text, hidden = (torch.cat(part)[back] for part in zip(*parts, strict=True))
        return text, torch.tensor([len(text) - 1 for text in texts], device=self.device), hidden

    def _prefix_kv_cache(self, before, count):
        """Keys and values [1,heads,len(before),d] of every layer for the tokens that all `count` prompts begin with:
        they see nothing of picture and sentence, so they are the same for all. None where it is not worth it."""
        model = self.vlm.language_model
        # layers whose activations are computed again take no cache
        recompute = model.training and torch.is_grad_enabled() and any(
            getattr(layer, "gradient_checkpointing", False) for layer in model.layers)
        if count == 1 or len(before) < 4 or recompute:
            return None
        from transformers import DynamicCache
        cache = DynamicCache()
        ids, places = torch.tensor([before], device=self.device), torch.arange(len(before), device=self.device)
        model(inputs_embeds=self.vlm.get_input_embeddings()(ids), use_cache=True, past_key_values=cache,
              attention_mask=self.causal(0, 0, ids), position_ids=places.expand(3, 1, -1))
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _run_language_model(self, before, shared, image, texts, grid):
        """The language model on token ids `before` or what `_begin` made of them (`shared`), image tokens [B,S,D] of a
        `grid`, and B texts of token ids -> the hidden states of the texts [B,T,D] and of the image [B,S,D]."""
        # padded on the right: under a causal mask no token sees what comes after it
        device, start, s = image.device, len(before), image.shape[1]
        text = np.zeros((len(texts), max(map(len, texts))), np.int64)
        for row, ids in zip(text, texts, strict=True):
            row[:len(ids)] = ids
        embed = self.vlm.get_input_embeddings()
        tokens = embed(torch.from_numpy(text).to(device))
        tokens = torch.cat([image.to(tokens.dtype), tokens], 1)                                             # [B,L,D]
        positions = self.positions(start, grid, start + tokens.shape[1], device).expand(-1, len(texts), -1)
        if shared is None:
            prefix = embed(torch.tensor(before, device=device)).expand(len(texts), -1, -1)
            kwargs = {"inputs_embeds": torch.cat([prefix, tokens], 1), "position_ids": positions, "use_cache": False,
                   "attention_mask": self.causal(0, 0, tokens)}
        else:
            from transformers import DynamicCache
            cache = DynamicCache()
            for i, (keys, values) in enumerate(shared):
                cache.update(keys.expand(len(texts), -1, -1, -1), values.expand(len(texts), -1, -1, -1), i)
            kwargs = {"inputs_embeds": tokens, "position_ids": positions[..., start:], "use_cache": True,
                   "past_key_values": cache, "attention_mask": self.causal(start, tokens.shape[1], tokens)}
        hidden = self.vlm.language_model(**kwargs).last_hidden_state[:, -tokens.shape[1]:].float()
        return hidden[:, s:], hidden[:, :s]

    def causal(self, start, length, tokens):
        """The mask under which `length` tokens see `start` others and those of their own before them, as
        transformers' language model takes it."""
        kind = self.vlm.config._attn_implementation
        if kind == "eager" and not start:
            return None                         # it makes its own
        if not start or kind == "flash_attention_2":
            return {"full_attention": None}     # causal without a mask
        key = start, length, tokens.dtype, tokens.device
        if key not in self._layouts:
            hidden = torch.ones(length, start + length, dtype=torch.bool).triu(start + 1)
            mask = torch.zeros(hidden.shape, dtype=tokens.dtype).masked_fill(hidden, torch.finfo(tokens.dtype).min)
            self._layouts[key] = mask[None, None].to(tokens.device)
        return {"full_attention": self._layouts[key]}

    @staticmethod
    def patch_features(hidden, features):
        """What is known of every patch [B,P,D+E]: its token's hidden state (of [B,S,D]) and its features [B,P,E]."""
        hidden = hidden.repeat_interleave(features.shape[1] // hidden.shape[1], 1)
        return torch.cat([hidden, F.layer_norm(features.float(), features.shape[-1:])], -1)

    @staticmethod
    def patch_order(h, w, m, device):
        """The grid's cells, row * w + column, in the order of the patches [P]: m*m that are merged are neighbours."""
        return torch.arange(h * w, device=device).view(h // m, m, w // m, m).transpose(1, 2).flatten()

    @classmethod
    def patch_centers(cls, h, w, m, device):
        """Centres [P,2] (x, y) in [0, 1] of the patches of a grid (h, w)."""
        order = cls.patch_order(h, w, m, device)
        return torch.stack([(order % w + 0.5) / w, (order // w + 0.5) / h], -1)

    @property
    def device(self):
        return next(self.parameters()).device
