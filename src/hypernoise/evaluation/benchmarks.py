"""What a comparison can be run on: a benchmark by its name, or prompts of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hypernoise.errors import InputError
from hypernoise.evaluation.records import Judge, Records
from hypernoise.prompts import read_prompts


class Prompted(Protocol):
    @property
    def prompt(self) -> str: ...


Item = TypeVar("Item", bound=Prompted)


@dataclass(frozen=True)
class Models:
    """The models that judge, by their names on the Hub or as folders; empty: the benchmark's usual ones."""

    judge: str = ""
    colors: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Prompts to draw, and what judges the pictures.

    categories: of each prompt; the score is the mean over them. None: one for all.
    load_judge: loads what judges, on a device; None if nothing does.
    about: what the summary says of the prompts.
    rewards: what methods search by if the user names nothing.
    rewriter: rewords these prompts without a language model.
    write: (folder, row's name, records) writes the files of the benchmark's official scorer.
    """

    prompts: list[str]
    categories: list[str] | None = None
    load_judge: Callable[[Any], Judge] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    rewriter: Callable[[str, int], list[str]] | None = None
    write: Callable[[Path, str, Records], None] = lambda folder, name, records: None


LOADERS = {  # of (file, prompts per category or 0, models): modules with a function `benchmark`
    "scenes": "hypernoise.scenes.benchmark",
    "geneval": "hypernoise.evaluation.geneval.benchmark",
    "questions": "hypernoise.evaluation.questions",
}


def load_benchmark(source: str, count: int = 0, models: Models | None = None) -> Benchmark:
    """The benchmark `source`: scenes, geneval, geneval:FILE or questions:FILE, or else prompts as `read_prompts` takes.

    Args:
        count: how many prompts, from the first, per category; 0: all.

    Raises:
        InputError: what the file holds, or lacks.
    """
    name, _, file = source.partition(":")
    if name in LOADERS:
        return import_module(LOADERS[name]).benchmark(file, count, models or Models())
    prompts = read_prompts(source)
    prompts = prompts[: count or len(prompts)]
    return Benchmark(prompts, about={"file": source, "count": len(prompts)})


def first_of_each(categories: Sequence[str], number: int) -> list[int]:
    """The places of the first `number` of each category: none is picked by its looks or its verdict."""
    seen: dict[str, int] = {}
    chosen = []
    for place, name in enumerate(categories):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= number:
            chosen.append(place)
    return chosen


def one_per_prompt(items: Sequence[Item], meaning: str, twice: str) -> dict[str, Item]:
    """The items by their prompts.

    Args:
        meaning: the attribute in which items of one prompt must agree.
        twice: how the message goes on for a prompt of which there are two that do not.

    Raises:
        InputError: there is such a prompt.
    """
    found: dict[str, Item] = {}
    for item in items:
        if getattr(found.setdefault(item.prompt, item), meaning) != getattr(item, meaning):
            raise InputError(f"the prompt {item.prompt!r} stands twice in {twice}")
    return found


def no_file(name: str, file: str) -> None:
    """Raises InputError for a file named with a benchmark that has none."""
    if file:
        raise InputError(f"--prompts {name} takes no file, not {file!r}")
