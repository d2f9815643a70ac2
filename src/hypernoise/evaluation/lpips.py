"""LPIPS: how different pictures look, by a network's features (Zhang et al. 2018, arXiv 1801.03924).

At each of five layers, features are made unit vectors at every place; their squared differences are weighed by channel
and averaged over places; layers are summed. So LPIPS is a squared distance between vectors, and this gives the vectors:
the mean over all pairs of n pictures then takes n network calls and one sum (`fidelity.mean_squared_distance`).

Weights are those of version 0.1 (github.com/richzhang/PerceptualSimilarity) over torchvision's trunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from hypernoise.errors import InputError
from hypernoise.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise
from hypernoise.rewards.weights import Linked, filled, read_state

SMALL = 1e-10  # added to lengths

TRUNKS = "https://download.pytorch.org/models"
HEADS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"


@dataclass(frozen=True)
class Conv:
    """One convolution: its number in torchvision's `features`; `pooled` before it, `compared` after its ReLU."""

    number: int
    width: int
    kernel: int = 3
    stride: int = 1
    pooled: bool = False
    compared: bool = True

    @property
    def padding(self) -> int:
        return 2 if self.kernel > 3 else 1


@dataclass(frozen=True)
class Trunk:
    """A network's convolutions, the side of its max pools, the least side of pictures in pixels, and its weights."""

    convs: tuple[Conv, ...]
    pool: int
    least: int
    weights: Linked
    heads: Linked


def _vgg() -> tuple[Conv, ...]:
    groups = ((64, (0, 2)), (128, (5, 7)), (256, (10, 12, 14)), (512, (17, 19, 21)), (512, (24, 26, 28)))
    return tuple(
        Conv(number, width, pooled=number == numbers[0] > 0, compared=number == numbers[-1])
        for width, numbers in groups
        for number in numbers
    )


NETWORKS = {
    "alex": Trunk(
        (
            Conv(0, 64, 11, 4), Conv(3, 192, 5, pooled=True), Conv(6, 384, pooled=True), Conv(8, 256), Conv(10, 256),
        ),
        3, 31, Linked(f"{TRUNKS}/alexnet-owt-7be5be79.pth"), Linked(f"{HEADS}/alex.pth"),
    ),
    "vgg": Trunk(_vgg(), 2, 16, Linked(f"{TRUNKS}/vgg16-397923af.pth"), Linked(f"{HEADS}/vgg.pth")),
}  # fmt: skip


def load(name: str, folder: Path | None, device: torch.device | str) -> Lpips:
    """LPIPS by its trunk, from the published files: in `folder`, or downloaded when first used if it is None.

    Raises:
        InputError: weights that cannot be had or do not fit.
    """
    trunk = NETWORKS[name]
    files = [
        linked.fetch() if folder is None else folder / linked.url.rpartition("/")[2]
        for linked in (trunk.weights, trunk.heads)
    ]
    convolutions = {key: value for key, value in read_state(files[0]).items() if key.startswith("features.")}
    state = {**convolutions, **read_state(files[1])}
    model = filled(lambda: Lpips(name), state, f"{files[0]} with {files[1]}")
    if any(head.min() < 0 for head in model.heads()):
        raise InputError(f"{files[1]} has negative weights; those of LPIPS 0.1 have none")
    return model.to(device)


class Lpips(nn.Module):
    """Vectors [B, D] of pixels [B, 3, H, W] in [0, 1], whose squared distance is LPIPS. D depends on the size."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.trunk = name, NETWORKS[name]
        self.features = nn.ModuleDict()
        width, compared = 3, []
        for conv in self.trunk.convs:
            self.features[str(conv.number)] = nn.Conv2d(width, conv.width, conv.kernel, conv.stride, conv.padding)
            width = conv.width
            compared += [width] * conv.compared
        for place, width in enumerate(compared):  # under the names of the published files: lin0.model.1.weight
            head = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))
            self.add_module(f"lin{place}", nn.ModuleDict({"model": head}))

    def heads(self) -> list[Tensor]:
        """Of each compared layer, the weights [1, C, 1, 1] of its channels."""
        count = sum(conv.compared for conv in self.trunk.convs)
        return [self.get_parameter(f"lin{place}.model.1.weight") for place in range(count)]

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        if min(pixels.shape[-2:]) < self.trunk.least:
            raise InputError(
                f"pictures must be {self.trunk.least} pixels or more on a side for LPIPS by {self.name}, "
                f"not {pixels.shape[-1]} x {pixels.shape[-2]}"
            )
        heads = self.heads()
        seen = normalise(pixels.to(heads[0]), IMAGENET_MEAN, IMAGENET_STD)
        parts: list[Tensor] = []
        for conv in self.trunk.convs:
            if conv.pooled:
                seen = max_pool2d(seen, self.trunk.pool, 2)
            seen = relu(self.features[str(conv.number)](seen))
            if conv.compared:
                unit = seen / (seen.square().sum(1, keepdim=True).sqrt() + SMALL)
                weighed = unit * (heads[len(parts)] / (seen.shape[-2] * seen.shape[-1])).sqrt()
                parts.append(weighed.flatten(1))
        return torch.cat(parts, 1).float().cpu()
