"""Training checkpoints: an adapter, the rest of a run's state, and the SHA-256 of every file.

Noise, prompt order and torch's global random state are functions of the seed and the step, so nothing else is needed to
resume to the same numbers.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from hypernoise.adapters import PART, WEIGHTS, compare_base, read_about, read_weights, write_adapter
from hypernoise.errors import InputError
from hypernoise.files import UNFINISHED, atomic_folder, read_json, write_json, writing
from hypernoise.generators.base import Generator
from hypernoise.noise.base import NoiseNetwork

ABOUT, STATE, SUMS = "state.json", "training_state.pt", "sha256.json"


class Stateful(Protocol):
    """A part of a run's state, in tensors and plain values: the optimiser, the running average ..."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def save_checkpoint(
    output: Path,
    step: int,
    network: NoiseNetwork,
    generator: Generator,
    state: Mapping[str, Stateful],
    *,
    fixed: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes `output`/checkpoint-STEP, complete or not at all, and deletes all but the last `keep`.

    Args:
        fixed: the settings that must be the same on resume to reach the same numbers.

    Raises:
        InputError: it cannot be written, for example on a full disk; earlier ones are intact.
    """
    folder = output / f"checkpoint-{step:06d}"
    with writing(f"checkpoint at step {step}", "the earlier checkpoints are intact"), _replacing(folder) as temporary:
        write_adapter(network, temporary, generator=generator, training={**fixed, "steps": step})
        with (temporary / STATE).open("wb") as file:
            torch.save({name: part.state_dict() for name, part in state.items()}, file)
        write_json(temporary / ABOUT, {"step": step, "fixed": dict(fixed)})
        write_json(temporary / SUMS, {file.name: _sum(file) for file in sorted(temporary.iterdir())})
    for old in checkpoints(output)[:-keep]:
        gone = old.replace(old.with_name(f".{old.name}.gone"))  # `tidied` removes it if deletion is interrupted
        shutil.rmtree(gone)
    return folder


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that replaces `folder`, if it exists, only once complete."""
    old = folder.with_name(f".{folder.name}.old")
    with atomic_folder(folder) as temporary:
        yield temporary
        if folder.exists():  # the same step, saved earlier
            folder.replace(old)
    shutil.rmtree(old, ignore_errors=True)


def tidied(output: Path) -> None:
    """Removes what a killed save left behind, and restores a checkpoint that it was about to replace."""
    for old in output.glob(".checkpoint-*.old"):
        folder = output / old.name.removeprefix(".").removesuffix(".old")
        if not folder.exists():
            old.replace(folder)
    for name in (".checkpoint-*", f"{PART}*", f"*/{PART}*"):
        for left in output.glob(name):
            shutil.rmtree(left, ignore_errors=True)
    for file in output.glob(f".*{UNFINISHED}"):
        file.unlink(missing_ok=True)


def checkpoints(output: Path) -> list[Path]:
    """A run's checkpoints, oldest first; ignores other folders."""
    named = [folder for folder in output.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdecimal()]
    whole = [folder for folder in named if (folder / ABOUT).is_file()]
    return sorted(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def newest_whole(output: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, and the faults of newer ones.

    Raises:
        InputError: all existing checkpoints are damaged.
    """
    broken: list[str] = []
    for folder in reversed(checkpoints(output)):
        fault = damage(folder)
        if fault is None:
            return folder, broken
        broken.append(f"{folder.name} is damaged ({fault})")
    if broken:
        raise InputError(
            f"every checkpoint in {output} is damaged: {'; '.join(broken)}; delete them, or give another --output-dir"
        )
    return None, broken


def damage(folder: Path) -> str | None:
    """Which file of a checkpoint is missing or changed; None if all are intact."""
    try:
        sums = read_json(folder / SUMS, SUMS)
    except InputError as error:
        return str(error)
    if not isinstance(sums, dict):
        return f"{SUMS} is not an object"
    for name in (ABOUT, STATE, WEIGHTS):
        if name not in sums:
            return f"{SUMS} does not name {name}"
    for name, expected in sums.items():
        file = folder / Path(name).name
        if not file.is_file():
            return f"{name} is missing"
        if _sum(file) != expected:
            return f"{name} is not what was written"
    return None


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def load_checkpoint(
    folder: Path,
    network: NoiseNetwork,
    generator: Generator,
    state: Mapping[str, Stateful],
    *,
    fixed: Mapping[str, Any],
) -> int:
    """Restores a run's state and returns its step. Raises InputError if settings or base differ from the saved ones."""
    about = read_json(folder / ABOUT, f"{folder / ABOUT}")
    saved = about["fixed"]
    for name, value in fixed.items():
        if saved.get(name) != value:
            raise InputError(
                f"{folder} was trained with {name} = {saved.get(name)!r}, not {value!r}; "
                "resume with the same settings, or give another --output-dir"
            )
    compare_base(read_about(folder), generator, folder)
    network.load_trainable_state(read_weights(folder))
    parts = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    for name, part in state.items():
        part.load_state_dict(parts[name])
    return int(about["step"])
