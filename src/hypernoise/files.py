"""Atomic writes: a reader sees the whole file or the old one, never a part."""

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

from hypernoise.errors import InputError, check_is, first_line, shown

UNFINISHED = ".tmp"  # suffix of an incomplete file


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, which must not exist, when the block succeeds."""
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
    """A file's size in bytes. Raises InputError for a missing file, or a pipe or device, which may never end."""
    try:
        about = Path(file).stat()
    except (OSError, ValueError) as error:  # a NUL in the path
        raise InputError(f"{what} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{what} cannot be read: it is not a file")
    return about.st_size


def read_text(file: str | Path, what: str, most: int | None = None) -> str:
    """A UTF-8 text file, with \\n line ends; `what` begins the message of an InputError.

    Files of more than `most` bytes are refused.
    """
    size = check_file(file, what)
    if most is not None and size > most:
        raise InputError(f"{what} is too long: {size} bytes; the limit is {most}")
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
    """The value of a JSON text; numbers with hundreds of digits become infinite.

    Raises:
        InputError: invalid JSON, a duplicate name in an object, a lone surrogate, or deep nesting.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise InputError(f"{what} has a duplicate name {shown(name)}")
        return found

    def number(digits: str) -> float:
        return int(digits) if len(digits) < 300 else math.inf

    try:
        value = json.loads(text, object_pairs_hook=once, parse_int=number)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise InputError(f"{what} is not readable JSON: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has a lone surrogate (half a character)") from error
    except ValueError as error:
        raise InputError(f"{what} is not JSON: {error}") from error
    return value


def json_lines(text: str, what: str) -> Iterator[tuple[str, Any]]:
    """Each line's place, for messages, and its value. Raises `parse_json`'s errors."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{what}, line {number}"
            yield place, parse_json(line, place)


def kept_json(file: Path) -> dict[str, Any] | None:
    """The contents of a file of ours; None if it is missing, damaged or of another kind."""
    try:
        value = read_json(file, "")
    except InputError:
        return None
    return value if isinstance(value, dict) else None


def write_text(file: Path, text: str) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A temporary path whose file replaces `file` when the block succeeds."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}{UNFINISHED}")  # processes may write the same file at once
    yield temporary
    os.replace(temporary, file)


def output_folder(folder: str | Path) -> Path:
    """`folder`, created if needed; InputError if it is a file or not writable."""
    check_is(folder, str | Path, "the output directory", "its path")
    folder = Path(folder)
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
    """Turns a failed write in the block, for example on a full disk, into a one-line InputError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "write" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"the {what} cannot be written ({reason}); {but}; free some space and run it again") from error


def picture_of(pixels: Any) -> Any:
    """A PIL picture of pixels [3, H, W] in [0, 1], in 256 levels."""
    from PIL import Image

    levels = (pixels.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
