"""Shared by rewards on Qwen's vision-language models: pictures of any shape, cut into patches differentiably.

Qwen2-VL, Qwen2.5-VL and Qwen3-VL keep a picture's aspect ratio and take it as a sequence of patches, with those
merged into one token adjacent, each twice, like a film of two frames. transformers' processors use numpy or
torchvision; `patches` gives the same numbers with a gradient.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from hypernoise.rewards.preprocess import Resize, bicubic

AREA = 256  # approximate tokens per picture: 448 x 448 pixels for Qwen2-VL


class AreaResize(Resize):
    """Resizes pictures to sides that are multiples of `size`, close to their aspect ratio and to an area of `AREA`."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, h, w] of pixels [B, 3, H, W], both in [0, 1]; fp32 or better."""
        return bicubic(pixels, self.scaled(*pixels.shape[-2:]))

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """Rounds like Qwen's processors with min_pixels and max_pixels at this area, operation by operation."""
        unit, area = self.size, AREA * self.size**2
        rows, columns = round(height / unit) * unit, round(width / unit) * unit
        if rows * columns > area:
            over = math.sqrt(height * width / area)
            rows, columns = math.floor(height / over / unit) * unit, math.floor(width / over / unit) * unit
        elif rows * columns < area:
            under = math.sqrt(area / (height * width))
            rows, columns = math.ceil(height * under / unit) * unit, math.ceil(width * under / unit) * unit
        return max(rows, unit), max(columns, unit)


def patches(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Patches [B·h·w, 3·frames·patch²] of pixels [B, 3, h·patch, w·patch]; merged patches are adjacent."""
    count, channels, height, width = pixels.shape
    cells = (height // patch // merge, merge, patch, width // patch // merge, merge, patch)
    cut = pixels.reshape(count, channels, *cells)  # [B, C, h/m, m, p, w/m, m, p]
    rows = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, channels, 1, patch, patch)
    return rows.expand(-1, -1, frames, -1, -1).reshape(len(rows), -1)


def shown(network: Any, config: Any, normalised: Tensor, ids: Tensor) -> dict[str, Any]:
    """How a Qwen receives pictures [B, 3, H, W], one per row of token ids [B, L]."""
    eye = config.vision_config
    patch, merge, frames = eye.patch_size, eye.spatial_merge_size, eye.temporal_patch_size
    grid = [1, normalised.shape[-2] // patch, normalised.shape[-1] // patch]
    inputs = {
        "pixel_values": patches(normalised, patch, merge, frames),
        "image_grid_thw": torch.tensor([grid] * len(normalised), device=ids.device),
    }
    if "mm_token_type_ids" in inspect.signature(network.forward).parameters:  # transformers 4 finds them itself
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    return inputs


def unit_of(config: Any) -> int:
    """Side in pixels of one token."""
    return config.vision_config.patch_size * config.vision_config.spatial_merge_size


def places_of(config: Any, resized: Tensor) -> int:
    """Tokens per picture."""
    return (resized.shape[-2] // unit_of(config)) * (resized.shape[-1] // unit_of(config))
