"""LPIPS: how different pictures look, by AlexNet's features (Zhang et al. 2018, arXiv 1801.03924).

At each of five layers, features are made unit vectors at every place; their squared differences are weighted by channel
and averaged over places; layers are summed. So LPIPS is a squared distance between vectors, and this gives the vectors.

Weights are those of version 0.1 (github.com/richzhang/PerceptualSimilarity) over torchvision's AlexNet.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from hypernoise.errors import InputError
from hypernoise.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise
from hypernoise.rewards.weights import Linked, filled, read_state

WEIGHTS = (
    Linked("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"),
    Linked("https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth"),
)
LAYERS = {  # number in torchvision's `features`: width, kernel, stride, padding
    0: (64, 11, 4, 2),
    3: (192, 5, 1, 2),
    6: (384, 3, 1, 1),
    8: (256, 3, 1, 1),
    10: (256, 3, 1, 1),
}
POOLED = (3, 6)  # a max pool stands before these
LEAST = 31  # px, the least side of a picture
SMALL = 1e-10  # added to lengths


def load(folder: Path | None, device: torch.device | str) -> Lpips:
    """From the two published files: in `folder`, or downloaded when first used if it is None.

    Raises:
        InputError: weights that are missing or do not fit.
    """
    files = [linked.fetch() if folder is None else folder / linked.url.rpartition("/")[2] for linked in WEIGHTS]
    trunk, heads = (read_state(file) for file in files)
    state = {name: value for name, value in trunk.items() if name.startswith("features.")} | heads
    model = filled(Lpips, state, f"{files[0]} with {files[1]}")
    if any(head.min() < 0 for head in model.heads()):
        raise InputError(f"{files[1]} has negative weights; those of LPIPS 0.1 have none")
    return model.to(device)


class Lpips(nn.Module):
    """Vectors [B, D] of pixels [B, 3, H, W] in [0, 1], whose squared distance is LPIPS. D depends on the size."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        before = 3
        for place, (number, (width, *shape)) in enumerate(LAYERS.items()):
            self.features[str(number)] = nn.Conv2d(before, width, *shape)
            head = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{place}", nn.ModuleDict({"model": head}))  # the published files' names
            before = width

    def heads(self) -> list[Tensor]:
        """For each layer, the weights [1, C, 1, 1] of its channels."""
        return [self.get_parameter(f"lin{place}.model.1.weight") for place in range(len(LAYERS))]

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        if min(pixels.shape[-2:]) < LEAST:
            size = f"{pixels.shape[-1]} x {pixels.shape[-2]}"
            raise InputError(f"LPIPS needs pictures of {LEAST} pixels or more on a side, not {size}")
        heads = self.heads()
        seen = normalise(pixels.to(heads[0]), IMAGENET_MEAN, IMAGENET_STD)
        parts: list[Tensor] = []
        for number, head in zip(LAYERS, heads, strict=True):
            if number in POOLED:
                seen = max_pool2d(seen, 3, 2)
            seen = relu(self.features[str(number)](seen))
            unit = seen / (seen.square().sum(1, keepdim=True).sqrt() + SMALL)
            parts.append((unit * (head / (seen.shape[-2] * seen.shape[-1])).sqrt()).flatten(1))
        return torch.cat(parts, 1).float().cpu()
