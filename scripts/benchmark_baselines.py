"""What the benchmark compares with: a straightforward use of transformers, and robosuite with its defaults.

Both transformers baselines run the same weights and the same heads as the policy:

    forward_single      one image at a time: official image processor, all vocabulary logits (Qwen2VLForConditional-
                        Generation), as a first implementation does
    forward_batched     a batch of images: official image processor, right-padded prompts, no logits (Qwen2VLModel)
"""
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from models.backbones.hub_loading import resolve_hub_kwargs


def load_processor(backbone) -> object:
    """Return the official image processor of a backbone, with its limits of size."""
    from transformers import AutoImageProcessor
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (backbone.config_files or {}).items():
            Path(folder, name).write_text(text, encoding="utf-8")
        name, hub_kwargs = (folder, {}) if backbone.config_files else (backbone.name, resolve_hub_kwargs(backbone.name))
        processor = AutoImageProcessor.from_pretrained(name, **hub_kwargs)
    if backbone.min_pixels:
        processor.size = {"shortest_edge": backbone.min_pixels,
                          "longest_edge": max(backbone.min_pixels, processor.size["longest_edge"])}
    return processor


def with_lm_head(backbone) -> torch.nn.Module:
    """Return the backbone's weights as Qwen2VLForConditionalGeneration, with a vocabulary head."""
    from transformers import Qwen2VLForConditionalGeneration
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(copy.deepcopy(backbone.vlm.config))
    model.model = backbone.vlm
    embedding = backbone.vlm.get_input_embeddings().weight
    model.lm_head = torch.nn.Linear(*embedding.shape[::-1], bias=False, device=embedding.device, dtype=embedding.dtype)
    model.lm_head.requires_grad_(False)
    if model.config.tie_word_embeddings:       # else random ones, which take as long
        model.lm_head.weight = embedding
    return model


class BaselinePolicy:
    """The weights and heads of a VLMPolicy behind the straightforward forward passes."""

    def __init__(self, policy):
        self.policy, self.backbone = policy, policy.backbone
        self.processor, self.model = load_processor(self.backbone), with_lm_head(self.backbone)
        vision = self.model.config.vision_config
        self.merge, self.image_token = vision.spatial_merge_size, self.model.config.image_token_id
        self._vision_features = None
        self.backbone.vlm.visual.blocks[-1].register_forward_hook(self._keep_vision_features)

    def _keep_vision_features(self, module, args, output):
        self._vision_features = output                                             # [B*P,E]

    def forward_single(self, image: np.ndarray, goal: str):
        """Return the PolicyOutput of one image uint8 [H,W,3] and its instruction."""
        return self._forward([image], [goal], lambda **inputs: self.model(
            **inputs, output_hidden_states=True).hidden_states[-1])

    def forward_batched(self, images: np.ndarray, goals: list[str]):
        """Return the PolicyOutput of B images uint8 [B,H,W,3] of one size and their instructions."""
        return self._forward(list(images), list(goals), lambda **inputs: self.backbone.vlm(**inputs).last_hidden_state)

    def _forward(self, images: list, goals: list[str], run_model: Callable):
        device = self.policy.device
        pixels = self.processor(images=images, return_tensors="pt").to(device)
        t, h, w = (int(v) for v in pixels["image_grid_thw"][0])
        num_tokens = t * h * w // self.merge**2
        prompts = [self.backbone.prompt(goal) for goal in goals]
        start = len(prompts[0][0])
        ids, mask = self._pad([[*before, *[self.image_token] * num_tokens, *after] for before, after in prompts])
        hidden = run_model(input_ids=ids, attention_mask=mask, mm_token_type_ids=(ids == self.image_token).int(),
                           use_cache=False, **pixels).float()                      # [B,L,D]
        features = self._vision_features.view(len(images), t * h * w, -1)          # [B,P,E]
        patches = self.backbone.patch_features(hidden[:, start:start + num_tokens], features)
        text = hidden[:, start + num_tokens:]                                      # [B,T,D]
        last_index = torch.tensor([len(after) - 1 for _, after in prompts], device=device)
        centers = self.backbone.patch_centers(h, w, self.merge, device)
        return self.policy.forward_heads(text, last_index, patches, centers)

    def _pad(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and attention mask [B,L], padded on the right."""
        rows = [torch.tensor(row, device=self.policy.device) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return ids, mask


def baseline_forward(policy) -> Callable:
    """Return `forward_single` of a policy's BaselinePolicy."""
    return BaselinePolicy(policy).forward_single


def run_default_robosuite(task: str, pipe) -> None:
    """Step robosuite with its defaults as often as the pipe asks, until it asks for 0 steps. Runs in a process."""
    import robosuite
    env = robosuite.make(task, robots="Panda", has_renderer=False, has_offscreen_renderer=True, use_camera_obs=True,
                         camera_names="robot0_eye_in_hand", camera_heights=84, camera_widths=84, reward_shaping=True)
    env.reset()
    rng = np.random.default_rng(0)
    while steps := pipe.recv():
        for _ in range(steps):
            env.step(rng.uniform(-0.5, 0.5, 7))
        pipe.send(steps)
