"""The contract of a reward r: per-sample scores of pictures for their prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Reward(Protocol):
    """Scores [B], higher is better, differentiable in pixels [B, 3, H, W] in [0, 1]."""

    name: str

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor: ...


RewardFunction = Callable[[Tensor, list[str]], Tensor]
