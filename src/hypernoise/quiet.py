"""Silences other libraries' messages that no user of this one can act on, one by one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TORCHVISION = "requires torchvision (not installed); falling back to"
SAYS_IT = "transformers.utils.import_utils"
TINY_DECODER = "got <class 'diffusers.models.autoencoders.autoencoder_tiny.AutoencoderTiny'>"
EXPECTS_A_LARGE_ONE = "diffusers.pipelines.pipeline_utils"


def without_idle_advice() -> None:
    """Drops transformers 5's advice on image processors, which diffusers' pipelines import and nothing here uses, and
    diffusers' remark on an AutoencoderTiny, which it accepts, in place of an AutoencoderKL.

    Only that message is dropped; the logger's level, handlers and other messages stay.
    """
    for name in (SAYS_IT, EXPECTS_A_LARGE_ONE):
        logger = logging.getLogger(name)
        if _other_than_that not in logger.filters:
            logger.addFilter(_other_than_that)


def _other_than_that(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return TORCHVISION not in message and TINY_DECODER not in message


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
