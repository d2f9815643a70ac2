"""Ending a run when it is asked to end: Ctrl-C, or the SIGTERM by which clusters announce that time is up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Inside the block the first of the signals only raises a flag, its number; the next acts as usual."""
    asked = 0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    before = {number: signal.getsignal(number) for number in ENDING}

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        asked = number
        give_back()

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in ENDING:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        give_back()
