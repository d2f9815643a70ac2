"""The contract of a reward r: per-sample scores of pictures for their prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor


class Reward(Protocol):
    """Scores [B], higher is better, differentiable in pixels [B, 3, H, W] in [0, 1]."""

    name: str

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor: ...


RewardFunction = Callable[[Tensor, list[str]], Tensor]


@dataclass(frozen=True)
class RewardSettings:
    """How the rewards that are networks run; functions of pixels alone ignore it."""

    long_prompts: Literal["truncate", "chunk-mean", "chunk-min"] = "truncate"
    """Prompts beyond a reward's text encoder: cut them (told once, counted), or score windows that fit and take
    the mean or the soft minimum."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' weights; scores are fp32."""
    device: str = ""
    """Where the networks are; empty: with the pictures."""
    checkpointing: bool = False
    """Keep no activations inside the networks and compute them again for the gradient: less memory, more time."""
