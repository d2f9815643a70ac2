"""Training checkpoints: an adapter with the optimiser's state and the step beside it, and the sum of every file.

Noise and prompt order are functions of the seed and the step, and the trainer seeds torch from both at
every step, so nothing else is needed to go on to the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from hypernoise.adapters import WEIGHTS, check_base, read_about, read_weights, write_adapter
from hypernoise.errors import InputError, first_line
from hypernoise.files import atomic_folder, write_json, writing
from hypernoise.generators.base import Generator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.optimizers import Average

KEPT = 2
STATE, OPTIMIZER, AVERAGE, SUMS = "state.json", "optimizer.pt", "average.safetensors", "sha256.json"


def save_checkpoint(
    output: Path,
    step: int,
    network: NoiseNetwork,
    generator: Generator,
    optimizer: Optimizer,
    *,
    fixed: Mapping[str, Any],
    reward: WeightedSum | None = None,
    average: Average | None = None,
    scaler: torch.amp.GradScaler | None = None,
    keep: int = KEPT,
    metric: float | None = None,
) -> Path:
    """Writes `output`/checkpoint-STEP, whole or not at all, and drops all but the last `keep` and the best.

    Args:
        fixed: the settings that a resumed run must share to reach the same numbers.
        metric: what the best checkpoint is highest in; None: this one is no candidate.

    Raises:
        InputError: it cannot be written, such as on a full disk; the earlier ones are as they were.
    """
    folder = output / f"checkpoint-{step:06d}"
    with writing(f"checkpoint at step {step}", "the earlier checkpoints are whole"), _replacing(folder) as temporary:
        write_adapter(network, temporary, generator=generator, training={**fixed, "steps": step})
        state = {"optimizer": optimizer.state_dict()}
        if scaler is not None:
            state["scaler"] = scaler.state_dict()
        with (temporary / OPTIMIZER).open("wb") as file:
            torch.save(state, file)
        if average is not None:
            saved = {name: tensor.cpu().contiguous() for name, tensor in average.state.items()}
            save_file(saved, temporary / AVERAGE, metadata={"updates": str(average.updates)})
        scales = reward.state if reward is not None else {}
        about = {"step": step, "fixed": dict(fixed), "reward_scales": scales, "metric": metric}
        about["average_updates"] = average.updates if average is not None else None
        write_json(temporary / STATE, about)
        write_json(temporary / SUMS, {file.name: _sum(file) for file in sorted(temporary.iterdir())})
    found = checkpoints(output)
    best = max((old for old in found if _metric(old) is not None), key=lambda old: _metric(old) or 0.0, default=None)
    for old in found[:-keep]:
        if old != best:
            shutil.rmtree(old)
    return folder


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder that takes `folder`'s place, if there is one, only once it is whole."""
    old = folder.with_name(f".{folder.name}.old")
    with atomic_folder(folder) as temporary:
        yield temporary
        if folder.exists():  # the same step, saved before
            folder.replace(old)
    shutil.rmtree(old, ignore_errors=True)


def tidied(output: Path) -> None:
    """Removes what a save that was killed has left, and puts back a checkpoint that it was about to replace."""
    for old in output.glob(".checkpoint-*.old"):
        folder = output / old.name.removeprefix(".").removesuffix(".old")
        if not folder.exists():
            old.replace(folder)
    for name in (".checkpoint-*", ".adapter-*"):
        for left in output.glob(name):
            shutil.rmtree(left, ignore_errors=True)


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; folders of other names beside them are passed over."""
    named = [folder for folder in output.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdecimal()]
    whole = [folder for folder in named if (folder / STATE).is_file()]
    return sorted(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def newest_whole(output: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as they were written, and what is wrong with those after it.

    Raises:
        InputError: there are checkpoints, and none is whole.
    """
    broken: list[str] = []
    for folder in reversed(checkpoints(output)):
        fault = damage(folder)
        if fault is None:
            return folder, broken
        broken.append(f"{folder.name} is damaged ({fault})")
    if broken:
        raise InputError(
            f"no checkpoint in {output} is whole: {'; '.join(broken)}; delete them, or give another --output"
        )
    return None, broken


def damage(folder: Path) -> str | None:
    """Which file of a checkpoint is missing or is not what was written; None if all are."""
    try:
        state = json.loads((folder / STATE).read_text())
        if not (folder / SUMS).is_file():
            return (
                f"{SUMS} is missing" if not isinstance(state, dict) or "metric" in state else None
            )  # there were no sums at first
        sums = json.loads((folder / SUMS).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        return f"not valid: {first_line(error)}"
    for name, found in ((STATE, state), (SUMS, sums)):
        if not isinstance(found, dict):
            return f"{name} is not an object"
    for name in (STATE, OPTIMIZER, WEIGHTS):
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


def _metric(folder: Path) -> float | None:
    try:
        return json.loads((folder / STATE).read_text()).get("metric")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        return None


def load_checkpoint(
    folder: Path,
    network: NoiseNetwork,
    generator: Generator,
    optimizer: Optimizer,
    *,
    fixed: Mapping[str, Any],
    reward: WeightedSum | None = None,
    average: Average | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> int:
    """Restores a run's state and returns its step. Raises InputError if settings or base are not the saved ones."""
    state = json.loads((folder / STATE).read_text())
    changed = [name for name, value in fixed.items() if state["fixed"].get(name) != value]
    if changed:
        name = changed[0]
        raise InputError(
            f"{folder} was trained with {name} = {state['fixed'].get(name)!r}, not {fixed[name]!r}; "
            "resume with the same settings, or give another --output"
        )
    check_base(read_about(folder), generator, folder)
    network.load_trainable_state(read_weights(folder))
    saved = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(saved["optimizer"])
    if scaler is not None and scaler.is_enabled():
        scaler.load_state_dict(saved["scaler"])
    if average is not None:
        average.load(load_file(folder / AVERAGE), state["average_updates"])
    if reward is not None:
        reward.load_state(state.get("reward_scales", {}))
    return int(state["step"])
