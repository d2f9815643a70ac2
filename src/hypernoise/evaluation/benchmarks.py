"""What to compare on: a benchmark by name, or the user's prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from hypernoise.evaluation.records import Judge, Records
from hypernoise.prompts import read_prompts


@dataclass(frozen=True)
class Benchmark:
    """Prompts to draw, and how to judge the pictures.

    categories: one per prompt; the score is the mean over them. None: a single category.
    load_judge: loads the judge on a device; None without a judge.
    about: facts on the prompts for the summary.
    rewards: default rewards for methods to search by.
    rewriter: rewords these prompts without a language model.
    write: (folder, a method's records) copies its pictures to where the benchmark's official scorer reads them.
    """

    prompts: list[str]
    categories: list[str] | None = None
    load_judge: Callable[[Any], Judge] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, float] = field(default_factory=dict)
    rewriter: Callable[[str, int], list[str]] | None = None
    write: Callable[[Path, Records], None] = lambda folder, records: None


LOADERS = {  # modules with a function `benchmark` of the file and the other arguments of `load_benchmark`
    "scenes": "hypernoise.scenes.judge",
    "geneval": "hypernoise.evaluation.geneval.benchmark",
    "questions": "hypernoise.evaluation.questions",
}


def load_benchmark(source: str, count: int = 0, judge: str = "", colors: str = "") -> Benchmark:
    """The benchmark `source`: scenes, geneval, geneval:FILE or questions:FILE, or else prompts as in `read_prompts`.

    Args:
        count: how many prompts per category to take from the start; 0: all.
        judge, colors: the judging models, by their names on the Hub or as folders; empty: the benchmark's defaults.
            A judge "none": no judge.

    Raises:
        InputError: invalid contents of the file.
    """
    name, _, file = source.partition(":")
    if name in LOADERS:
        return import_module(LOADERS[name]).benchmark(file, count, judge, colors)
    prompts = read_prompts(source)
    prompts = prompts[: count or len(prompts)]
    return Benchmark(prompts, about={"file": source, "count": len(prompts)})


def first_of_each(categories: Sequence[str], number: int) -> list[int]:
    """The indices of the first `number` of each category, without any selection."""
    return [place for place, name in enumerate(categories) if categories[:place].count(name) < number]
