"""The image side of Qwen2-VL: resizing, patches, the vision tower, and where each patch lies.

Legend: B images, H x W pixels, a grid of h x w patches of p x p pixels, P = h * w patches, m x m neighbouring patches
merge into one image token, S = P / m^2 image tokens, D width of the language model, E width of the vision tower,
d width of an attention head.

Patches are listed in merge order: the m * m patches of one image token are neighbours in the list.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

MAX_ASPECT_RATIO = 200
ROPE_THETA = 10000.0


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Return the (height, width) at which Qwen2-VL reads an image (Qwen2-VL, sec. 2.1).

    Both are multiples of `factor`, the area is within the limits, the aspect ratio is kept. Raises ValueError if one
    side is over 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"images must have an aspect ratio up to {MAX_ASPECT_RATIO}, not {height} x {width}")
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return uint8 images [B,3,H,W] resized to [B,3,height,width]."""
    if (height, width) == tuple(images.shape[-2:]):
        return images
    # uint8 on the CPU, like the official processor: in floating point, edges come out differently
    return F.interpolate(images.cpu(), (height, width), mode="bicubic", antialias=True)


def normalize(images: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Return uint8 images [B,3,H,W] as float32, normalised per channel."""
    mean = torch.tensor(mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def split_into_patches(images: torch.Tensor, patch_size: int, merge_size: int) -> torch.Tensor:
    """Return the patches [B,P,3*p*p] of images [B,3,H,W], in merge order."""
    p, m = patch_size, merge_size
    h, w = images.shape[2] // p, images.shape[3] // p
    patches = images.view(-1, 3, h // m, m, p, w // m, m, p)
    patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)           # [B,h/m,w/m,m,m,3,p,p]
    return patches.reshape(len(images), h * w, 3 * p * p)       # [B,P,3*p*p]


def patch_order(h: int, w: int, merge_size: int, device: torch.device | str) -> torch.Tensor:
    """Return the grid cells (row * w + column) of the patches in merge order, int64 [P]."""
    m = merge_size
    cells = torch.arange(h * w, device=device).view(h // m, m, w // m, m)
    return cells.transpose(1, 2).flatten()


def patch_centers(h: int, w: int, merge_size: int, device: torch.device | str) -> torch.Tensor:
    """Return the patch centres (x, y) of a grid in [0, 1], float32 [P,2], in merge order."""
    cells = patch_order(h, w, merge_size, device)
    x = (cells % w + 0.5) / w
    y = (cells // w + 0.5) / h
    return torch.stack([x, y], -1)


def patch_features(hidden: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return what the heads read of each patch, float32 [B,P,D+E].

    The first D are the hidden state of the patch's image token, of `hidden` [B,S,D]. The last E are the patch's own
    `features` [B,P,E] in the vision tower, where neighbouring objects are easier to tell apart.
    """
    patches_per_token = features.shape[1] // hidden.shape[1]
    hidden = hidden.repeat_interleave(patches_per_token, 1)             # [B,P,D]
    features = F.layer_norm(features.float(), features.shape[-1:])      # [B,P,E]
    return torch.cat([hidden, features], -1)


def rotary_embedding(h: int, w: int, merge_size: int, head_width: int,
                     device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines [P,d] of the vision tower's 2-D rotary embedding (Qwen2-VL, sec. 2.1)."""
    cells = patch_order(h, w, merge_size, device)
    half = head_width // 2
    frequencies = ROPE_THETA ** (-torch.arange(0, half, 2, device=device, dtype=torch.float) / half)     # [d/4]
    row_angles = (cells // w)[:, None] * frequencies                                                     # [P,d/4]
    column_angles = (cells % w)[:, None] * frequencies                                                   # [P,d/4]
    angles = torch.cat([row_angles, column_angles], -1).repeat(1, 2)                                     # [P,d]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return x [...,P,d] turned by the angles of a rotary embedding, in float32 and back in x's dtype."""
    half = x.shape[-1] // 2
    x32 = x.float()
    turned = torch.cat([-x32[..., half:], x32[..., :half]], -1)
    return (x32 * cos + turned * sin).to(x.dtype)


def num_heads(tower: nn.Module) -> int:
    """Return the attention heads of transformers' Qwen2-VL vision tower; 1 for a tower without blocks."""
    return tower.blocks[0].attn.num_heads if len(tower.blocks) else 1


def run_vision_tower(tower: nn.Module, patches: torch.Tensor,
                     rotary: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image tokens [B,S,D] of patches [B,P,3*p*p], and the patches' features [B,P,E] before the merge.

    `tower` is transformers' Qwen2-VL vision tower, which runs one image after the other. Here all images have one
    size, so they run as one batch. The numbers are the same.
    """
    x = embed_patches(tower, patches)                                                # [B,P,E]
    for block in tower.blocks:
        x = x + attend(block.attn, block.norm1(x), rotary)
        x = x + block.mlp(block.norm2(x))
    tokens = tower.merger(x)                                                         # [B*S,D]
    return tokens.view(len(x), -1, tokens.shape[-1]), x


def embed_patches(tower: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    """Return patch embeddings [B,P,E] of patches [B,P,3*p*p].

    The tower's Conv3d reads two frames. Those of a still image are equal, so its kernel can be summed over them.
    """
    kernel = tower.patch_embed.proj.weight.sum(2).flatten(1)                         # [E,3*p*p]
    return patches.to(kernel.dtype) @ kernel.T


def attend(attention: nn.Module, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the self-attention output [B,P,E] of x [B,P,E], over all patches of an image."""
    cos, sin = rotary
    qkv = attention.qkv(x).view(*x.shape[:2], 3, attention.num_heads, -1)            # [B,P,3,heads,d]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)                                             # 3 x [B,heads,P,d]
    attended = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
    return attention.proj(attended.transpose(1, 2).flatten(2))
