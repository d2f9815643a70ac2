"""Sources of prompts, and the prompts of each training step."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hypernoise.errors import InputError, shown
from hypernoise.files import json_lines, read_json, read_text

PROMPT_SETS = {"scenes": ("hypernoise.scenes.prompts", "training_prompts")}
COLUMNS = ("prompt", "caption", "text", "prompts", "captions")  # looked for in this order, case-insensitively
LISTS = ("annotations", "results")  # in COCO's captions, and in the summary of `hypernoise generate`
BLOCK = 1000  # samples within which a mix matches its weights
MIXING = 2**31  # in the key of a mix's order: no source has this number


def read_prompts(source: str) -> list[str]:
    """The prompts of a file or of a named set ("scenes"), in order.

    Files: .json, .jsonl, .csv and .tsv with a column prompt, caption or text, in any case; a .json may also map names
    to prompts, or be COCO's captions. Any other file is text with a prompt per line.

    Raises:
        InputError: no such file, an invalid format, no such column, or no prompts.
    """
    if source in PROMPT_SETS:
        module, function = PROMPT_SETS[source]
        return getattr(import_module(module), function)()
    found = FORMATS.get(Path(source).suffix.lower(), _text)(source)
    prompts = [stripped for prompt in found if (stripped := prompt.strip())]
    if not prompts:
        raise InputError(f"prompts {source!r} has no prompts; write one per line")
    return prompts


def _text(source: str) -> list[str]:
    return read_text(source, f"prompts {source!r}").split("\n")


def _jsonl(source: str) -> Iterator[str]:
    """Each line is an object with a column, or a string."""
    what = f"prompts {source!r}"
    return (_of(row, source, place) for place, row in json_lines(read_text(source, what), what))


def _json(source: str) -> Iterator[str]:
    """A list of objects with a column, or of strings; or an object that maps names to such.

    In an object about prompts, such as COCO's captions or a summary.json, the list of them is read.
    """
    rows = read_json(source, f"prompts {source!r}")
    if isinstance(rows, dict):
        named = {name.lower(): value for name, value in rows.items()}
        listed = next((named[name] for name in (*LISTS, *COLUMNS) if name in named), rows)
        rows = list(listed.values()) if isinstance(listed, dict) else listed
    if not isinstance(rows, list):
        raise InputError(
            f"prompts {source!r} must be a list of objects or strings, or map names to them; a file "
            "with one prompt per line is .jsonl or .txt"
        )
    return (_of(row, source, f"prompts {source!r}, entry {number}") for number, row in enumerate(rows, 1))


def _of(row: Any, source: str, place: str) -> str:
    if not isinstance(row, str | dict):
        raise InputError(f"{place} must be an object or a string, not {shown(row)}")
    prompt = row if isinstance(row, str) else row[_column(row, source)]
    if not isinstance(prompt, str):
        raise InputError(f"{place}: a prompt must be text, not {shown(prompt)}")
    return prompt


def _csv(source: str, **dialect: Any) -> Iterator[str]:
    """Strict: an unclosed quote would swallow the lines after it."""
    rows = csv.reader((f"{line}\n" for line in _text(source)), strict=True, **dialect)
    before = 0
    try:
        names = next(rows, [])
        place = names.index(_column(names, source))
        before = rows.line_num
        for row in rows:
            if any(cell.strip() for cell in row):
                if place >= len(row):
                    raise InputError(f"prompts {source!r}, line {rows.line_num}: a prompt must be text, not None")
                yield row[place]
            before = rows.line_num
    except csv.Error as error:  # such as an unclosed quote, or a field of more than 131072 characters
        raise InputError(f"prompts {source!r}: the row at line {before + 1} is not CSV: {error}") from error


def _tsv(source: str) -> Iterator[str]:
    """Each line is a row; quotes are part of the text, unless they enclose it."""
    for text in _csv(source, delimiter="\t", quoting=csv.QUOTE_NONE):
        quoted = len(text) > 1 and text[0] == text[-1] == '"'
        yield text[1:-1].replace('""', '"') if quoted else text


FORMATS: dict[str, Callable[[str], Iterable[str]]] = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv}


def _column(names: Iterable[str], source: str) -> str:
    given = list(names)
    known = {name.strip().lower(): name for name in reversed(given)}
    if found := [known[column] for column in COLUMNS if column in known]:
        return found[0]
    raise InputError(
        f"prompts {source!r} has no column {', '.join(COLUMNS[:3])}; its columns: {', '.join(given) or 'none'}"
    )


class PromptMix(list[str]):
    """The prompts of several sources, sampled in proportion to their weights; as a list, all of them.

    counts: the number of each source's samples in a thousand. Raises InputError for a source without any.
    """

    def __init__(self, parts: Sequence[Sequence[str]], weights: Sequence[float]):
        super().__init__(prompt for part in parts for prompt in part)
        self.parts = parts
        bounds = np.cumsum(weights) / sum(weights) * BLOCK
        self.counts = np.diff(bounds.round().astype(int), prepend=0)
        for prompts, count in zip(parts, self.counts, strict=True):
            if count == 0:
                raise InputError(f"the weight of prompts that begin with {prompts[0]!r} is under a thousandth of all")

    def turns(self, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """For each sample of a block of a thousand: its source, and how many samples of that source precede it."""
        order = np.random.default_rng([seed, MIXING, block]).permutation(BLOCK)
        sources = np.repeat(np.arange(len(self.parts)), self.counts)[order]
        turns = np.zeros(BLOCK, dtype=int)
        for source, count in enumerate(self.counts):
            turns[sources == source] = block * count + np.arange(count)
        return sources, turns


def read_mix(sources: Mapping[str, float]) -> list[str]:
    """The prompts of one source, or of several as a mix. Raises the errors of `read_prompts`."""
    parts = [read_prompts(source) for source in sources]
    return parts[0] if len(parts) == 1 else PromptMix(parts, list(sources.values()))


def spread(prompts: Sequence[str], count: int) -> list[str]:
    """`count` evenly spaced prompts of the list."""
    return [prompts[i * len(prompts) // count] for i in range(count)]


def prompts_of_step(prompts: Sequence[str], step: int, batch_size: int, seed: int) -> list[str]:
    """The batch of a step: every prompt once per epoch of its source, in an order keyed by (seed, epoch) only."""
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
