"""GenEval's requests, parsed from the benchmark's metadata: a JSON object per line.

    {"tag": "position", "include": [{"class": "dog", "count": 1},
     {"class": "cat", "count": 1, "position": ["left of", 0]}], "prompt": "a photo of a cat left of a dog"}

as in evaluation_metadata.jsonl of github.com/djghosh13/geneval (arXiv 2310.11513).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypernoise.errors import InputError
from hypernoise.files import json_lines, read_text

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Clause:
    """At least `count` objects called `name`, each in `color`, each `relation` all objects of clause `target`.

    In an exclude clause: fewer than `count`.
    """

    name: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int | None = None


@dataclass(frozen=True)
class Request:
    """One prompt. `source` is its line of metadata, which is stored with its pictures."""

    tag: str
    prompt: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    source: Mapping[str, Any]


def parse(source: Any, where: str) -> Request:
    """A request from one line's JSON value; `where` begins the message of an InputError."""
    if not isinstance(source, dict):
        raise InputError(f"{where}: a prompt's metadata must be an object with tag, include and prompt")
    tag, prompt = source.get("tag"), source.get("prompt")
    if not (isinstance(tag, str) and tag):
        raise InputError(f"{where}: 'tag' must name a category such as two_object, not {tag!r}")
    if not (isinstance(prompt, str) and prompt.strip()):
        raise InputError(f"{where}: 'prompt' must be the text to draw, not {prompt!r}")
    clauses: dict[str, tuple[Clause, ...]] = {}
    for name in ("include", "exclude"):
        parts = source.get(name, [])
        if not isinstance(parts, list):
            raise InputError(f"{where}: {name!r} must be a list of objects with class and count")
        own = enumerate(parts)
        clauses[name] = tuple(_clause(part, f"{where}: {name}[{i}]", i if name == "include" else 0) for i, part in own)
    if not any(clauses.values()):
        raise InputError(f"{where}: the prompt has no metadata to judge by: 'include' and 'exclude' are empty")
    return Request(tag, prompt, **clauses, source=source)


def read_requests(file: Path) -> list[Request]:
    """Every prompt of a metadata file. Raises InputError naming the line."""
    return parse_lines(read_text(file, f"metadata {file}"), f"metadata {file}")


def parse_lines(text: str, where: str) -> list[Request]:
    """Every prompt of a metadata file's text."""
    requests = [parse(value, place) for place, value in json_lines(text, where)]
    if not requests:
        raise InputError(f"{where} has no prompts; it needs a JSON object per line")
    return requests


def _clause(part: Any, where: str, earlier: int) -> Clause:
    """`earlier`: the number of clauses before it, which a position may refer to."""
    if not (isinstance(part, dict) and isinstance(part.get("class"), str)):
        raise InputError(f"{where} must have a 'class', the object's name")
    name, count, color, position = part["class"], part.get("count"), part.get("color"), part.get("position")
    if type(count) is not int or count < 1:
        raise InputError(f"{where}: 'count' of {name} must be a whole number from 1, not {count!r}")
    if color is not None and color not in COLORS:
        raise InputError(f"{where}: 'color' must be one of {', '.join(COLORS)}, not {color!r}")
    if position is None:
        return Clause(name, count, color)
    relation, target = position if isinstance(position, list) and len(position) == 2 else (None, None)
    if relation not in RELATIONS or type(target) is not int or not 0 <= target < earlier:
        raise InputError(
            f"{where}: 'position' must be one of {', '.join(RELATIONS)} and the number of an earlier clause, "
            f"not {position!r}"
        )
    return Clause(name, count, color, relation, target)
