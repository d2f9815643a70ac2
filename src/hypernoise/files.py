"""Writing so that a reader sees the whole file or the old one, never half of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypernoise.errors import InputError, first_line

UNFINISHED = ".tmp"  # ends the name of a file that is not yet whole


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, which must not exist, when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(file: Path, value: Any) -> None:
    write_text(file, json.dumps(value, indent=2) + "\n")


def read_json(file: Path) -> Any:
    """What a kept file says; None if it is not there or is damaged, so that it is made again."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def write_text(file: Path, text: str) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(text)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A temporary path whose file becomes `file`, in place of an earlier one, when the block ends well."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}{UNFINISHED}")  # processes may write the same file at once
    yield temporary
    os.replace(temporary, file)


def output_folder(folder: Path) -> Path:
    """`folder`, made if need be; InputError if it is a file or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise InputError(f"{folder} is a file; name a directory") from error
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


@contextmanager
def writing(what: str, but: str) -> Iterator[None]:
    """Turns a write that fails inside the block, such as on a full disk, into an InputError of one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "write" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"the {what} cannot be written ({reason}); {but}; make room and go on") from error
