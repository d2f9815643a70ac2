"""The one error a user's own input raises; the command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
import math
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

LONGEST = 1000  # characters of a message


class InputError(Exception):
    """What was handed in cannot be used; the message, one line, names the value and what would be right."""

    def __str__(self) -> str:
        line = " ".join(super().__str__().splitlines())
        return line if len(line) <= LONGEST else f"{line[: LONGEST * 2 // 3]} ... {line[-LONGEST // 3 :]}"


class TooLongError(InputError):
    """A prompt has more tokens than the generator's text encoder takes."""


TOO_LITTLE = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA and MPS; the CPU on two systems


def out_of_memory(error: BaseException) -> bool:
    """Whether this is a device's memory, or the machine's, running out, as torch says it."""
    message = str(error).lower()
    wanting = type(error).__name__ == "OutOfMemoryError" or any(words in message for words in TOO_LITTLE)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and wanting)


def first_line(error: Exception) -> str:
    """What another library's error says, or its name, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def no_traceback(what: str) -> Iterator[None]:
    """Whatever a user's own code raises inside the block becomes an InputError that begins with `what`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        if "numpy() on Tensor that requires grad" in str(error):
            raise InputError(f"{what}: it goes through numpy, where no gradient follows; use torch") from error
        raise InputError(f"{what}: {type(error).__name__}: {located(error)}") from error


def located(error: Exception) -> str:
    """An error's first line, and the place in the code that raised it."""
    *_, place = traceback.extract_tb(error.__traceback__)
    return f"{first_line(error)} ({Path(place.filename).name}, line {place.lineno})"


def at_least_one(settings: object, *names: str, flags: bool = False) -> None:
    """Raises InputError for the first of these attributes that is below 1; None passes.

    `flags`: the message names them as on the command line, --batch-size for batch_size.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            shown = "--" + name.replace("_", "-") if flags else name
            raise InputError(f"{shown} must be at least 1, not {value}")


def finite_weights(weights: Mapping[str, float]) -> None:
    """Raises InputError for what maps no names to weights, or the first weight that is infinite or not a number."""
    if not isinstance(weights, Mapping):
        raise InputError(f"rewards map names to weights, such as {{'redness': 1.0}}; this is {weights!r}")
    for name, weight in weights.items():
        if not (isinstance(weight, int | float) and math.isfinite(weight)):
            raise InputError(f"the weight of reward {name!r} must be a number, not {weight!r}")


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not in a table, with the nearest one that is."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
