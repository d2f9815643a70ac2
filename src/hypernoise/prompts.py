"""Where prompts come from, and which of them a training step sees."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hypernoise.errors import InputError, first_line

PROMPT_SETS = {"scenes": ("hypernoise.scenes.prompts", "training_prompts")}
COLUMNS = ("prompt", "caption", "text")  # looked for in this order
STREAMED = 1_000_000  # prompts that are read of a dataset at most
HUB = "hf:"
BLOCK = 1000  # samples over which a mix keeps to its weights
MIXING = 2**31  # in the key of a mix's order: no source has this number


def read_prompts(source: str) -> list[str]:
    """The prompts of a file, of a named set ("scenes"), or of a dataset on the Hub, in their order.

    Files: .json, .jsonl, .csv, .tsv and .parquet, of which the column prompt, caption or text is read; any other is
    text with a prompt a line. hf:DATASET[:SPLIT[:COLUMN]] is streamed and only the column kept, up to a million.

    Raises:
        InputError: no such file, not its format, no such column, no prompt in it, or a package that is missing.
    """
    if source in PROMPT_SETS:
        module, function = PROMPT_SETS[source]
        return getattr(import_module(module), function)()
    if source.startswith(HUB):
        found = list(_hub(source))
    else:
        try:
            found = list(FORMATS.get(Path(source).suffix.lower(), _text)(source))
        except OSError as error:
            raise InputError(f"prompts {source!r} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"prompts {source!r} is not UTF-8 text") from error
    prompts = [prompt.strip() for prompt in found if prompt.strip()]
    if not prompts:
        raise InputError(f"prompts {source!r} holds no prompt; write one a line")
    return prompts


def _text(source: str) -> list[str]:
    return Path(source).read_text(encoding="utf-8-sig").splitlines()


def _jsonl(source: str) -> Iterator[str]:
    """A line is an object with a column, or a string."""
    for number, line in enumerate(_text(source), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"prompts {source!r}, line {number} is not JSON: {error.msg}") from error
        yield _of(row, source, f"line {number}")


def _json(source: str) -> Iterator[str]:
    """A list of objects with a column, or of strings."""
    try:
        rows = json.loads("\n".join(_text(source)))
    except json.JSONDecodeError as error:
        raise InputError(f"prompts {source!r} is not JSON: {first_line(error)}") from error
    if not isinstance(rows, list):
        raise InputError(f"prompts {source!r} must be a list of objects or strings; for a line each name it .jsonl")
    for number, row in enumerate(rows, 1):
        yield _of(row, source, f"entry {number}")


def _of(row: Any, source: str, place: str) -> str:
    if not isinstance(row, str | dict):
        raise InputError(f"prompts {source!r}, {place} must be an object or a string, not {json.dumps(row)!r}")
    return row if isinstance(row, str) else _cell(row, _column(row, source), source, place)


def _csv(source: str, delimiter: str = ",") -> Iterator[str]:
    try:
        with Path(source).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=delimiter)
            column = _column(rows.fieldnames or (), source)
            for number, row in enumerate(rows, 2):
                yield _cell(row, column, source, f"line {number}")
    except csv.Error as error:  # such as a field of more than 131072 characters, where a quote is not closed
        raise InputError(f"prompts {source!r} is not a table of prompts: {first_line(error)}") from error


def _parquet(source: str) -> list[str]:
    parquet = _extra("pyarrow.parquet", f"prompts {source!r} is a parquet file")
    with Path(source).open("rb"):  # a missing file is the usual OSError
        pass
    try:
        column = _column(parquet.read_schema(source).names, source)
        return [str(value) for value in parquet.read_table(source, columns=[column])[column].to_pylist() if value]
    except ValueError as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"prompts {source!r} is not a parquet file: {first_line(error)}") from error


FORMATS: dict[str, Callable[[str], Iterable[str]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}


def _hub(source: str) -> Iterator[str]:
    datasets = _extra("datasets", f"prompts {source!r} is a dataset on the Hub")
    name, *more = source.removeprefix(HUB).split(":")
    if not name or len(more) > 2:
        raise InputError(f"prompts {source!r} must be hf:DATASET, hf:DATASET:SPLIT or hf:DATASET:SPLIT:COLUMN")
    split, column = (*more, *("train", "")[len(more) :])
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
        names = list(rows.column_names or next(iter(rows)))
        column = column or _column(names, source)
        if column not in names:
            raise InputError(f"prompts {source!r} has no column {column!r}; its columns: {', '.join(names)}")
        for row in rows.select_columns([column]).take(STREAMED):
            if row[column]:
                yield str(row[column])
    except (OSError, ValueError) as error:
        raise InputError(f"prompts {source!r} cannot be read: {first_line(error)}") from error


def _extra(module: str, why: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"{why}, which needs another package: pip install 'hypernoise[prompts]'") from error


def _column(names: Iterable[str], source: str) -> str:
    known = list(names)
    for column in COLUMNS:
        if column in known:
            return column
    raise InputError(
        f"prompts {source!r} has no column {', '.join(COLUMNS)}; its columns: {', '.join(known) or 'none'}"
    )


def _cell(row: Mapping[str, Any], column: str, source: str, place: str) -> str:
    if not isinstance(row[column], str):
        raise InputError(f"prompts {source!r}, {place}: {column} must be text, not {row[column]!r}")
    return row[column]


@dataclass(frozen=True)
class PromptMix(Sequence[str]):
    """Prompts of several sources, each of which gives its weight's share of the samples; as a sequence, all of them.

    Raises:
        InputError: a source whose share is less than one sample in a thousand.
    """

    parts: tuple[tuple[str, ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for prompts, count in zip(self.parts, self.counts, strict=True):
            if count == 0:
                raise InputError(f"the weight of the prompts that begin with {prompts[0]!r} is under a thousandth")

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: Any) -> Any:
        return self.all[index]

    @cached_property
    def all(self) -> list[str]:
        """Of one source after another."""
        return [prompt for part in self.parts for prompt in part]

    @property
    def counts(self) -> np.ndarray:
        """Of a thousand samples, those of each source."""
        bounds = np.cumsum(self.weights) / sum(self.weights) * BLOCK
        return np.diff(bounds.round().astype(int), prepend=0)

    def turns(self, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each sample of a block of a thousand: its source, and how many samples that source gave before it."""
        order = np.random.default_rng([seed, MIXING, block]).permutation(BLOCK)
        sources = np.repeat(np.arange(len(self.parts)), self.counts)[order]
        turns = np.zeros(BLOCK, dtype=int)
        for source, count in enumerate(self.counts):
            turns[sources == source] = block * count + np.arange(count)
        return sources, turns


def read_mix(sources: Mapping[str, float]) -> Sequence[str]:
    """The prompts of one source, or of several as a mix. Raises `read_prompts`'s errors."""
    parts = [tuple(read_prompts(source)) for source in sources]
    return list(parts[0]) if len(parts) == 1 else PromptMix(tuple(parts), tuple(sources.values()))


def spread(prompts: Sequence[str], count: int) -> list[str]:
    """So many prompts, from one end of the list to the other."""
    return [prompts[i * len(prompts) // count] for i in range(count)]


def prompts_of_step(prompts: Sequence[str], step: int, batch_size: int, seed: int) -> list[str]:
    """The batch of a step: every prompt once per epoch of its source, in an order keyed by (seed, epoch) alone."""
    places = range(step * batch_size, (step + 1) * batch_size)
    if not isinstance(prompts, PromptMix):
        return _taken(prompts, places, [seed])
    blocks = {block: prompts.turns(block, seed) for block in {place // BLOCK for place in places}}
    batch: list[str] = []
    for place in places:
        sources, turns = blocks[place // BLOCK]
        source, turn = int(sources[place % BLOCK]), int(turns[place % BLOCK])
        batch += _taken(prompts.parts[source], [turn], [seed, source])
    return batch


def _taken(prompts: Sequence[str], places: Iterable[int], keys: list[int]) -> list[str]:
    epochs = {place // len(prompts) for place in places}
    orders = {epoch: np.random.default_rng([*keys, epoch]).permutation(len(prompts)) for epoch in epochs}
    return [prompts[int(orders[place // len(prompts)][place % len(prompts)])] for place in places]
