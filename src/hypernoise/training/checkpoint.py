"""Training checkpoints: an adapter with the optimiser's state and the step beside it.

Noise and prompt order are functions of the seed and the step, and the trainer seeds torch from both at
every step, so nothing else is needed to go on to the same numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hypernoise.adapters import check_base, read_about, read_weights, write_adapter
from hypernoise.errors import InputError
from hypernoise.files import atomic_folder, write_json
from hypernoise.generators.base import Generator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.rewards.ensemble import WeightedSum

KEPT = 2


def save_checkpoint(
    output: Path,
    step: int,
    network: NoiseNetwork,
    generator: Generator,
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    fixed: Mapping[str, Any],
    reward: WeightedSum | None = None,
) -> Path:
    """Writes `output`/checkpoint-STEP, whole or not at all, and drops all but the last two.

    `fixed` holds the settings that a resumed run must share to reach the same numbers.
    """
    folder = output / f"checkpoint-{step:06d}"
    if folder.exists():  # the same step, saved before
        shutil.rmtree(folder)
    with atomic_folder(folder) as temporary:
        write_adapter(network, temporary, generator=generator, training={**fixed, "steps": step})
        torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, temporary / "optimizer.pt")
        scales = reward.state if reward is not None else {}
        write_json(temporary / "state.json", {"step": step, "fixed": dict(fixed), "reward_scales": scales})
    for old in checkpoints(output)[:-KEPT]:
        shutil.rmtree(old)
    return folder


def checkpoints(output: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    whole = [folder for folder in output.glob("checkpoint-*") if (folder / "state.json").is_file()]
    return sorted(whole, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def load_checkpoint(
    folder: Path,
    network: NoiseNetwork,
    generator: Generator,
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    fixed: Mapping[str, Any],
    reward: WeightedSum | None = None,
) -> int:
    """Restores a run's state and returns its step. Raises InputError if settings or base are not the saved ones."""
    state = json.loads((folder / "state.json").read_text())
    changed = [name for name, value in fixed.items() if state["fixed"].get(name) != value]
    if changed:
        name = changed[0]
        raise InputError(
            f"{folder} was trained with {name} = {state['fixed'].get(name)!r}, not {fixed[name]!r}; "
            "resume with the same settings, or give another --output"
        )
    check_base(read_about(folder), generator, folder)
    network.load_trainable_state(read_weights(folder))
    saved = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    if reward is not None:
        reward.load_state(state.get("reward_scales", {}))
    return int(state["step"])
