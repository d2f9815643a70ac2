"""The interface of a reward r, per-sample scores of pictures for their prompts, and its checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hypernoise.errors import InputError, check_is, failed, shown
from hypernoise.generators.base import fault_of
from hypernoise.settings import typed


class Reward(Protocol):
    """Scores [B], higher is better, differentiable in pixels [B, 3, H, W] in [0, 1]."""

    name: str

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor: ...

    def member_scores(self) -> dict[str, Tensor]:
        """Each member's scores [B] of the last call, by name; empty for a reward without members."""
        return {}


RewardFunction = Callable[[Tensor, list[str]], Tensor]
"""What training and methods accept: a `Reward`, or any function."""


@dataclass(frozen=True)
class RewardSettings:
    """Settings of reward networks; rewards computed from pixels ignore them."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the networks' weights; scores are fp32."""
    checkpointing: bool = False
    """Recompute the networks' activations for the gradient: less memory, more time."""

    def __post_init__(self) -> None:
        typed(self, RewardSettings)


class Prompts(list[str]):
    """Prompts that are known to be texts, and that record whether a reward reads them."""

    read = False

    def __iter__(self) -> Iterator[str]:
        self.read = True
        return super().__iter__()

    def __getitem__(self, place: Any) -> Any:
        self.read = True
        return super().__getitem__(place)


def check_pairs(pixels: Any, prompts: Any, *, read: bool = True) -> None:
    """Raises InputError, with the fix, unless these are pictures with one prompt each, or none if not `read`.

    Pixels' values are only checked without a gradient: a generator's pixels are in [0, 1], and reading them would
    synchronise the device.
    """
    fault = fault_of(pixels, values=not getattr(pixels, "requires_grad", False))
    if fault:
        what, fix = fault
        mend = f"; pass {fix.replace('y', 'pixels')}" if fix else ""
        raise InputError(f"a reward takes pixels [B, 3, H, W], floats in [0, 1], not {what}{mend}")
    if not (read or prompts):
        return
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or len(prompts) != len(pixels):
        raise InputError(f"prompts must be a list with one prompt for each of {len(pixels)} pictures")
    if not isinstance(prompts, Prompts) and not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f"prompts must be texts, not {shown(list(prompts))}")


def check_callable(reward: object, name: str = "the reward") -> None:
    """Raises InputError for anything that cannot be called as reward(pixels, prompts)."""
    if isinstance(reward, str):
        raise InputError(f"{name} is the text {reward!r}; hypernoise.load_reward({reward!r}) loads a reward by name")
    check_is(reward, Callable, name, "a function of (pixels, prompts) that returns [B]")
    with suppress(ValueError):  # some built-in functions have no signature
        signature = inspect.signature(reward)  # type: ignore[arg-type]
        try:
            signature.bind(None, None)
        except TypeError as error:
            raise InputError(f"{name} must take (pixels, prompts), but takes {signature}") from error


def scored(reward: RewardFunction, pixels: Tensor, prompts: list[str], name: str = "the reward") -> Tensor:
    """The result of `reward`: a tensor with one score per picture, as floats. Raises InputError if it is not, or if the
    reward raised an exception; with `name`, and the prompt at fault."""
    version = 0 if pixels.is_inference() else pixels._version
    try:
        scores = reward(pixels, prompts)
    except Exception as error:  # anything that a user's function may raise
        failed(name, error, prompts, lambda n: reward(pixels[n : n + 1].detach(), [prompts[n]]))
    if not pixels.is_inference() and pixels._version != version:
        raise InputError(f"{name} changes the pixels in place, which other rewards also read; use pixels.clone()")
    if not isinstance(scores, Tensor):
        raise InputError(f"{name} returned a {type(scores).__name__}, not a tensor of one score per picture")
    if scores.layout != torch.strided or scores.is_complex() or scores.is_meta > pixels.is_meta:
        raise InputError(
            f"{name} returned scores that are {scores.layout}, {scores.dtype}, on {scores.device}; return floats"
        )
    if scores.shape != (len(pixels),):
        raise InputError(f"{name} returned shape {list(scores.shape)}; it must return one score per picture")
    return scores if scores.is_floating_point() else scores.float()
