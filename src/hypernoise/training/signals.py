"""Ending a run when it is asked to end: Ctrl-C, or the SIGTERM by which clusters announce that time is up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)


AT_ONCE = 1.0  # seconds in which a further Ctrl-C is the same one, passed on by a launcher


@contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Inside the block the signals only raise a flag, the first one's number.

    A cluster may send SIGTERM to every process and the launcher once more: a further one changes nothing. A second
    Ctrl-C acts as usual, if it does not come with the first signal.
    """
    asked, since = 0, 0.0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    before = {number: signal.getsignal(number) for number in ENDING}

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

    for number in ENDING:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        give_back()
