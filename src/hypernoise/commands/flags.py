"""Flags from dataclasses, by tyro: one-line errors with the nearest name, and help in sections."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from hypernoise.errors import InputError, unknown
from hypernoise.generators.loading import Loading
from hypernoise.training.config import Recipe, read_recipe

Asked = TypeVar("Asked")


def parse(cls: type[Asked], arguments: Sequence[str], *, prog: str = "", default: Asked | None = None) -> Asked:
    """The flags of a command as an instance of its class; --help prints them in sections.

    Dashes and underscores are interchangeable. Flags that are not given take their values from `default`, or else from
    the recipe, if any.

    Raises:
        InputError: an unknown flag, with the nearest name, or a value that a flag does not accept.
    """
    command, values = prog or f"hypernoise {cls.__name__.lower()}", default or _default(cls, arguments)
    if {"-h", "--help"} & set(arguments):
        print(help_of(cls, command, values))
        raise SystemExit(0)
    _check_names(cls, arguments)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            asked = tyro.cli(cls, args=arguments, default=values, prog=command)
    except SystemExit as ended:
        if ended.code != 2:
            raise
        raise InputError(_one_line(shown.getvalue())) from None
    recipe = vars(asked).get("recipe")  # of quickstart it is a property
    if default is None and recipe is not None and recipe != getattr(values, "recipe", None):
        raise InputError(f"name the recipe first: {command} {recipe} [flags]")
    return asked


def _default(cls: type[Asked], arguments: Sequence[str]) -> Asked:
    """The class's defaults, or the values of the recipe that the arguments name."""
    hint = typing.get_type_hints(cls, include_extras=True).get("recipe")
    named = list(arguments[:1]) if hint and _positional(hint) else []
    for number, argument in enumerate(arguments if hint else ()):
        flag, equals, value = argument.partition("=")
        if flag == "--recipe":
            named = [value] if equals else list(arguments[number + 1 : number + 2])
    if not named or named[0].startswith("-"):
        return cls()
    recipe, fields = read_recipe(named[0]), dataclasses.fields(Recipe if issubclass(cls, Recipe) else Loading)
    return cls(recipe=Path(named[0]), **{own.name: getattr(recipe, own.name) for own in fields})  # type: ignore[call-arg]


def _positional(hint: Any) -> bool:
    return tyro.conf.Positional in getattr(hint, "__metadata__", ())


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
    """Every flag without its leading dashes, and its annotation; fields of groups as group.field."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for own in dataclasses.fields(cls):
        hint, name = hints[own.name], prefix + own.name.replace("_", "-")
        if _positional(hint):
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
    """The first paragraph of tyro's boxed error."""
    lines = [line.strip("│| ") for line in box.splitlines()]
    title = next((number for number, line in enumerate(lines) if line.strip("─-╭╮ ")), 0)
    paragraph = []
    for line in lines[title + 1 :]:
        if paragraph and not line.strip("─- "):
            break
        paragraph += [line] if line.strip("─- ") else []
    return " ".join(paragraph)


def _sections(cls: Any) -> Mapping[str, Sequence[str]]:
    """Titles, and the fields or groups under each: the class's SECTIONS, or the generator's apart from the rest."""
    loading = [own.name for own in dataclasses.fields(Loading)] if issubclass(cls, Loading) else []
    rest = [own.name for own in dataclasses.fields(cls) if own.name not in loading]
    return getattr(cls, "SECTIONS", {"flags": rest, **({"the generator": loading} if loading else {})})


def help_of(cls: type, command: str, default: Any) -> str:
    """The page that --help prints."""
    places = [
        name.upper() for name, hint in typing.get_type_hints(cls, include_extras=True).items() if _positional(hint)
    ]
    usage = " ".join([f"usage: {command}", *(f"[{place}]" for place in places), "[flags]"])
    docs, lines = _docs(cls), [usage, "", inspect.cleandoc(cls.__doc__ or "")]
    flags = list(flags_of(cls))
    for title, names in _sections(cls).items():
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
    """The docstring under each field, on one line."""
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
