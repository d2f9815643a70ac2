"""Adapts a recipe to a device's memory by its plan: `memory: {fit: ...}`.

The settings cheapest in time are tried first: more accumulation steps, then in addition recomputed activations,
decoding one picture at a time, rewards in bf16, and text encoders on the CPU.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Any

import torch

from hypernoise.errors import InputError
from hypernoise.generators.registry import pick_device
from hypernoise.plan.generators import META
from hypernoise.plan.plan import gigabytes, plan
from hypernoise.training.config import Recipe
from hypernoise.training.processes import launched, own_device

ROOM = 15 / 16  # share of the memory to plan for; the rest is for what a plan omits


def _memory(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, memory=dataclasses.replace(recipe.memory, **changes))


SAVINGS: tuple[Callable[[Recipe], Recipe], ...] = (
    lambda recipe: recipe,
    lambda recipe: _memory(recipe, gradient_checkpointing=True),
    lambda recipe: _memory(recipe, decode_slice=recipe.memory.decode_slice or 1),
    lambda recipe: dataclasses.replace(recipe, reward_dtype="bfloat16"),
    lambda recipe: _memory(recipe, text_encoders={"stay": "offload"}.get(recipe.memory.text_encoders, "drop")),
)


def fitted(recipe: Recipe, device: str = "auto", *, planned_for: torch.device | None = None) -> tuple[Recipe, str]:
    """The recipe with the first settings whose plan fits, and a line that names them; unchanged without a `fit`.

    Args:
        device: the one that `fit: auto` refers to.
        planned_for: resolves a mixed_precision of auto; `device` if None.

    Raises:
        InputError: a `fit` that is neither auto nor a size, or that no settings reach.
    """
    if not recipe.memory.fit:
        return recipe, ""
    place = pick_device(own_device(device)) if recipe.memory.fit == "auto" or planned_for is None else META
    limit = ROOM * memory_of(recipe.memory.fit, place)
    processes = launched()[1]
    own, least = recipe, float("inf")
    for saving in SAVINGS:
        own = saving(own)
        batch = own.train_batch_size // processes  # pictures per process, over its accumulation steps
        for rounds in range(own.gradient_accumulation_steps, batch + 1):
            if batch % rounds:
                continue
            share = dataclasses.replace(own, train_batch_size=batch, gradient_accumulation_steps=rounds)
            peak = plan(share, planned_for or place).training.peak
            least = min(least, peak)
            if peak <= limit:
                chosen = dataclasses.replace(own, gradient_accumulation_steps=rounds)
                return chosen, _line(recipe, chosen, peak, limit)
    raise InputError(
        f"memory.fit: {recipe.memory.fit} leaves {gigabytes(limit)} for the plan, but {recipe.generator} "
        f"needs {gigabytes(least)}, even one picture at a time with all savings; lower lora.rank, set "
        "memory.quantise: nf4, or move the rewards to another device with reward_device"
    )


def memory_of(fit: str, device: torch.device) -> float:
    """Bytes of a `fit`: auto is the device's whole memory."""
    if fit == "auto":
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB)?", fit, re.IGNORECASE)
    if not size:
        raise InputError(f"memory.fit must be auto or a size such as 24GB, not {fit!r}")
    return float(size[1]) * 1e9


def _line(asked: Recipe, chosen: Recipe, peak: int, limit: float) -> str:
    """What was changed, and the planned memory."""
    names = ("gradient_accumulation_steps", "reward_dtype")
    pairs = [(name, getattr(asked, name), getattr(chosen, name)) for name in names]
    before, after = vars(asked.memory), vars(chosen.memory)
    pairs += [(f"memory.{name}", before[name], after[name]) for name in before]
    changed = ", ".join(f"{name} {now}" for name, was, now in pairs if was != now) or "nothing changed"
    return f"fit {asked.memory.fit}: {changed}; planned at {gigabytes(peak)} of at most {gigabytes(limit)}"
