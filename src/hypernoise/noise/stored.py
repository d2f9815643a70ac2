"""Checks an adapter's files before a network is built from them: values, settings, and their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hypernoise.errors import InputError

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
MOST = 4096  # largest whole number among settings, unless a tensor in the file is longer


def check_values(state: Mapping[str, Tensor], file: object) -> None:
    """Raises InputError for the first tensor that does not hold finite floating-point numbers."""
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            raise InputError(f"{file}: {name} is {tensor.dtype}, not floating-point")
        if not tensor.isfinite().all():
            raise InputError(f"{file}: {name} holds NaN or inf: it is damaged, or training diverged")


def check_settings(settings: Mapping[str, Any], state: Mapping[str, Tensor], file: object) -> None:
    """Raises InputError for settings that no network with these weights has, before one is built."""
    most = max([MOST, len(state), *(size for tensor in state.values() for size in tensor.shape)])
    for name, value in settings.items():
        for part in value if isinstance(value, list) else [value]:
            most_here = 1e9 if name == "alpha" else most
            if not (
                part is None or isinstance(part, str) or (isinstance(part, int | float) and 0 <= part <= most_here)
            ):
                raise InputError(f"{file}: the setting {name} cannot be {value!r}")
    ranks = {tensor.shape[0] for name, tensor in state.items() if name.endswith(".lora_A.weight") and tensor.ndim}
    rank = settings.get("rank")
    if ranks and isinstance(rank, int) and rank > 10 * max(ranks):  # loading reports smaller differences
        raise InputError(f"{file}: the settings have rank {rank}, the weights {max(ranks)}")


def check_size(make: Callable[[], nn.Module], state: Mapping[str, Tensor], file: object) -> None:
    """Raises InputError for settings of a network far larger than the weights, before allocating memory."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in make().parameters())
    held = sum(tensor.numel() for tensor in state.values())
    if size > max(10 * held, 10_000_000):
        raise InputError(f"{file}: its settings need {size:,} weights, but it has {held:,}")


def digest_of(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """SHA-256 of an adapter's metadata and weights, independent of their order in the files."""
    said = {name: value for name, value in about.items() if name != "digest"}
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_digest(about: Mapping[str, Any], state: Mapping[str, Tensor], folder: object) -> None:
    """Raises InputError if a digest is recorded and does not match."""
    if "digest" in about and about["digest"] != digest_of(about, state):
        raise InputError(
            f"{folder} was changed or damaged since it was saved (its weights or its hypernoise.json); copy it "
            "again, or, if the change is yours, remove `digest` from hypernoise.json"
        )
