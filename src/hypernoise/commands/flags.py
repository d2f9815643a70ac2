"""Flags from dataclasses, by argparse: one-line errors with the nearest name, and help in sections."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import operator
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from hypernoise.errors import InputError, unknown
from hypernoise.generators.loading import Loading
from hypernoise.settings import as_declared, changed, hints_of
from hypernoise.training.config import Recipe, TrainConfig, read_recipe

Asked = TypeVar("Asked")

SECTIONS = {TrainConfig: "the training loop", Recipe: "what is trained", Loading: "the generator"}
SHORT = {  # as other training scripts call them
    "lora.rank": "--rank",
    "lora.alpha": "--lora-alpha",
    "memory.gradient_checkpointing": "--gradient-checkpointing",
    "memory.fit": "--fit",
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse(
    cls: type[Asked], arguments: Sequence[str] | None = None, *, prog: str | None = None, **defaults: Any
) -> Asked:
    """A dataclass whose fields are flags, from the command line; --help prints them in sections.

    Dashes and underscores are interchangeable. Flags that are not given take their values from the recipe, if any.
    The class may name its field for words without a flag as POSITIONAL, those that come first in the help as ESSENTIAL,
    and fields of its groups that are not flags as WITHOUT.

    Args:
        arguments: the words after the command; None: this process's.
        prog: the command, for its help.
        defaults: values that replace the class's own.

    Raises:
        InputError: an unknown flag, with the nearest name, or a value that a flag does not accept.
    """
    asked: Any = cls(**defaults)
    parser = _parser(asked, prog)
    words = sys.argv[1:] if arguments is None else arguments
    found, rest = parser.parse_known_intermixed_args([_dashed(word) for word in words])
    for word in rest:
        if word.startswith("-"):
            raise unknown("flag", word.partition("=")[0], parser._option_string_actions)
        raise InputError(f"unexpected argument {word!r}")
    given = {name: _value(name, hint, vars(found)[name]) for name, hint, _ in flags_of(cls) if name in vars(found)}
    if isinstance(asked, Loading) and "recipe" in given:
        recipe = read_recipe(given["recipe"])
        shared = dataclasses.fields(Recipe if isinstance(asked, Recipe) else Loading)
        asked = dataclasses.replace(asked, **{own.name: getattr(recipe, own.name) for own in shared})
    return changed(asked, given)


def flags_of(cls: type, group: str = "") -> Iterator[tuple[str, Any, type]]:
    """Every field's name, its type, and the class that declares it; the fields of a group as group.field."""
    hints = hints_of(cls)
    declaring = {name: base for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)}
    for own in dataclasses.fields(cls):
        hint = hints[own.name]
        if dataclasses.is_dataclass(hint):
            inner = flags_of(hint, f"{own.name}.")  # type: ignore[arg-type]
            yield from (flag for flag in inner if flag[0] not in getattr(cls, "WITHOUT", ()))
        else:
            yield group + own.name, hint, declaring[own.name]


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _parser(default: Any, prog: str | None) -> Parser:
    """The parser of a class's flags; its help shows the values in `default`, an instance."""
    cls = type(default)
    positional, essential = getattr(cls, "POSITIONAL", ""), getattr(cls, "ESSENTIAL", ())
    plain = (cls.__doc__ or "").startswith(f"{cls.__name__}(")  # dataclasses write their fields there if it is empty
    parser = Parser(
        prog=prog,
        usage=f"%(prog)s [{positional.upper()}] [flags]" if positional else "%(prog)s [flags]",
        description=inspect.cleandoc((sys.modules[cls.__module__] if plain else cls).__doc__ or ""),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=8, width=104),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {title: parser.add_argument_group(title) for title in (["essential"] if essential else [])}
    places: dict[str, int] = {name: place for place, name in enumerate(essential)}
    for name, hint, owner in sorted(flags_of(cls), key=lambda flag: places.get(flag[0], len(places))):
        about: dict[str, Any] = {"help": _help(owner, name, default)}
        about |= {"nargs": "*"} if typing.get_origin(hint) in (tuple, dict) or hint == int | tuple[int, ...] else {}
        about |= {"action": argparse.BooleanOptionalAction} if hint is bool else {"metavar": _metavar(hint)}
        if name == positional:
            parser.add_argument(name, **{"nargs": "?", **about, "metavar": name.upper()})
            continue
        title = "essential" if name in essential else name.rpartition(".")[0] or SECTIONS.get(owner, "flags")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        options = [SHORT[name]] if name in SHORT else []
        groups[title].add_argument(*options, f"--{name.replace('_', '-')}", dest=name, **about)
    next(iter(groups.values())).add_argument("-h", "--help", action="help", help="Show this, and stop.")
    return parser


def _value(name: str, hint: Any, given: Any) -> Any:
    if typing.get_origin(hint) is dict:
        return _weights(given)
    return Path(given) if hint in (Path, Path | None) else as_declared(f"--{name.replace('_', '-')}", given, hint)


def _weights(words: Sequence[str]) -> dict[str, float]:
    """Names and weights from NAME=WEIGHT words; without a number, all of a word is a name, as paths may hold a =."""
    weights: dict[str, float] = {}
    for word in words:
        name, weight = word, 1.0
        before, _, number = word.rpartition("=")
        with suppress(ValueError):
            name, weight = (before, float(number)) if before else (word, 1.0)
        if name in weights:
            raise InputError(f"{name!r} is named twice; give it one weight")
        weights[name] = weight
    return weights


def _metavar(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(option or "''" for option in typing.get_args(hint))
    if typing.get_origin(hint) is dict:
        return "NAME[=WEIGHT]"
    number = next((kind for kind in (hint, *typing.get_args(hint)) if kind in (int, float)), None)
    return {int: "INT", float: "FLOAT", None: "TEXT"}[number]


def _help(owner: type, name: str, default: Any) -> str:
    """The docstring under a field, and its value in `default`, if any."""
    value = operator.attrgetter(name)(default)
    if isinstance(value, Mapping):
        value = tuple(f"{key}={weight:g}" for key, weight in value.items())
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    doc = _docs(owner).get(name.rpartition(".")[2], "").replace("%", "%%")
    return doc if value is None or value is False or value == "" else f"{doc} (default: {value})".strip()


@cache
def _docs(owner: type) -> dict[str, str]:
    """The docstring under each field of a class, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        text = getattr(after.value, "value", None) if isinstance(after, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
            found[field.target.id] = " ".join(text.split())
    return found
