"""Checks settings from a recipe, a flag, a caller or a launcher: types as declared, numbers in range.

Imports no torch.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeGuard

from hypernoise.errors import InputError, shown, unknown

MOST = 10**9  # steps, samples, pixels: more is a typo
MOST_AT_ONCE = 65_536  # samples per update, pictures per prompt
MOST_RANK = 4096
MOST_SIDE = 16_384  # px
MOST_STEPS = 1000  # inference steps: a diffusion model's timesteps
LARGEST = 1e30  # leaves headroom for products in fp32
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
CALLED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
LAUNCHED = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # what launchers set, and the values without one


def finite(value: Any) -> TypeGuard[float]:
    """Whether it is a number that fp32 can compute with."""
    number: Any = value
    return isinstance(value, Real) and not isinstance(value, bool) and abs(number) <= LARGEST


def whole_number(value: Any, name: str, least: int = 1, most: int = MOST) -> None:
    """Raises InputError, with `name`, for a value that is not a whole number from `least` to `most`."""
    number: Any = value
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name} must be a whole number, not {shown(value)}")
    if number < least:
        raise InputError(f"{name} must be {f'at least {least}' if least else '0 or more'}, not {shown(value)}")
    if number > most:
        raise InputError(f"{name} must be at most {most}, not {shown(value)}")


def positive(value: Any, name: str) -> None:
    if not (finite(value) and value > 0):
        raise InputError(f"{name} must be a positive number, not {shown(value)}")


def not_negative(value: Any, name: str) -> None:
    if not (finite(value) and value >= 0):
        raise InputError(f"{name} must be 0 or more, not {shown(value)}")


def seed_in_range(seed: Any, name: str = "seed") -> None:
    if type(seed) is bool or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise InputError(f"{name} must be from 0 to 2**63 - 1, not {shown(seed)}")


# Types of fields: a number, and the check of its range
Count = Annotated[int, whole_number]
AtOnce = Annotated[int, partial(whole_number, most=MOST_AT_ONCE)]
Rank = Annotated[int, partial(whole_number, most=MOST_RANK)]
Natural = Annotated[int, partial(whole_number, least=0)]
Depth = Annotated[int, partial(whole_number, least=0, most=MOST_RANK)]
Side = Annotated[int, partial(whole_number, least=0, most=MOST_SIDE)]
Port = Annotated[int, partial(whole_number, least=0, most=65_535)]
Positive = Annotated[float, positive]
NotNegative = Annotated[float, not_negative]
Seed = Annotated[int, seed_in_range]


def finite_weights(weights: Mapping[str, float]) -> None:
    """Raises InputError for anything but a mapping of names to weights, or for the first weight that is not finite."""
    if not isinstance(weights, Mapping):
        raise InputError(f"rewards map names to weights, such as {{'redness': 1.0}}; this is {shown(weights)}")
    for name, weight in weights.items():
        if not isinstance(name, str):
            raise InputError(f"a reward's name must be text, not {shown(name)}")
        if not finite(weight):
            raise InputError(f"the weight of reward {shown(name)} must be a number, not {shown(weight)}")


def typed(settings: Any, cls: type, prefix: str = "") -> None:
    """Converts the fields of `cls` to their declared types: a recipe's text to numbers, mappings to groups.

    Raises:
        InputError: a value that cannot be converted or is out of range, naming the field.
    """
    for name, hint in hints_of(cls).items():
        object.__setattr__(settings, name, as_declared(prefix + name, getattr(settings, name), hint))


hints_of = cache(partial(typing.get_type_hints, include_extras=True))


def as_declared(name: str, value: Any, hint: Any) -> Any:
    """The value converted to its field's type. Text is read as numbers, since YAML reads 1e-3 as text."""
    kind = typing.get_origin(hint)
    if kind is Annotated:
        hint, check = typing.get_args(hint)
        value = as_declared(name, value, hint)
        check(value, name)
        return value
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return group(hint, value, prefix=f"{name}.")  # type: ignore[arg-type]
        if not isinstance(value, hint):  # type: ignore[arg-type]
            raise InputError(f"{name} is a group of fields, such as {name}: {{...}}, not {shown(value)}")
        return value
    if kind is Literal:
        if value not in typing.get_args(hint):
            raise InputError(f"{name} must be one of {', '.join(map(str, typing.get_args(hint)))}, not {shown(value)}")
        return value
    if kind is tuple or hint == int | tuple[int, ...]:
        one = typing.get_args(hint)[0]
        many = tuple(as_declared(name, own, one) for own in (value if isinstance(value, list | tuple) else [value]))
        return many[0] if kind is not tuple and len(many) == 1 else many
    if kind is dict:
        if isinstance(value, str):
            return {value: 1.0}
        if not isinstance(value, Mapping):
            raise InputError(f"{name} must be a name or map names to numbers, not {shown(value)}")
        return {key: as_declared(f"{name}.{key}", weight, float) for key, weight in value.items()}
    if hint is bool and isinstance(value, str) and value.lower() in WORDS:
        return WORDS[value.lower()]
    readable = {int: Integral | str, float: Real | str}.get(hint, hint)
    with suppress(ValueError, OverflowError):  # text that is not a number, a number of thousands of digits
        if isinstance(value, readable) and (hint is bool or not isinstance(value, bool)):
            return hint(value)
    raise InputError(f"{name} must be {CALLED[hint]}, not {shown(value)}")


def group(cls: type, values: Mapping[Any, Any], prefix: str = "") -> Any:
    """A dataclass from a mapping of its fields. Raises InputError for an unknown field, with the nearest one."""
    check_names(cls, values, prefix)
    return cls(**values)


def check_names(cls: type, names: Iterable[Any], prefix: str = "") -> None:
    for name in names:
        if name not in hints_of(cls):
            raise unknown("field", f"{prefix}{name}", [f"{prefix}{own}" for own in _names(cls)])


def changed(settings: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass with other values of its fields, and of its groups' as group.field."""
    own = {name: value for name, value in values.items() if "." not in name}
    grouped: dict[str, dict[str, Any]] = {}
    for name in values.keys() - own.keys():
        group, _, field = name.partition(".")
        grouped.setdefault(group, {})[field] = values[name]
    groups = {group: dataclasses.replace(getattr(settings, group), **fields) for group, fields in grouped.items()}
    return dataclasses.replace(settings, **own, **groups)


def _names(cls: type) -> Iterator[str]:
    for name, hint in hints_of(cls).items():
        yield name
        if dataclasses.is_dataclass(hint):
            yield from (f"{name}.{own}" for own in _names(hint))  # type: ignore[arg-type]


def launched() -> tuple[int, int]:
    """This process's rank and the world size, as set by the launcher; (0, 1) without one.

    Raises:
        InputError: RANK, WORLD_SIZE or LOCAL_RANK is not a number, or the rank is not below the world size.
    """
    found = {name: os.environ.get(name) or usual for name, usual in LAUNCHED.items()}
    numbers = [int(number) for number in found.values() if re.fullmatch(r"\d{1,6}", number)]
    if len(numbers) < len(found) or numbers[0] >= numbers[1]:
        raise InputError(f"{shown(found)} in the environment is not a launcher's; unset these variables")
    return numbers[0], numbers[1]
