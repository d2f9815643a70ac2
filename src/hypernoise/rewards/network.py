"""Shared by rewards that are frozen networks: a differentiable resize and Qwen's patches, without torchvision; a
device, a precision, and prompts as tokens.

The same bicubic, antialiased resize as torchvision's on tensors and as Pillow's on floating-point pictures.
Values may overshoot [0, 1] slightly, as they do there; clamping would cut the gradient.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.nn.utils.rnn import pad_sequence

from hypernoise.generators.text_cache import Remembered
from hypernoise.objective import wide
from hypernoise.rewards.base import Reward, RewardSettings, check_pairs

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # SigLIP: pixels in [-1, 1]
AREA = 256  # approximate tokens per picture: 448 x 448 pixels for Qwen2-VL
Fit = Literal["crop", "pad", "squash", "area"]


class NetworkReward(Reward):
    """A reward whose scores are a frozen network's; a subclass implements `score`.

    The network moves to the pictures' device. A subclass that reads prompts sets `tokenizer`, and `longest`, in tokens
    with the special ones: a longer prompt is truncated, and the first one is warned of.
    """

    tokenizer: Any = None
    longest = 0
    _truncates = False

    def __init__(self, name: str, network: nn.Module, resize: Resize, settings: RewardSettings | None):
        self.name, self.resize, self.settings = name, resize, settings or RewardSettings()
        self.network: Any = prepared(network.requires_grad_(False).eval(), self.settings)
        self.texts = Remembered(self._encode)

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pixels [B, 3, H, W] in [0, 1], of any size."""
        check_pairs(pixels, prompts)
        if self.device != pixels.device:
            self.network.to(pixels.device)
            self.texts.clear()  # they may be on the other device
        return self.score(self.resize(pixels), prompts)

    def score(self, resized: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pictures resized by `self.resize`."""
        raise NotImplementedError

    def _encode(self, prompts: list[str]) -> list[Any]:
        """What `self.texts` caches for each prompt: by default its token ids [L]."""
        texts = []
        for prompt in prompts:
            ids = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > self.longest:
                if not self._truncates:
                    cut = f"reads {self.longest} tokens, but a prompt has {len(ids)}: the rest is not scored"
                    warnings.warn(f"reward {self.name!r} {cut}", stacklevel=2)
                self._truncates = True
                ids = self.tokenizer(prompt, truncation=True, max_length=self.longest).input_ids
            texts.append(torch.tensor(ids))
        return texts

    def normalised(
        self, resized: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
    ) -> Tensor:
        """The network's input, in its precision."""
        return normalise(resized, mean, std).to(self.dtype)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


@dataclass(frozen=True)
class Resize:
    """Pictures of any size to `size` x `size`, or near an area.

    fit: "crop" resizes the short side to `size` and crops the centre (CLIP, ImageReward); "pad" resizes the long
        side to `size` and pads with black (HPSv2); "squash" ignores the aspect ratio (SigLIP); "area" resizes to sides
        that are multiples of `size`, close to the aspect ratio and to `AREA` · size² (Qwen).
    """

    size: int
    fit: Fit = "crop"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, h, w] of pixels [B, 3, H, W], both in [0, 1]; fp32 or better."""
        rows, columns = self.scaled(*pixels.shape[-2:])
        pixels = bicubic(pixels, (rows, columns))
        if self.fit == "crop":
            top, left = round((rows - self.size) / 2), round((columns - self.size) / 2)  # torchvision's rounding
            return pixels[..., top : top + self.size, left : left + self.size]
        if self.fit == "pad":
            above, before = (self.size - rows) // 2, (self.size - columns) // 2
            return pad(pixels, (before, self.size - columns - before, above, self.size - rows - above))
        return pixels

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """The size before cropping or padding."""
        if self.fit == "squash":
            return self.size, self.size
        if self.fit == "pad":
            scale = self.size / max(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        if self.fit == "area":
            return near_area(height, width, self.size)
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size


def near_area(height: int, width: int, unit: int) -> tuple[int, int]:
    """Rounds like Qwen's processors with min_pixels and max_pixels at an area of `AREA`, operation by operation."""
    area = AREA * unit**2
    rows, columns = round(height / unit) * unit, round(width / unit) * unit
    if rows * columns > area:
        over = math.sqrt(height * width / area)
        rows, columns = math.floor(height / over / unit) * unit, math.floor(width / over / unit) * unit
    elif rows * columns < area:
        under = math.sqrt(area / (height * width))
        rows, columns = math.ceil(height * under / unit) * unit, math.ceil(width * under / unit) * unit
    return max(rows, unit), max(columns, unit)


def bicubic(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels [B, 3, *size], in fp32 or better."""
    pixels = wide(pixels)
    if pixels.shape[-2:] == size:
        return pixels
    return interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True)


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixels − mean) / std by channel, for pixels [B, 3, H, W]."""
    shift, scale = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return (pixels - shift) / scale


def patches(pixels: Tensor, patch: int, merge: int, frames: int) -> Tensor:
    """Patches [B·h·w, 3·frames·patch²] of pixels [B, 3, h·patch, w·patch], as Qwen's vision-language models take a
    picture: those merged into one token are adjacent, and each is a film of equal frames. transformers' processors use
    numpy or torchvision; these are the same numbers with a gradient."""
    count, channels, height, width = pixels.shape
    cells = (height // patch // merge, merge, patch, width // patch // merge, merge, patch)
    cut = pixels.reshape(count, channels, *cells)  # [B, C, h/m, m, p, w/m, m, p]
    rows = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, channels, 1, patch, patch)
    return rows.expand(-1, -1, frames, -1, -1).reshape(len(rows), -1)


def padded(texts: list[Tensor], side: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, longest] of texts [L]."""
    both = (texts, [torch.ones_like(text) for text in texts])
    ids, mask = (pad_sequence(rows, batch_first=True, padding_side=side).to(device) for rows in both)
    return ids, mask


def prepared(network: nn.Module, settings: RewardSettings) -> Any:
    """A loaded network in the precision of `settings`; checkpointed block by block if requested.

    transformers checkpoints only in training mode, which has no other effect on networks without dropout.
    """
    network.to(getattr(torch, settings.dtype))
    if settings.checkpointing:
        if any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules()):
            raise AssertionError("a reward's network must be built without dropout")
        parts: Any = network.modules()
        for part in parts:
            if getattr(part, "supports_gradient_checkpointing", False):
                newer = getattr(part, "activation_checkpointing_enable", None)
                (newer or part.gradient_checkpointing_enable)({"use_reentrant": False})
                if hasattr(part, "_require_grads_hook"):  # for adapters: it makes the token embeddings leaves
                    part.disable_input_require_grads()
        network.train()
    return network


def linear_head(width: int) -> nn.Sequential:
    """The head of ImageReward and the aesthetic predictor: linear layers from `width` features to a score.

    Both are published with dropout between the layers, which only affects their numbering.
    """
    sizes = pairwise((width, 1024, 128, 64, 16, 1))
    layers = {number: nn.Linear(into, out) for number, (into, out) in zip("02467", sizes, strict=True)}
    return nn.Sequential(OrderedDict(layers))
