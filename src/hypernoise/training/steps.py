"""How a training picture is computed: in how many denoiser calls, with a gradient through which, how precisely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hypernoise.errors import InputError
from hypernoise.generators.base import Generator
from hypernoise.noise.draws import key_of
from hypernoise.precision import resolve
from hypernoise.training.config import TrainConfig

DRAW = -1  # the key's sample number for this draw: no sample has it


def steps_of(config: TrainConfig, step: int) -> int:
    """The denoiser calls per picture of an update: one of `generator_steps`, by (seed, step)."""
    counts = config.step_counts
    return counts[key_of(config.seed, step, DRAW) % len(counts)]


def autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    """Inside the block matrix products are in the run's mixed precision, if there is any."""
    precision = resolve(config.mixed_precision, device)
    mixed = precision.name != "no"
    return torch.autocast(device.type, precision.dtype if mixed else None, enabled=mixed)


@contextmanager
def gradient_through_last(generator: Generator, last: int, steps: int) -> Iterator[None]:
    """Inside the block a picture's gradient goes through the `last` denoiser calls out of `steps` alone.

    The earlier calls' answers count as constants. The noise still reaches the picture through what the scheduler
    adds up, so that its gradient lacks their Jacobians, as in truncated backpropagation, and saves their memory.
    `last` 0 means all.

    Raises:
        InputError: a generator without a denoiser to look at.
    """
    if last in (0, steps):
        yield
        return
    denoiser = getattr(generator, "denoiser", None)
    if not isinstance(denoiser, nn.Module):
        raise InputError(f"gradient_steps needs a diffusion generator, which {generator.name!r} is not")
    calls = 0

    def before(module: nn.Module, arguments: Any) -> None:
        torch.set_grad_enabled(calls >= steps - last)

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal calls
        calls += 1
        torch.set_grad_enabled(True)

    hooks = [
        denoiser.register_forward_pre_hook(before),
        denoiser.register_forward_hook(after, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
