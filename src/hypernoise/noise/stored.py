"""An adapter's files before a network is built from them: their values, settings and digest; and the settings of LoRAs
saved by PEFT, such as those the paper's authors release."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from hypernoise.errors import InputError, first_line
from hypernoise.files import read_json

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
MOST = 4096  # largest whole number among settings, unless a tensor in the file is longer

CONFIG = "adapter_config.json"  # PEFT's
DIFFUSERS = "pytorch_lora_weights.safetensors"  # written by save_lora_adapter and save_lora_weights
FREE = {  # PEFT's fields that do not change the effect of trained weights
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "auto_mapping"),
    *("megatron_core", "qalora_group_size", "runtime_config", "eva_config"),
}
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # initialisations that leave the base weights unchanged


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
        limit = 1e9 if name == "alpha" else most
        for part in value if isinstance(value, list) else [value]:
            number = isinstance(part, int | float) and 0 <= part <= limit
            if not (number or part is None or isinstance(part, str)):
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


def foreign_settings(folder: Path) -> dict[str, Any]:
    """The rank and alpha of a LoRA that PEFT saved. Raises InputError for no rank or alpha, or fields that a plain LoRA
    lacks."""
    file = folder / CONFIG
    usual: dict[str, Any] = {**LoraConfig().to_dict(), "peft_type": "LORA"}
    try:
        fields = dict(read_json(file, str(file)))
        rank, alpha = int(fields["r"]), float(fields["lora_alpha"])
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(
            f"{file} is not a LoRA's configuration: {type(error).__name__}: {first_line(error)}"
        ) from error
    other = []
    for name, value in fields.items():
        plain = value in STARTS if name == "init_lora_weights" else value == usual.get(name)
        if not (plain or name in FREE or (not value and not usual.get(name))):
            other.append(f"{name} = {value!r}")
    if other:
        raise InputError(f"{file} has {', '.join(other)}, which a noise network cannot have")
    return {"rank": rank, "alpha": alpha}
