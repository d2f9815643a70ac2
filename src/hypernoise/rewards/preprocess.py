"""Input of scoring networks: a differentiable resize, without torchvision.

The same bicubic, antialiased resize as torchvision's on tensors and as Pillow's on floating-point pictures.
Values may overshoot [0, 1] slightly, as they do there; clamping would cut the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import interpolate, pad

from hypernoise.objective import wide

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's CLIP
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # SigLIP: pixels in [-1, 1]


@dataclass(frozen=True)
class Resize:
    """Pictures of any size to `size` x `size`.

    fit: "crop" resizes the short side to `size` and crops the centre (CLIP, ImageReward); "pad" resizes the long
        side to `size` and pads with black (HPSv2); "squash" ignores the aspect ratio (SigLIP).
    """

    size: int
    fit: Literal["crop", "pad", "squash"] = "crop"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, size, size] of pixels [B, 3, H, W], both in [0, 1]; fp32 or better."""
        rows, columns = self._scaled(*pixels.shape[-2:])
        pixels = bicubic(pixels, (rows, columns))
        if self.fit == "crop":
            top, left = round((rows - self.size) / 2), round((columns - self.size) / 2)  # torchvision's rounding
            return pixels[..., top : top + self.size, left : left + self.size]
        above, before = (self.size - rows) // 2, (self.size - columns) // 2
        return pad(pixels, (before, self.size - columns - before, above, self.size - rows - above))

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        if self.fit == "squash":
            return self.size, self.size
        if self.fit == "pad":
            scale = self.size / max(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size


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
