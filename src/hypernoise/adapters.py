"""Saving and loading noise networks.

An adapter is a directory of three files: `adapter_model.safetensors` (the trained weights under PEFT's
names), `adapter_config.json` (PEFT's fields) and `hypernoise.json` (what PEFT cannot say: on which base it
was trained, that the output layer drops its base path, the objective). It is not an ordinary LoRA, and a
stock loader would apply it wrongly: hence the third file, and the checks here.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import hypernoise
from hypernoise.errors import InputError
from hypernoise.files import output_folder, write_json
from hypernoise.generators.base import Generator
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise

FORMAT = 1
WEIGHTS, PEFT_CONFIG, ABOUT = "adapter_model.safetensors", "adapter_config.json", "hypernoise.json"
PREFIX = "base_model.model."  # what PEFT puts before every name in its files
PROBED = 64  # matrices of the base of which one weight each is noted, to recognise it by


def save_adapter(
    network: NoiseNetwork, folder: str | Path, *, generator: Generator | None = None, training: Mapping[str, Any] = {}
) -> None:
    """Writes a noise network's three files into `folder`, over an adapter that is there; nothing else is touched.

    Until the last file is in place the folder holds no valid adapter, so a reader never sees half of one.

    Args:
        generator: the base it was trained on; a LoRA knows its own.
        training: what is worth keeping of how it was made (objective, rewards, steps), JSON values.
    """
    place = output_folder(Path(folder))
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=place) as temporary:
        write_adapter(network, Path(temporary), generator=generator, training=training)
        (place / ABOUT).unlink(missing_ok=True)
        for name in (WEIGHTS, PEFT_CONFIG, ABOUT):
            os.replace(Path(temporary) / name, place / name)


def write_adapter(
    network: NoiseNetwork, folder: Path, *, generator: Generator | None, training: Mapping[str, Any]
) -> None:
    """The three files, into a folder that exists."""
    base = network.generator if isinstance(network, LoRANoise) else generator
    state = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in network.trainable_state().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes for the owner alone
    write_json(folder / PEFT_CONFIG, _peft_fields(network, base))
    about = {
        "format": FORMAT,
        "version": hypernoise.__version__,
        "kind": network.kind,
        "settings": network.settings,
        "output_layer": getattr(network, "output_layer", None),
        "output_layer_base_path": False,
        "base": describe_base(base) if base is not None else None,
        "training": dict(training),
    }
    write_json(folder / ABOUT, about)


def load_adapter(generator: Generator, folder: str | Path) -> NoiseNetwork:
    """The noise network saved in `folder`, on `generator`.

    Raises:
        InputError: no adapter there, a broken or pickled weights file, a newer format, or another base.
    """
    folder = Path(folder)
    about = read_about(folder)
    check_base(about, generator, folder)
    state = read_weights(folder)
    network = _build(about["kind"], about["settings"], generator, folder)
    try:
        network.load_trainable_state(state)
    except InputError:
        if isinstance(network, LoRANoise):
            network.remove()
        raise
    return network


def _build(kind: str, settings: dict[str, Any], generator: Generator, folder: Path) -> LoRANoise | ResidualNoise:
    try:
        if kind == LoRANoise.kind and isinstance(generator, DiffusionGenerator):
            return LoRANoise(generator, **settings)
        if kind == ResidualNoise.kind and not isinstance(generator, DiffusionGenerator):
            network = ResidualNoise(**settings).to(generator.device)
            if network.noise_shape != tuple(generator.noise_shape):
                raise InputError(
                    f"{folder} takes noise of {network.noise_shape}, {generator.name!r} {generator.noise_shape}"
                )
            return network
    except TypeError as error:
        raise InputError(
            f"{folder}/hypernoise.json has settings that a {kind!r} network does not take: {error}"
        ) from error
    raise InputError(f"{folder} holds a {kind!r} noise network, which does not go on {generator.name!r}")


def read_about(folder: Path) -> dict[str, Any]:
    """The contents of `hypernoise.json`, checked for its format."""
    if not folder.is_dir():
        raise InputError(f"no adapter at {folder}: it is not a directory")
    file = folder / ABOUT
    if not file.is_file():
        raise InputError(f"{folder} is not a hypernoise adapter: it has no hypernoise.json")
    try:
        about = json.loads(file.read_text())
        missing = {"format", "kind", "settings", "base"} - about.keys()
        wrong = [name for name in ("settings", "base") if not isinstance(about.get(name) or {}, dict)]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"{file} is not valid: {error}") from error
    if missing:
        raise InputError(f"{file} lacks {', '.join(sorted(missing))}")
    if wrong:
        raise InputError(f"{file} is not valid: {wrong[0]} must be a mapping")
    if about["format"] != FORMAT:
        raise InputError(f"{file} has format {about['format']}, this version reads {FORMAT}: upgrade hypernoise")
    return about


def describe_base(generator: Generator) -> dict[str, Any]:
    """What an adapter's base is recognised by: parameter names and shapes, and a few weights."""
    about: dict[str, Any] = {"name": generator.name, "noise_shape": list(generator.noise_shape)}
    if isinstance(generator, DiffusionGenerator):
        frozen = {
            name.replace(".base_layer", ""): parameter
            for name, parameter in generator.denoiser.named_parameters()
            if ".lora_" not in name
        }
        layout = sorted((name, list(parameter.shape)) for name, parameter in frozen.items())
        matrices = [parameter.detach().flatten() for parameter in frozen.values() if parameter.ndim > 1]
        spread = torch.linspace(0, len(matrices) - 1, min(PROBED, len(matrices))).long().tolist()
        about["denoiser"] = type(generator.denoiser).__name__
        about["fingerprint"] = hashlib.sha256(json.dumps(layout).encode()).hexdigest()
        about["probe"] = [round(float(matrices[i][matrices[i].numel() // 2]), 7) for i in spread]
    return about


def check_base(about: dict[str, Any], generator: Generator, folder: Path) -> None:
    """Refuses an adapter, described by its `hypernoise.json`, that was not made for this generator."""
    if about["base"] is None:
        return
    saved, here = about["base"], describe_base(generator)
    if saved.get("fingerprint") != here.get("fingerprint"):
        raise InputError(
            f"the adapter {folder} was made for {saved['name']!r} ({saved.get('denoiser', 'a module')}) and does not "
            f"fit {here['name']!r}: the networks differ in architecture"
        )
    if "probe" in saved and not torch.allclose(
        torch.tensor(saved["probe"]),
        torch.tensor(here["probe"]),
        rtol=8e-3,
        atol=1e-5,  # bf16's rounding
    ):
        raise InputError(
            f"the adapter {folder} was made for other weights ({saved['name']!r}) than those of {here['name']!r}"
        )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of an adapter directory, under their own names (PEFT's prefix taken off)."""
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = ", a pickled adapter_model.bin is not read" if (folder / "adapter_model.bin").exists() else ""
        raise InputError(f"{folder} has no adapter_model.safetensors{pickled}")
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is not a whole safetensors file: {error}") from error
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def _peft_fields(network: NoiseNetwork, base: Generator | None) -> dict[str, Any]:
    if not isinstance(network, LoRANoise):
        return {"peft_type": None, "note": "not a PEFT adapter; see hypernoise.json"}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base.name if base is not None else None,
        "r": network.settings["rank"],
        "lora_alpha": network.settings["alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(network.layers),
        "inference_mode": True,
    }
