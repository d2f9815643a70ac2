"""Saving and loading noise networks.

An adapter is a directory of three files: `adapter_model.safetensors` (the trained weights under PEFT's
names), `adapter_config.json` (PEFT's fields) and `hypernoise.json` (what PEFT's fields cannot express: the base it
was trained on, that the output layer drops its base path, the objective). It is not an ordinary LoRA, and a
stock loader would apply it wrongly, hence the third file and the checks here.

Adapters released by the paper's authors are directories of the first two files only, with or without PEFT's prefix on
the names; they load too, recognised by the missing third file. Ours contain everything that their code reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hypernoise.errors import InputError, check_is, first_line, no_traceback
from hypernoise.files import output_folder, parse_json, read_json, write_json
from hypernoise.generators.base import Generator
from hypernoise.generators.hub import HUB_ID, fetch_adapter
from hypernoise.generators.presets import PRESETS
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.lora import LoRANoise, adaptable_layers
from hypernoise.noise.residual import ResidualNoise
from hypernoise.noise.spectral import SpectralNoise, rebuilt
from hypernoise.rewards.weights import read_state
from hypernoise.settings import finite
from hypernoise.version import __version__

FORMAT = 1
WEIGHTS, CONFIG, ABOUT = "adapter_model.safetensors", "adapter_config.json", "hypernoise.json"
PART = ".adapter-"  # prefix of unfinished folders
PREFIX = "base_model.model."  # PEFT's prefix of every name in its files
NOTE = "a noise network (hypernoise): not an ordinary LoRA; its output layer omits the base path"

DIFFUSERS = "pytorch_lora_weights.safetensors"  # written by save_lora_adapter and save_lora_weights
FREE = {  # PEFT's fields that do not change the effect of trained weights
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "auto_mapping"),
    *("megatron_core", "qalora_group_size", "runtime_config", "eva_config"),
}
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # initialisations that leave the base weights unchanged

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
MOST = 4096  # largest whole number among settings, unless a tensor in the file is longer


def save_adapter(
    network: NoiseNetwork, folder: str | Path, *, generator: Generator | None = None, training: Mapping[str, Any] = {}
) -> None:
    """Writes a noise network's three files into `folder`, replacing an existing adapter; other files stay.

    Until the last file is in place the folder holds no valid adapter, so a reader never sees half of one.

    Args:
        generator: the base it was trained on; a LoRA network knows its own.
        training: facts about its training to keep (objective, rewards, steps), as JSON values.

    Raises:
        InputError: a stand-alone network without its generator, or a network of another kind.
    """
    kinds = "a LoRANoise, ResidualNoise or SpectralNoise; torch.save the weights of a network of your own"
    check_is(network, tuple(NETWORKS.values()), "the network", kinds)
    if generator is None and not hasattr(network, "generator"):
        raise InputError("name the generator it was trained on: save_adapter(network, folder, generator=generator)")
    place = output_folder(folder)
    for left in place.glob(f"{PART}*"):  # left by a killed process
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PART, dir=place) as temporary:
        write_adapter(network, Path(temporary), generator=generator, training=training)
        (place / ABOUT).unlink(missing_ok=True)
        for name in (WEIGHTS, CONFIG, ABOUT):
            os.replace(Path(temporary) / name, place / name)


def write_adapter(
    network: NoiseNetwork, folder: Path, *, generator: Generator | None, training: Mapping[str, Any]
) -> None:
    """The three files, into a folder that exists."""
    base = network.generator if isinstance(network, LoRANoise) else generator
    state = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in network.trainable_state().items()}
    save_file(state, folder / WEIGHTS, metadata={"note": NOTE})  # with several keys safetensors shuffles their order
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes it owner-only
    fields: dict[str, Any] = {"peft_type": None, "note": "not a PEFT adapter; see hypernoise.json"}
    if isinstance(network, LoRANoise):
        fields = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": network.generator.name,
            "r": network.settings["rank"],
            "lora_alpha": network.settings["alpha"],
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted(network.layers),
            "inference_mode": True,
        }
    write_json(folder / CONFIG, fields)
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "kind": network.kind,
        "settings": network.settings,
        "output_layer": getattr(network, "output_layer", None),
        "output_layer_base_path": False if isinstance(network, LoRANoise) else None,
        "base": base.describe() if base is not None else None,
        "call": base.call_settings() if base is not None else {},
        "training": training,
    }
    with no_traceback("training must hold JSON values"):
        about = parse_json(json.dumps(about), "training")  # as it is read back
    write_json(folder / ABOUT, {**about, "digest": digest_of(about, network.trainable_state())})


def load_adapter(generator: Generator, folder: str | Path, *, check_base: bool = True) -> NoiseNetwork:
    """The noise network saved in `folder`, on `generator`.

    Args:
        folder: a directory written by `save_adapter` or in the paper authors' released format, a Hub
            repository of either, "owner/name" or "owner/name@revision", or "scenes" for the packaged one.
        check_base: refuse other weights than the adapter was trained on; if False (for a merge or a fine-tune of its
            base), only warn. Layers have to fit in any case.

    Raises:
        InputError: no adapter there, a broken or pickled weights file, a newer format, or another base.
    """
    return read_network(generator, adapter_folder(folder), NETWORKS, check_base=check_base)


NETWORKS: dict[str, type] = {network.kind: network for network in (LoRANoise, ResidualNoise, SpectralNoise)}


def read_network(generator: Any, folder: Path, kinds: Mapping[str, type], *, check_base: bool = True) -> Any:
    """The network saved in `folder`, of one of these kinds; see `load_adapter`."""
    about = read_about(folder)
    compare_base(about, generator, folder, strict=check_base)
    kind, settings, state = about["kind"], about["settings"], read_weights(folder)
    other = ResidualNoise if hasattr(generator, "denoise_first") else LoRANoise
    fitting = [name for name in kinds if name != other.kind]
    if kind not in fitting:
        fix = "; a fine-tuned LoRA goes to --finetuned" if kind == "finetune" else ""
        fix = "; a noise network goes to --adapter" if fitting == ["finetune"] else fix
        raise InputError(f"{folder} holds a {kind!r} network, not {' or '.join(fitting)} for {generator.name!r}{fix}")
    if about.get("released"):  # which records no layers
        layers, there = {name.rpartition(".lora_")[0] for name in state}, set(adaptable_layers(generator.denoiser))
        if not layers & there:
            raise InputError(f"{folder} matches no weight of {generator.name!r}: made for another architecture")
        settings = settings if layers == there else {**settings, "layers": sorted(layers)}
    check_settings(settings, state, folder / ABOUT)
    make = partial(kinds[kind], **settings)
    try:
        if issubclass(kinds[kind], LoRANoise):
            network = make(generator)
        else:
            check_size(make, state, folder / ABOUT)
            network = rebuilt(generator, settings) if kind == SpectralNoise.kind else make().to(generator.device)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(
            f"{folder / ABOUT} has settings that a {kind!r} network does not take: {first_line(error)}"
        ) from error
    if kind == ResidualNoise.kind and network.noise_shape != tuple(generator.noise_shape):
        raise InputError(f"{folder} takes noise of {network.noise_shape}, {generator.name!r} {generator.noise_shape}")
    network.load_trainable_state(state)
    if "digest" in about and about["digest"] != digest_of(about, state):
        raise InputError(
            f"{folder} was changed or damaged since it was saved (its weights or its hypernoise.json); copy it "
            "again, or, if the change is yours, remove `digest` from hypernoise.json"
        )
    return network


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


def adapter_folder(source: str | Path) -> Path:
    """The directory of an adapter: itself, the packaged one, or the local copy of a Hub repository.

    A repository is downloaded if needed: safetensors and JSON files only.
    """
    check_is(source, str | Path, "the adapter", "the directory of one, or its owner/name on the Hub")
    folder = Path(source)
    preset = PRESETS.get(str(source))
    there = os.path.exists(folder)  # of a name too long for a path, False
    if preset is not None and preset.adapter and not there:
        return Path(str(files("hypernoise").joinpath(preset.adapter)))
    if there or not HUB_ID.fullmatch(str(source)):
        return folder
    repository, _, revision = str(source).partition("@")
    try:
        return fetch_adapter(repository, revision or None)
    except InputError as error:
        raise InputError(f"no adapter at {source}: it is not a directory, and as a Hub repository: {error}") from error


def read_about(folder: Path) -> dict[str, Any]:
    """The contents of `hypernoise.json`, checked for its format."""
    if not os.path.isdir(folder):
        raise InputError(f"no adapter at {folder}: it is not a directory")
    file = folder / ABOUT
    if not file.is_file() and (folder / CONFIG).is_file() and not _is_ours(folder / WEIGHTS):
        settings = foreign_settings(folder)
        return {"format": FORMAT, "kind": LoRANoise.kind, "settings": settings, "base": None, "released": True}
    if not file.is_file():
        theirs = f"; a LoRA's {DIFFUSERS} needs PEFT's {CONFIG} and {WEIGHTS}" if (folder / DIFFUSERS).exists() else ""
        raise InputError(f"{folder} is not a hypernoise adapter: it has no hypernoise.json{theirs}")
    about = read_json(file, str(file))
    written = about.get("format") if isinstance(about, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise InputError(f"{file} has format {written}, this version reads {FORMAT}: upgrade hypernoise")
    if written != FORMAT or not _well_formed(about):
        raise InputError(
            f"{file} is not valid: format must be {FORMAT}, kind a text, settings and call mappings, and base null or "
            "a mapping with a name and, as probe, a list of numbers"
        )
    return about


def _well_formed(about: Mapping[str, Any]) -> bool:
    base = {"name": ""} if about.get("base", ...) is None else about.get("base")
    mappings = about.get("settings"), about.get("call") or {}, base
    if not isinstance(about.get("kind"), str) or not all(isinstance(part, dict) for part in mappings):
        return False
    name, probe = base.get("name"), base.get("probe", [])  # type: ignore[union-attr]
    return isinstance(name, str) and isinstance(probe, list) and all(one is None or finite(one) for one in probe)


def _is_ours(weights: Path) -> bool:
    """Whether `save_adapter` wrote the file: without its hypernoise.json it is incomplete, not a released adapter."""
    try:
        with safe_open(weights, "pt") as file:
            return (file.metadata() or {}).get("note") == NOTE
    except SafetensorError:
        return True
    except OSError:
        return False


def compare_base(about: dict[str, Any], generator: Generator, folder: Path, *, strict: bool = True) -> None:
    """Refuses an adapter, described by its `hypernoise.json`, that was made for another generator; or warns of it."""
    saved, here = about["base"], generator.describe()
    if saved is None:
        return
    if saved.get("fingerprint") != here.get("fingerprint"):
        differs = (
            f"{saved['name']!r} ({saved.get('denoiser', 'a module')}) and does not fit {here['name']!r}: the networks "
            "differ in architecture"
        )
        packed = "if it is that base with its layers packed by a quantiser"
        despite = packed if about["kind"] == SpectralNoise.kind else ""  # it calls none of these layers
    else:
        values = differing(saved.get("probe", []), here.get("probe", []), about["kind"])
        if not values and saved.get("weights") == here.get("weights"):
            return
        differs = f"other weights ({saved['name']!r}) than those of {here['name']!r}: {values or 'their values differ'}"
        despite = "for a merge or a fine-tune of that base, or a LoRA fused into it"
    differs = f"the adapter {folder} was made for {differs}"
    if strict:
        advice = f"; {despite}, pass check_base=False (generate --no-check-base)" if despite else ""
        raise InputError(differs + advice)
    warnings.warn(f"{differs}; f was trained on the original base", stacklevel=3)


def differing(saved: Sequence[float | None], here: Sequence[float | None], kind: str) -> str:
    """The difference between two weight probes, for a message; empty if they count as the same."""
    pairs = zip(saved, here, strict=False)
    known = [(was, now) for was, now in pairs if was is not None and now is not None]  # quantised ones are unknown
    same = [math.isclose(was, now, rel_tol=8e-3, abs_tol=1e-5) for was, now in known]  # bf16 rounding
    # a spectral network may fit a base with fused LoRAs, which leave some matrices unchanged; chance leaves 1 in 100
    close = all(same) or (kind == SpectralNoise.kind and sum(same) > len(same) / 16)
    return "" if close else f"{len(same) - sum(same)} of {len(same)} sampled weights"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The trained weights of an adapter directory, without PEFT's prefix on the names. A pickle is not read."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; a pickled adapter_model.bin is not read")
    state = {name.removeprefix(PREFIX): tensor for name, tensor in read_state(file).items()}
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            raise InputError(f"{file}: {name} is {tensor.dtype}, not floating-point")
        if not tensor.isfinite().all():
            raise InputError(f"{file}: {name} holds NaN or inf: it is damaged, or training diverged")
    return state
