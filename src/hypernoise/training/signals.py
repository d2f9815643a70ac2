"""Ctrl-C, and SIGTERM, with which clusters end a job."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM)
AT_ONCE = 1.0  # seconds within which another Ctrl-C counts as the same, passed on by a launcher


@contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Inside the block SIGINT and SIGTERM do not end the process; the yielded function returns the first one, or 0.

    Later SIGTERMs are ignored, since a cluster may signal every process and the launcher pass it on. A second Ctrl-C
    acts as usual, unless it arrives within a second of the first signal.
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
