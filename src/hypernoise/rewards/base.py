"""The contract of a reward r, per-sample scores of pictures for their prompts, and the checks that it is kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hypernoise.errors import InputError, shown
from hypernoise.settings import typed


class Reward(Protocol):
    """Scores [B], higher is better, differentiable in pixels [B, 3, H, W] in [0, 1]."""

    name: str

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor: ...

    def member_scores(self) -> dict[str, Tensor]:
        """Each member's scores [B] of the last call, by name; of a reward without members none."""
        return {}


RewardFunction = Callable[[Tensor, list[str]], Tensor]
"""What training and methods take: a `Reward`, or any function of one's own."""


@dataclass(frozen=True)
class RewardSettings:
    """How the rewards that are networks run; functions of pixels alone ignore it."""

    long_prompts: Literal["truncate", "chunk-mean", "chunk-min"] = "truncate"
    """Prompts beyond a reward's text encoder: cut them (warned once, counted), or score windows that fit and take
    the mean or the soft minimum."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' weights; scores are fp32."""
    device: str = ""
    """Where the networks are; empty: with the pictures."""
    checkpointing: bool = False
    """Keep no activations inside the networks and compute them again for the gradient: less memory, more time."""

    def __post_init__(self) -> None:
        typed(self, RewardSettings)
        try:
            torch.device(self.device or "cpu")
        except RuntimeError as error:
            raise InputError(f"device must be a torch device such as cuda:1, or empty, not {self.device!r}") from error


TAKES = "a reward takes pixels [B, 3, H, W], floats in [0, 1]"
SLACK = 0.01  # that values may lie outside [0, 1]
SHAPES = (  # that pictures are handed in by mistake (0: any size), and what to hand in instead
    ((3, 0, 0), "of one picture give pixels[None]"),
    ((0, 0, 3), "of one picture give pixels.permute(2, 0, 1)[None]"),
    ((0, 0, 0, 3), "give pixels.permute(0, 3, 1, 2)"),
    ((0, 1, 0, 0), "of grey ones give pixels.expand(-1, 3, -1, -1)"),
    ((0, 4, 0, 0), "without alpha give pixels[:, :3]"),
)


def check_pictures(pixels: Any) -> None:
    """Raises InputError, with the fix, for what is not pictures.

    Values are looked at where no gradient is followed: what a generator has just drawn is in [0, 1], and a device need
    not be waited for.
    """
    if not isinstance(pixels, Tensor) or pixels.layout != torch.strided:
        raise InputError(f"{TAKES}, not a {type(pixels).__name__}")
    if not pixels.is_floating_point():
        raise InputError(f"{TAKES}, not {pixels.dtype}; of bytes give pixels.float() / 255")
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
        raise InputError(f"{TAKES}, not {list(pixels.shape)}{_fix(pixels.shape)}")
    if not pixels.requires_grad and not pixels.is_meta:
        least, most = (bound.item() for bound in pixels.detach().aminmax())
        if not (least >= -SLACK and most <= 1 + SLACK):
            fix = " (give (pixels + 1) / 2)" if -1 - SLACK <= least < 0 and most <= 1 + SLACK else ""
            raise InputError(f"{TAKES}; these go from {least:.4g} to {most:.4g}{fix}")


def check_pairs(pixels: Any, prompts: Any) -> None:
    """Raises InputError for what is not pictures and a prompt for each."""
    check_pictures(pixels)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) != len(pixels):
        raise InputError(f"one prompt for each of {len(pixels)} pictures is needed, in a list")
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"prompts must be texts, not {shown(list(prompts))}")


def _fix(shape: Sequence[int]) -> str:
    for alike, fix in SHAPES:
        if len(alike) == len(shape) and all(size in (0, own) for size, own in zip(alike, shape, strict=True)):
            return f"; {fix}"
    return ""


def check_callable(reward: object, name: str = "the reward") -> None:
    """Raises InputError for what cannot be called as reward(pixels, prompts)."""
    if isinstance(reward, str):
        raise InputError(
            f"{name} is the word {reward!r}; hypernoise.load_reward({reward!r}) gives the reward of a name"
        )
    if isinstance(reward, type):
        raise InputError(f"{name} is the class {reward.__name__}; hand in one made of it")
    if not callable(reward):
        raise InputError(f"{name} is a {type(reward).__name__}; it must take (pixels, prompts) and give [B]")
    try:
        signature = inspect.signature(reward)
    except ValueError:  # of some built-in functions nobody knows it
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise InputError(f"{name} must take (pixels, prompts), and takes {signature}") from error


def scored(reward: RewardFunction, pixels: Tensor, prompts: list[str], name: str = "the reward") -> Tensor:
    """What `reward` gives, which must be a tensor of one score per picture. InputError, with `name`, if not."""
    try:
        scores = reward(pixels, prompts)
    except RuntimeError as error:
        if "numpy() on Tensor that requires grad" not in str(error):
            raise
        raise InputError(f"{name} hands the pixels to numpy, where no gradient follows; compute with torch") from error
    if not isinstance(scores, Tensor):
        raise InputError(f"{name} gave a {type(scores).__name__}, not a tensor of one score per picture")
    if scores.shape != (len(pixels),):
        raise InputError(f"{name} gave shape {list(scores.shape)}; it must give one score per picture")
    return scores
