"""One run in several processes, started by `torchrun` or `accelerate launch`; and the signals that end it.

accelerate does the work (DDP). Prompts and noise are functions of (seed, step, global sample), so the result does not
depend on how many processes share the batch.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from hypernoise.errors import no_traceback
from hypernoise.settings import launched

ENDING = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and with which clusters end a job
AT_ONCE = 1.0  # seconds within which another Ctrl-C counts as the same, passed on by a launcher


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


@contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Inside the block SIGINT and SIGTERM do not end the process; the yielded function returns the first one, or 0.

    Later SIGTERMs are ignored, since a cluster may signal every process and the launcher pass it on. A second Ctrl-C
    acts as usual, unless it arrives within a second of the first signal.
    """
    asked, since = 0, 0.0

    def ask(number: int, frame: Any) -> None:
        nonlocal asked, since
        if not asked:
            asked, since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - since > AT_ONCE:
            give_back()
            signal.raise_signal(number)

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    ending = ENDING if threading.current_thread() is threading.main_thread() else ()  # no other thread gets signals
    before = {number: signal.signal(number, ask) for number in ending}
    try:
        yield lambda: asked
    finally:
        give_back()
