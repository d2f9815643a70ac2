"""Loads generators by name."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from packaging.version import Version
from safetensors.torch import load_file
from torch import nn

from hypernoise.errors import InputError, check_is, no_traceback, unknown
from hypernoise.files import check_file, read_json
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES, unsupported
from hypernoise.generators.hub import explained, fetch
from hypernoise.generators.loading import Loading
from hypernoise.generators.memory import NO_SAVING, Memory
from hypernoise.generators.presets import PRESETS, Preset
from hypernoise.precision import resolve
from hypernoise.quiet import no_loading_bars
from hypernoise.settings import launched

DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"  # its old name


def load_generator(
    source: str | Path | DiffusionPipeline,
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    size: tuple[int, int] | None = None,
    max_sequence_length: int = 0,
    memory: Memory = NO_SAVING,
) -> DiffusionGenerator:
    """A frozen generator from a registered name, a pipeline directory, or a pipeline object.

    Args:
        source: a name in `PRESETS`, a directory written by `save_pretrained`, or a diffusers pipeline
            (used as it is; only size and memory apply to it).
        device: "auto" (CUDA, then MPS, then CPU) or a torch device.
        dtype: of the frozen weights.
        revision: of the preset's repository; if None, the pinned one, or the newest.
        size: height and width in pixels; if None, the preset's, or the pipeline's default.
        max_sequence_length: tokens of a prompt that the text encoder reads; 0: the generator's default.
        memory: ways to need less memory.

    Raises:
        InputError: unknown name, a directory without a pipeline, a device that does not exist, or files that
            cannot be loaded, with the fix.
    """
    check_is(source, str | Path | DiffusionPipeline, "the generator", "a name, a pipeline directory or a pipeline")
    check_is(memory, Memory, "memory", "a Memory, such as Memory(decode_slice=1)")
    if isinstance(source, DiffusionPipeline):
        name = str(source.config.get("_name_or_path", "pipeline"))
        return DiffusionGenerator(source, name=name, size=size, memory=memory)
    place = pick_device(device)
    name = str(source)
    preset = PRESETS.get(name)
    if preset is None:
        if not os.path.isdir(source):  # False for names that no path can have
            known = next((own for own, preset in PRESETS.items() if preset.repository == name), None)
            raise InputError(f"{name} is called {known!r} here") if known else unknown("generator", name, PRESETS)
        preset = Preset(check_directory(Path(source)))
    location, at = preset.repository or name, None
    if preset.packaged:
        location = str(files("hypernoise").joinpath(preset.packaged))
    if preset.repository:
        at = revision or preset.revision
        fetch(location, "model_index.json", revision=at)  # its errors are clearer than the pipeline's
    with no_loading_bars(), no_traceback(f"generator {name!r} cannot be used"):
        pipeline = _pipeline(name, preset, location, at, dtype).to(place)
        pipeline.register_to_config(_name_or_path=name)  # as `attach` names it: not the package's folder
        if place.type == "cpu" and isinstance(pipeline.vae, AutoencoderTiny):  # it then decodes in 2/3 of the time
            pipeline.vae.to(memory_format=torch.channels_last)  # type: ignore[reportCallIssue]
        call = preset.reading(max_sequence_length).call
        return DiffusionGenerator(pipeline, name=name, size=size or preset.size, call=call, memory=memory)


def load_as(loading: Loading, *, device: str = "auto") -> DiffusionGenerator:
    """The generator of a recipe or a command's flags. Raises the InputErrors of `load_generator`."""
    return load_generator(
        loading.generator,
        device=device,
        dtype=resolve(loading.mixed_precision, pick_device(device)).dtype,
        revision=loading.revision or None,
        size=loading.size,
        max_sequence_length=loading.max_sequence_length,
        memory=loading.memory,
    )


def _pipeline(name: str, preset: Preset, location: str, revision: str | None, dtype: torch.dtype) -> Any:
    settings: dict[str, Any] = {"use_safetensors": True, DTYPE: dtype}
    parts, what = {}, f"generator {name!r}"
    for component, part in preset.parts.items():
        cls = getattr(diffusers, part.cls)
        more = settings if hasattr(cls, "dtype") else {}
        with explained(part.repository, None, part.folder, what):
            if part.folder.endswith(".safetensors"):
                module = cls.from_config(cls.load_config(location, subfolder=component, revision=revision))
                module.load_state_dict(load_file(fetch(part.repository, part.folder)))
                parts[component] = module.to(dtype)
            else:
                parts[component] = cls.from_pretrained(part.repository, subfolder=part.folder, **more)
    with explained(location, revision, "a part of the pipeline", what):
        pipeline: Any = DiffusionPipeline.from_pretrained(
            location, revision=revision, variant=preset.variant, trust_remote_code=False, **settings, **parts
        )
        modules = nn.ModuleDict({own: part for own, part in pipeline.components.items() if isinstance(part, nn.Module)})
        lacking = [name for name, weight in modules.named_parameters() if weight.is_meta]
        if lacking:
            raise InputError(f"generator {name!r} lacks {len(lacking)} weights, such as {lacking[0]}")
        if preset.lora:
            owner, repository, file = preset.lora.split("/")
            lora = fetch(f"{owner}/{repository}", file)
            pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
            if not pipeline.get_active_adapters():
                raise InputError(f"{preset.lora} changes no weight of this {type(pipeline).__name__}")
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()
    if preset.scheduler:
        pipeline.scheduler = pipeline.scheduler.from_config({**pipeline.scheduler.config, **preset.scheduler})
    return pipeline


def check_directory(folder: Path) -> str:
    """The class of the pipeline saved in a folder. Raises InputError if there is none, if a pipe or a device is among
    its files, or if its settings are not a JSON object."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{folder} is not a pipeline directory: it has no model_index.json (see save_pretrained)")
    for file in sorted(folder.glob("*/*")):
        if not file.is_dir():
            check_file(file, str(file))
    for file in (index, *sorted(folder.glob("*/*config.json"))):
        if not isinstance(read_json(file, str(file)), dict):
            raise InputError(f"{file} must be a JSON object of settings")
    about = read_json(index, str(index))
    pipeline_class = about.get("_class_name")
    if not isinstance(pipeline_class, str):
        raise InputError(f"{index} does not name a pipeline class")
    if pipeline_class not in FAMILIES:
        raise unsupported(f"{folder} holds a {pipeline_class}")
    if not hasattr(diffusers, pipeline_class):
        raise InputError(
            f"diffusers {diffusers.__version__} has no {pipeline_class}, so it cannot load {folder}: load the pipeline "
            "with your own class, and pass the object to load_generator"
        )
    return pipeline_class


def pick_device(device: str) -> torch.device:
    """An existing torch device: "auto" is CUDA, else MPS or the CPU; "cuda" is each process's own GPU if launched."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and launched()[1] > 1:
        device = f"cuda:{int(os.environ.get('LOCAL_RANK') or 0)}"
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise InputError(f"device {device!r} does not exist here; try --device auto or cpu") from error
    return place
