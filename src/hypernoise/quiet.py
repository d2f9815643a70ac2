"""Habits of other libraries that disturb: messages that no user of this one can act on, and threads that spin."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DROPPED = {  # by logger, a part of the message
    # transformers 5's advice on image processors, which diffusers' pipelines import and nothing here uses
    "transformers.utils.import_utils": "requires torchvision (not installed); falling back to",
    # diffusers accepts it in place of an AutoencoderKL
    "diffusers.pipelines.pipeline_utils": "autoencoder_tiny.AutoencoderTiny'>",
}


def drop_idle_advice() -> None:
    """Drops the messages in `DROPPED`; their loggers' levels, handlers and other messages stay."""
    for name in DROPPED:
        logging.getLogger(name).addFilter(_is_heard)  # once, however often it is called


def _is_heard(record: logging.LogRecord) -> bool:
    return DROPPED[record.name] not in record.getMessage()


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Inside the block, loading weights from disk shows no progress bar; downloads show the hub's."""
    loaded: list[Any] = [sys.modules[name] for name in ("diffusers", "transformers") if name in sys.modules]
    libraries = [library.utils.logging for library in loaded if library.utils.logging.is_progress_bar_enabled()]
    for log in libraries:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in libraries:
            log.enable_progress_bar()


def wait_passively() -> None:
    """Lets torch's waiting threads sleep at once, in this process and its children, unless the user has configured it.

    By default libgomp's spin for some milliseconds, so that two processes on two cores slow each other down tens of
    times (docs/performance.md). Call it before importing torch, which reads the setting once.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
