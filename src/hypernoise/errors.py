"""The one error a user's own input raises; the command line prints it as one line and exits with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """What was handed in cannot be used; the message names the value and what would be right."""


def first_line(error: Exception) -> str:
    """What another library's error says, or its name, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that is not in a table, with the nearest one that is."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(options)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")
