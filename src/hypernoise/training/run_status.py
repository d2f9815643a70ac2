"""How a run ended, in its folder, so that whoever watches it knows; also of one that was killed. Imports no torch."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hypernoise.errors import first_line
from hypernoise.files import read_json, write_json

PROCESS = "process.json"


@contextmanager
def running(folder: Path | None) -> Iterator[dict[str, Any]]:
    """Notes in `folder` that this process trains and, after the block, how that ended: what "ended" was set to."""
    about: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "ended": ""}
    _write(folder, about)
    try:
        yield about
    except BaseException as error:
        about["ended"] = first_line(error) if isinstance(error, Exception) else "interrupted"
        raise
    finally:
        _write(folder, about)


def _write(folder: Path | None, about: dict[str, Any]) -> None:
    if folder is not None:
        with suppress(OSError):  # a full disk is told by what must be written
            write_json(folder / PROCESS, about)


def end_of(folder: Path) -> str | None:
    """How the run ended; empty while it may go on, None if it has not noted it."""
    about = read_json(folder / PROCESS)
    try:
        ended, host, pid = about["ended"], about["host"], about["pid"]
    except (TypeError, KeyError):
        return None
    return ended or ("killed" if host == socket.gethostname() and not _alive(pid) else "")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
