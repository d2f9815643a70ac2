"""Finds the torch modules that callables use, and the tensors in their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

DEEP, MANY = 4, 100  # search depth from the callable, and items searched per container


def networks_of(*callables: Any) -> list[nn.Module]:
    """The modules that these are, are bound to, hold, close over or use as globals; without nested ones."""
    found: dict[int, nn.Module] = {}

    def look(thing: Any, deep: int) -> None:
        if isinstance(thing, nn.Module):
            found[id(thing)] = thing
        elif deep:
            for part in _within(thing):
                look(part, deep - 1)

    for function in callables:
        look(function, DEEP)
    inner = {id(part) for network in found.values() for part in network.modules() if part is not network}
    return [network for key, network in found.items() if key not in inner]


def _within(thing: Any) -> list[Any]:
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        named = [thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__]
        return [*cells, *named, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    if isinstance(thing, list | tuple | dict):
        return list(thing.values() if isinstance(thing, dict) else thing) if len(thing) <= MANY else []
    if isinstance(thing, ModuleType | type | Tensor):
        return []
    return list(getattr(thing, "__dict__", {}).values())


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a name that is not yet bound
        return False
    return True


def _names(code: CodeType) -> Iterator[str]:
    """The global names in a function's code and that of its inner functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def parts_of(output: Any) -> list[Any]:
    """The values of a tuple, list, mapping, or object with attributes."""
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, Sequence) else list(getattr(output, "__dict__", {}).values())
