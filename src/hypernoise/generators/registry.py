"""Names of generators and how each is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from packaging.version import Version
from safetensors import SafetensorError

from hypernoise.errors import InputError, unknown
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES

DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"  # its old name


@dataclass(frozen=True)
class Preset:
    """Where a named generator's weights are: a Hub repository, or a folder inside this package."""

    repository: str | None = None
    revision: str | None = None
    packaged: str | None = None
    size: tuple[int, int] | None = None


PRESETS: dict[str, Preset] = {
    "scenes": Preset(packaged="scenes/weights/generator"),
    "sd-turbo": Preset(repository="stabilityai/sd-turbo", size=(512, 512)),
}


def load_generator(
    source: str | Path | DiffusionPipeline, *, device: str = "auto", dtype: torch.dtype = torch.float32
) -> DiffusionGenerator:
    """A frozen generator from a registered name, a pipeline directory, or a pipeline object.

    Args:
        source: a name in `PRESETS`, a directory written by `save_pretrained`, or a diffusers pipeline
            (used as it is, where it is: device and dtype are then ignored).
        device: "auto" (CUDA, then MPS, then CPU) or a torch device.
        dtype: of the frozen weights.

    Raises:
        InputError: unknown name, a directory that is no pipeline, or a device that does not exist.
    """
    if isinstance(source, DiffusionPipeline):
        return DiffusionGenerator(source, name=str(source.config.get("_name_or_path", "pipeline")))
    place = pick_device(device)
    name, preset = str(source), PRESETS.get(str(source))
    if preset is None and not Path(source).is_dir():
        raise unknown("generator", name, PRESETS)
    if preset is None:
        preset = Preset()
        location, revision = str(source), None
        _check_directory(Path(source))
    elif preset.packaged:
        location, revision = str(files("hypernoise").joinpath(preset.packaged)), None
    else:
        location, revision = str(preset.repository), preset.revision
    try:
        with _no_loading_bars():
            pipeline = DiffusionPipeline.from_pretrained(
                location, revision=revision, use_safetensors=True, trust_remote_code=False, **{DTYPE: dtype}
            )
    except (OSError, ValueError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise InputError(f"generator {name!r} could not be loaded from {location}: {first_line}") from error
    return DiffusionGenerator(pipeline.to(place), name=name, size=preset.size)


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Reading weights off the disk shows no bar; a download shows the hub's own."""
    libraries = [log for log in (diffusers.utils.logging, transformers.utils.logging) if log.is_progress_bar_enabled()]
    for log in libraries:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in libraries:
            log.enable_progress_bar()


def _check_directory(folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{folder} is not a pipeline directory: it has no model_index.json (see save_pretrained)")
    try:
        pipeline_class = json.loads(index.read_text())["_class_name"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{index} does not name a pipeline class") from error
    if pipeline_class not in FAMILIES:
        raise InputError(f"{folder} holds a {pipeline_class}, which is not supported; known: {', '.join(FAMILIES)}")


def pick_device(device: str) -> torch.device:
    """A torch device that exists here; "auto" takes CUDA, then MPS, then the CPU."""
    if device == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device!r} does not exist here; try --device auto or cpu") from error
    return place
