"""The error for invalid user input; the command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
import reprlib
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

LONGEST = 1000  # characters of a message


class InputError(Exception):
    """Invalid input; the message, one printable line, names the value and the fix."""

    def __init__(self, message: str):
        line = " ".join(message.splitlines())
        if len(line) > LONGEST:
            line = f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 3 :]}"
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))


def print_uncaught() -> None:
    """From now on an InputError that nothing catches is one line on stderr; other errors keep their traceback."""
    shown = sys.excepthook
    sys.excepthook = lambda kind, *rest: print(rest[0], file=sys.stderr) if kind is InputError else shown(kind, *rest)


TOO_LITTLE = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA and MPS; the CPU on two systems


def out_of_memory(error: BaseException) -> bool:
    """Whether torch reports that the device or the machine ran out of memory."""
    message = str(error).lower()
    wanting = type(error).__name__ == "OutOfMemoryError" or any(words in message for words in TOO_LITTLE)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and wanting)


def first_line(error: Exception) -> str:
    """Another library's error message, or its type, shortened to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def no_traceback(what: str) -> Iterator[None]:
    """Turns any exception from third-party code or files in the block into an InputError that begins with `what`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        raise InputError(f"{what}: {type(error).__name__}: {located(error)}") from error


def located(error: Exception) -> str:
    """An error's first line, and the code location that raised it."""
    *_, place = traceback.extract_tb(error.__traceback__)
    numpy = "numpy() on Tensor that requires grad" in str(error)  # torch advises to detach it
    what = "it goes through numpy, which has no gradient; use torch" if numpy else first_line(error)
    return f"{what} ({Path(place.filename).name}, line {place.lineno})"


def failed(what: str, error: Exception, prompts: Sequence[str], alone: Callable[[int], Any]) -> NoReturn:
    """Raises the InputError for a user's function that raised `error`: it names the first prompt that also fails
    `alone`, if any. An InputError, or one of memory, is raised as it is."""
    if isinstance(error, InputError) or out_of_memory(error):
        raise error
    found: Any = prompts
    for number, prompt in enumerate(prompts):
        try:
            alone(number)
        except Exception as own:
            found, error = prompt, own
            break
    raise InputError(f"{what} raised {type(error).__name__} for {shown(found)}: {located(error)}") from error


def check_is(value: Any, kind: Any, what: str, made: str) -> None:
    """Raises InputError, saying what to pass instead, unless the value is an instance of a class or protocol."""
    if isinstance(value, type) or not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise InputError(f"{what} is {given}; pass {made}")


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 200, 200

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 128 else f"a whole number of {x.bit_length()} bits"


shown = _Short().repr
"""A value for a message, shortened if long or deeply nested."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for an unknown name, with the nearest known one."""
    options = sorted(known)
    near = difflib.get_close_matches(str(name)[:LONGEST], options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options)}"
    return InputError(f"unknown {kind} {shown(name)}; {hint}")
