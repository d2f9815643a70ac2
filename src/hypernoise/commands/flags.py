"""Flags from dataclasses, by tyro: one line for what is wrong, with the nearest name, and help in sections."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import tyro

from hypernoise.errors import InputError, unknown

Asked = TypeVar("Asked")


def parse(
    cls: type[Asked],
    command: str,
    arguments: Sequence[str],
    *,
    default: Asked | None = None,
    sections: Mapping[str, Sequence[str]] | None = None,
) -> Asked:
    """The flags of `hypernoise COMMAND` as an instance of `cls`; --help prints them under the titles of `sections`.

    Dashes and underscores are the same. `default` has the values of flags that are not given.

    Raises:
        InputError: an unknown flag, with the nearest name, or a value that a flag does not take.
    """
    if sections is not None and {"-h", "--help"} & set(arguments):
        print(help_of(cls, command, default or cls(), sections))
        raise SystemExit(0)
    _check_names(cls, arguments)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return tyro.cli(cls, args=arguments, default=default or cls(), prog=f"hypernoise {command}")
    except SystemExit as ended:
        if ended.code != 2:
            raise
        raise InputError(_one_line(shown.getvalue())) from None


def _check_names(cls: type, arguments: Sequence[str]) -> None:
    known = {"help"}
    for name, hint in flags_of(cls):
        for own in (name, *_aliases(hint)):
            *group, leaf = own.split(".")
            known |= {own, ".".join([*group, f"no-{leaf}"])} if _bare(hint) is bool else {own}
    for argument in arguments:
        name = argument.partition("=")[0].removeprefix("--").replace("_", "-")
        if argument.startswith("--") and name and name not in known:
            raise unknown("flag", f"--{name}", [f"--{own}" for own in known])


def flags_of(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every flag without its dashes, and its annotation; those of groups have a dot."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for own in dataclasses.fields(cls):
        hint, name = hints[own.name], prefix + own.name.replace("_", "-")
        if tyro.conf.Positional in getattr(hint, "__metadata__", ()):
            continue
        if dataclasses.is_dataclass(hint):
            yield from flags_of(hint, f"{name}.")  # type: ignore[arg-type]
        else:
            yield name, hint


def _aliases(hint: Any) -> list[str]:
    found = [getattr(mark, "aliases", None) or () for mark in getattr(hint, "__metadata__", ())]
    return [alias.removeprefix("--") for aliases in found for alias in aliases]


def _bare(hint: Any) -> Any:
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def _one_line(box: str) -> str:
    """What tyro says in a box: its first paragraph."""
    lines = [line.strip("│| ") for line in box.splitlines()]
    title = next((number for number, line in enumerate(lines) if line.strip("─-╭╮ ")), 0)
    paragraph = []
    for line in lines[title + 1 :]:
        if paragraph and not line.strip("─- "):
            break
        paragraph += [line] if line.strip("─- ") else []
    return " ".join(paragraph)


def help_of(cls: type, command: str, default: Any, sections: Mapping[str, Sequence[str]]) -> str:
    """The page that --help prints; a section names fields, or groups of fields."""
    docs, lines = _docs(cls), [f"usage: hypernoise {command} [flags]", "", inspect.cleandoc(cls.__doc__ or "")]
    flags = list(flags_of(cls))
    for title, names in sections.items():
        lines += ["", f"{title}:"]
        for wanted in (name.replace("_", "-") for name in names):
            for name, hint in flags:
                if name == wanted or name.startswith(f"{wanted}."):
                    value: Any = default
                    for part in name.replace("-", "_").split("."):
                        value = getattr(value, part)
                    lines += _flag(name, hint, docs.get(name.replace("-", "_"), ""), value)
    return "\n".join(lines)


def _flag(name: str, hint: Any, doc: str, value: Any) -> list[str]:
    head = ", ".join(f"--{one}" for one in [*_aliases(hint), name])
    doc = f"{doc} (default: {_shown(value)})".strip()
    indented = textwrap.wrap(doc, 96, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return [f"  {head} {_metavar(hint)}".rstrip(), *indented]


def _metavar(hint: Any) -> str:
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(getattr(mark, "metavar", None), str):
            return mark.metavar
    bare = _bare(hint)
    if typing.get_origin(bare) is Literal:
        return "|".join(option or "''" for option in typing.get_args(bare))
    if bare == int | tuple[int, ...]:
        return "INT ..."
    if typing.get_origin(bare) is tuple:
        return "TEXT ..."
    return {bool: "", int: "INT", float: "FLOAT"}.get(bare, "TEXT")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={weight:g}" for name, weight in value.items()) or "none"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value) or "''"


def _docs(cls: type, prefix: str = "") -> dict[str, str]:
    """The text under each field in the source, on one line."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for before, after in zip(tree.body, tree.body[1:], strict=False):
            text = getattr(after.value, "value", None) if isinstance(after, ast.Expr) else None
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(text, str):
                found[prefix + before.target.id] = " ".join(text.split())
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= _docs(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found
