"""The Inception network whose features FID and KID are defined in, as tables.

It is TensorFlow's Inception v3 of 2015-12-05 (Szegedy et al., arXiv 1512.00567), which parts from torchvision's in
three ways: averages leave the padding out, the last block takes maxima instead, and pictures are resized as TensorFlow
1 did. Its weights are those that torch-fidelity publishes in PyTorch's format (github.com/toshas/torch-fidelity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, max_pool2d, relu

from hypernoise.rewards.weights import Linked, filled, read_state

RELEASE = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
WEIGHTS = Linked(f"{RELEASE}/weights-inception-2015-12-05-6726825d.pth")
SIDE = 299  # px
CLASSIFIER = ("fc.weight", "fc.bias")  # in the file, and of no use here
COUNTER = "num_batches_tracked"  # of PyTorch's batch norm; only training reads it
EPSILON = 1e-3  # of batch norm


@dataclass(frozen=True)
class Conv:
    """A convolution with batch norm and ReLU. Padded to keep the size, unless `valid` or of stride 2."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False

    @property
    def padding(self) -> tuple[int, int]:
        return (0, 0) if self.valid or self.stride > 1 else (self.kernel[0] // 2, self.kernel[1] // 2)


Part = Conv | str | tuple[Conv, Conv]
"""A convolution, a pool by its name in `POOLS`, or two convolutions side by side."""
Branch = tuple[Part, ...]

POOLS = {
    "average": lambda x: avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "maximum": lambda x: max_pool2d(x, 3, 1, 1),
    "halve": lambda x: max_pool2d(x, 3, 2),
}
WIDE, HIGH = (1, 7), (7, 1)


def _a(pooled: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        ("average", Conv("branch_pool", pooled)),
    )


def _b() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3", 384, (3, 3), 2),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2)),
        ("halve",),
    )


def _c(inner: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, WIDE), Conv("branch7x7_3", 192, HIGH)),
        (
            Conv("branch7x7dbl_1", inner),
            Conv("branch7x7dbl_2", inner, HIGH),
            Conv("branch7x7dbl_3", inner, WIDE),
            Conv("branch7x7dbl_4", inner, HIGH),
            Conv("branch7x7dbl_5", 192, WIDE),
        ),
        ("average", Conv("branch_pool", 192)),
    )


def _d() -> tuple[Branch, ...]:
    return (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, WIDE),
            Conv("branch7x7x3_3", 192, HIGH),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ),
        ("halve",),
    )


def _e(pool: str) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


STEM: Branch = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2), Conv("Conv2d_2a_3x3", 32, (3, 3), valid=True),
    Conv("Conv2d_2b_3x3", 64, (3, 3)), "halve",
    Conv("Conv2d_3b_1x1", 80), Conv("Conv2d_4a_3x3", 192, (3, 3), valid=True), "halve",
)  # fmt: skip
BLOCKS = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _b(), "Mixed_6b": _c(128),
    "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _d(), "Mixed_7b": _e("average"),
    "Mixed_7c": _e("maximum"),
}  # fmt: skip


def load(file: Path | None, device: torch.device | str) -> Inception:
    """The network with the published weights: of a local file, or downloaded when first used.

    Raises:
        InputError: weights that cannot be had or do not fit.
    """
    file = WEIGHTS.fetch() if file is None else file
    return of_state(read_state(file), str(file)).to(device)


def of_state(state: Mapping[str, Tensor], what: str) -> Inception:
    kept = {
        name: value for name, value in state.items() if name not in CLASSIFIER and name.rpartition(".")[2] != COUNTER
    }
    return filled(Inception, kept, what)


class Inception(nn.Module):
    """Features [B, 2048] of pixels [B, 3, H, W] in [0, 1], of any size: the mean of the last block."""

    def __init__(self) -> None:
        super().__init__()
        width = _add(self, STEM, 3)
        for name, branches in BLOCKS.items():
            block = Mixed(width, branches)
            self.add_module(name, block)
            width = block.width

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        weight = self.get_submodule("Conv2d_1a_3x3").get_parameter("conv.weight")
        levels = (pixels.to(weight) * 255).round()  # FID is defined on files of 8 bits
        seen = (resized(levels) - 128) / 128
        seen = _through(self, STEM, seen)
        for name in BLOCKS:
            seen = self.get_submodule(name)(seen)
        return seen.mean((2, 3)).float().cpu()


class Mixed(nn.Module):
    """Branches side by side; `width` is of their outputs together."""

    def __init__(self, width: int, branches: Sequence[Branch]):
        super().__init__()
        self.branches = branches
        self.width = sum(_add(self, branch, width) for branch in branches)

    def forward(self, seen: Tensor) -> Tensor:
        return torch.cat([_through(self, branch, seen) for branch in self.branches], 1)


class Normalised(nn.Module):
    """A convolution without bias, batch norm by its running statistics, and ReLU, under torchvision's names."""

    def __init__(self, width: int, table: Conv):
        super().__init__()
        self.table = table
        self.conv = nn.Conv2d(width, table.width, table.kernel, bias=False)
        self.bn = nn.Module()
        for name in ("weight", "bias"):
            self.bn.register_parameter(name, nn.Parameter(torch.empty(table.width)))
        for name in ("running_mean", "running_var"):
            self.bn.register_buffer(name, torch.empty(table.width))

    def forward(self, seen: Tensor) -> Tensor:
        seen = conv2d(seen, self.conv.weight, None, self.table.stride, self.table.padding)
        mean, spread = self.bn.get_buffer("running_mean"), self.bn.get_buffer("running_var")
        scale, shift = self.bn.get_parameter("weight"), self.bn.get_parameter("bias")
        return relu(batch_norm(seen, mean, spread, scale, shift, eps=EPSILON))


def _add(module: nn.Module, branch: Branch, width: int) -> int:
    """Adds a branch's convolutions; the width of what comes out."""
    for part in branch:
        if isinstance(part, Conv):
            module.add_module(part.name, Normalised(width, part))
            width = part.width
        elif isinstance(part, tuple):
            width = sum(_add(module, (one,), width) for one in part)
    return width


def _through(module: nn.Module, branch: Branch, seen: Tensor) -> Tensor:
    for part in branch:
        if isinstance(part, Conv):
            seen = module.get_submodule(part.name)(seen)
        elif isinstance(part, tuple):
            seen = torch.cat([_through(module, (one,), seen) for one in part], 1)
        else:
            seen = POOLS[part](seen)
    return seen


def resized(pictures: Tensor) -> Tensor:
    """[B, C, 299, 299] of [B, C, H, W], bilinear as TensorFlow 1 did it: pixel i is looked up at i·H/299."""
    return _along(_along(pictures, 2), 3)


def _along(pictures: Tensor, axis: int) -> Tensor:
    size = pictures.shape[axis]
    place = torch.arange(SIDE, dtype=torch.float64) * size / SIDE
    before = place.floor().long()
    after = (before + 1).clamp(max=size - 1)
    share = (place - before).to(pictures.dtype).to(pictures.device).view([-1 if i == axis else 1 for i in range(4)])
    one, other = (pictures.index_select(axis, side.to(pictures.device)) for side in (before, after))
    return one + (other - one) * share
