"""One run in several processes, started by `torchrun` or `accelerate launch`.

accelerate does the work (DDP). Prompts and noise are functions of (seed, step, global sample), so the result does not
depend on how many processes share the batch.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from hypernoise.errors import no_traceback
from hypernoise.settings import launched


def say(line: str) -> None:
    """Prints a line to stderr from the first process only; nothing if it is empty."""
    if line and launched()[0] == 0:
        print(line, file=sys.stderr)


@cache
def say_once(line: str) -> None:
    """Like `say`, but prints each line only once."""
    say(line)


def start(device: torch.device, trackers: tuple[str, ...], folder: Path | None) -> Accelerator:
    """Joins the other processes, if any. Precision and accumulation come from the recipe; it overrides those that
    `accelerate launch` puts into the environment."""
    several = launched()[1] > 1
    with no_traceback("accelerate cannot start with the launcher's and ACCELERATE_ variables of this environment"):
        return Accelerator(
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # a number would not override it
            dynamo_backend="no",
            device_placement=False,
            cpu=several and device.type == "cpu",
            log_with=list(trackers) or None,
            project_dir=str(folder) if trackers and folder is not None else None,
        )


def leave() -> None:
    """Undoes `start`, so that the process exits without a warning."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
