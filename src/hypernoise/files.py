"""Writing so that a reader sees the whole file or the old one, never half of it."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypernoise.errors import InputError, first_line, shown

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


def check_file(file: str | Path, what: str) -> int:
    """A file's size in bytes. Raises InputError where there is none, or a pipe or device, which may never end."""
    try:
        about = Path(file).stat()
    except (OSError, ValueError) as error:  # a NUL in the path
        raise InputError(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{what} cannot be read: it is not a file")
    return about.st_size


def read_text(file: str | Path, what: str, most: int | None = None) -> str:
    """A text file in UTF-8, with \\n at the ends of lines; `what` begins the message of an InputError.

    Files of more than `most` bytes are refused.
    """
    size = check_file(file, what)
    if most is not None and size > most:
        raise InputError(f"{what} is too long: {size} bytes, and at most {most} are read")
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 text") from error
    if "\0" in text:
        raise InputError(f"{what} is not UTF-8 text: it holds NUL characters")
    return text


def read_json(file: str | Path, what: str) -> Any:
    """The value in a JSON file. Raises `read_text`'s and `parse_json`'s errors."""
    return parse_json(read_text(file, what), what)


def parse_json(text: str, what: str) -> Any:
    """The value of a JSON text; numbers of hundreds of digits become infinite.

    Raises:
        InputError: no JSON, a name that an object has twice, half a character (a lone surrogate), or deep nesting.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise InputError(f"{what} has {shown(name)} twice in one object")
        return found

    def number(digits: str) -> float:
        return int(digits) if len(digits) < 300 else math.inf

    try:
        value = json.loads(text, object_pairs_hook=once, parse_int=number)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise InputError(f"{what} is not JSON that can be read: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has half a character (a lone surrogate)") from error
    except ValueError as error:
        raise InputError(f"{what} is not JSON: {error}") from error
    return value


def kept_json(file: Path, kind: type | tuple[type, ...] = dict) -> Any:
    """What a file of our own says; None if it is not there, is damaged or is of another kind: it is made again."""
    try:
        value = read_json(file, "")
    except InputError:
        return None
    return value if isinstance(value, kind) else None


def write_text(file: Path, text: str) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
    except (OSError, ValueError) as error:  # a NUL in the path
        raise InputError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}") from error
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
