"""The contract of a reward r, per-sample scores of pictures for their prompts, and the checks that it is kept."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hypernoise.errors import InputError


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
        hints = typing.get_type_hints(RewardSettings)
        for name in ("long_prompts", "dtype"):
            value, options = getattr(self, name), typing.get_args(hints[name])
            if value not in options:
                raise InputError(f"{name} must be one of {', '.join(options)}, not {value!r}")
        try:
            torch.device(self.device or "cpu")
        except RuntimeError as error:
            raise InputError(f"device must be a torch device such as cuda:1, or empty, not {self.device!r}") from error


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
