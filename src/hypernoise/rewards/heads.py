"""The small heads that turn a network's features into a score: linear layers in a row, with nothing between.

They are published with dropout between them, which counts for their layers' numbers alone.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

MLP = (1024, 128, 64, 16, 1)


def linear_head(width: int, numbers: tuple[int, ...], widths: tuple[int, ...] = MLP) -> nn.Sequential:
    """Linear layers from `width` through `widths`, called by `numbers`, as their state dict has them."""
    ins = (width, *widths)
    layers = {str(n): nn.Linear(i, o) for n, i, o in zip(numbers, ins, widths, strict=False)}
    return nn.Sequential(OrderedDict(layers))
