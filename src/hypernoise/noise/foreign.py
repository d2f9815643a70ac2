"""LoRAs saved by PEFT or diffusers, such as those the paper's authors release: settings and weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from hypernoise.errors import InputError, first_line
from hypernoise.files import parse_json, read_json

CONFIG = "adapter_config.json"  # PEFT's
DIFFUSERS = "pytorch_lora_weights.safetensors"  # written by save_lora_adapter and save_lora_weights
NOTED = "lora_adapter_metadata"  # PEFT's fields, in that file's metadata
COMPONENTS = ("unet.", "transformer.")  # prefixes of every name that save_lora_weights writes

FREE = {  # PEFT's fields that do not change the effect of trained weights
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "auto_mapping"),
    *("megatron_core", "qalora_group_size", "runtime_config", "eva_config"),
}
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # initialisations that leave the base weights unchanged


def is_foreign(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / DIFFUSERS).is_file()


def foreign_settings(folder: Path) -> dict[str, Any]:
    """Rank and alpha. InputError for invalid fields, or for fields that a plain LoRA lacks."""
    fields, file = _fields(folder)
    usual: dict[str, Any] = {**LoraConfig().to_dict(), "peft_type": "LORA"}
    other = []
    for name, value in fields.items():
        plain = value in STARTS if name == "init_lora_weights" else value == usual.get(name)
        if not (name in FREE or plain or (not value and not usual.get(name))):
            other.append(f"{name} = {value!r}")
    if other:
        raise InputError(f"{file} has {', '.join(other)}, which a noise network cannot have")
    try:
        return {"rank": int(fields["r"]), "alpha": float(fields["lora_alpha"])}
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{file} is not a LoRA's configuration: {error!r}") from error


def _fields(folder: Path) -> tuple[Mapping[str, Any], Path]:
    file = folder / CONFIG
    try:
        if file.is_file():
            fields = read_json(file, "it")
        else:
            file = folder / DIFFUSERS
            with safe_open(file, "pt") as opened:
                noted = (opened.metadata() or {}).get(NOTED)
            if noted is None:
                raise InputError(
                    f"{file} does not record its rank and alpha; add them as r and lora_alpha in {CONFIG} next to it"
                )
            fields = {without_component(name): value for name, value in dict(parse_json(noted, "its metadata")).items()}
    except (ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"{file} is not a LoRA's configuration: {first_line(error)}") from error
    if not isinstance(fields, dict):
        raise InputError(f"{file} is not a LoRA's configuration: it must be a mapping")
    return fields, file


def without_component(name: str) -> str:
    """A name in a pipeline's file as its denoiser names it."""
    return next((name.removeprefix(part) for part in COMPONENTS if name.startswith(part)), name)
