"""Input of scoring networks: a differentiable resize and Qwen's patches, without torchvision.

The same bicubic, antialiased resize as torchvision's on tensors and as Pillow's on floating-point pictures.
Values may overshoot [0, 1] slightly, as they do there; clamping would cut the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import interpolate, pad

from hypernoise.objective import wide

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # SigLIP: pixels in [-1, 1]
AREA = 256  # approximate tokens per picture: 448 x 448 pixels for Qwen2-VL
Fit = Literal["crop", "pad", "squash", "area"]


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
