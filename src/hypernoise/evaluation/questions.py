"""Benchmarks that ask questions of a picture: DPG-Bench, GenEval 2 and T2I-CompBench's attributes.

Each prompt has questions, each question the answer that would be right; an asker gives P(that answer). How answers
make a score differs, and is a row of `BENCHMARKS`:

- dpg (ELLA, arXiv 2403.05135): the share of yes; a question whose parents do not count as yes counts as no.
- geneval2 (arXiv 2512.16853): Soft-TIFA, the geometric mean of the probabilities; the arithmetic one is kept beside.
- t2i-compbench (arXiv 2307.06350): BLIP-VQA, the product over the prompt's noun phrases.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hypernoise.errors import InputError, first_line

YES = "yes"
MOST = 8  # noun phrases of a prompt that are asked for
SPACY = "en_core_web_sm"
LEAST = 1e-12  # a probability below it counts as this in a geometric mean


@dataclass(frozen=True)
class Question:
    """`parents` are the numbers of earlier questions, from 0, without whose yes this one makes no sense."""

    text: str
    answer: str
    category: str
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Item:
    """A prompt, what it is called in its file, and its questions."""

    name: str
    prompt: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark's file is read, how its questions are put, and how probabilities make a picture's score.

    score: of the probabilities of an item's right answers; and what counts for each question in its category.
    """

    read: Callable[[Path], list[Item]]
    sentence: str
    score: Callable[[Item, Sequence[float]], tuple[float, list[float]]]


def read_dpg(file: Path) -> list[Item]:
    """dpg_bench.csv: a line per question, with the columns item_id, text, proposition_id, dependency,
    category_broad and question_natural_language. Every line counts (the official script skips the first)."""
    groups: dict[str, list[tuple[int, dict[str, str]]]] = {}
    reader = csv.DictReader(_text(file).splitlines(keepends=True))
    needed = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")
    lacking = [name for name in needed if name not in (reader.fieldnames or [])]
    if lacking:
        raise InputError(f"{file} has no column {lacking[0]!r}; dpg_bench.csv has {', '.join(needed)}")
    for line in reader:
        if any(line[name] is None for name in needed):
            raise InputError(f"{file}, line {reader.line_num}: fewer columns than the first line names")
        groups.setdefault(line["item_id"], []).append((reader.line_num, line))
    return [_dpg_item(file, name, lines) for name, lines in groups.items()]


def _dpg_item(file: Path, name: str, lines: list[tuple[int, dict[str, str]]]) -> Item:
    numbers = {line["proposition_id"].strip(): place for place, (_, line) in enumerate(lines)}
    questions = []
    for place, (number, line) in enumerate(lines):
        parents = [part.strip() for part in line["dependency"].split(",") if part.strip() not in ("", "0")]
        for parent in parents:
            if numbers.get(parent, place) == place:
                raise InputError(f"{file}, line {number}: dependency {parent!r} is no other question of {name}")
        told = tuple(numbers[parent] for parent in parents)
        questions.append(Question(line["question_natural_language"], YES, line["category_broad"], told))
    return Item(name, lines[0][1]["text"], tuple(questions))


def read_geneval2(file: Path) -> list[Item]:
    """geneval2_data.jsonl: {"prompt", "vqa_list": [[question, answer], ...], "skills": [...]} a line."""
    items = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not JSON") from error
        pairs, skills, prompt = (
            (value.get("vqa_list"), value.get("skills"), value.get("prompt"))
            if isinstance(value, dict)
            else (None, None, None)
        )
        whole = isinstance(pairs, list) and isinstance(skills, list) and len(pairs) == len(skills) > 0
        if not (isinstance(prompt, str) and whole and all(_pair(pair) for pair in pairs or [])):
            raise InputError(f"{where}: needs a prompt, a vqa_list of [question, answer], and as many skills")
        questions = [Question(q, a, str(skill)) for (q, a), skill in zip(pairs or [], skills or [], strict=True)]
        items.append(Item(f"{len(items):05d}", prompt, tuple(questions)))
    return items


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


PARTING = (
    r",|\b(?:and|with|without|on|in|at|of|for|by|to|from|into|onto|through|between|against|next to|left|right|top|"
    r"bottom|near|behind|under|above|below|beside|inside|while|which|that|has|have|the side)\b|"
    r"\b(?:is|are|was|were)\b(?:\s+\w+(?:ed|ing)\b)?|"  # "are placed" is one verb
    r"(?<=\s)(?=(?:the|a|an|its|his|her|their)\s)"
)
EMPTY = ("a", "an", "the", "its", "his", "her", "their")


def phrases(prompt: str) -> list[str]:
    """Noun phrases by rules: what stands between commas, "and", prepositions, articles and "is", article and all.

    It is meant for prompts such as "a red book and a yellow vase"; other verbs stay where they are.
    """
    parts = [part.strip(" .\n") for part in re.split(PARTING, prompt, flags=re.IGNORECASE)]
    kept = [part for part in parts if part and part.lower() not in EMPTY]
    return kept or [prompt.strip()]


def read_compbench(file: Path, cut: Callable[[str], list[str]] = phrases) -> list[Item]:
    """T2I-CompBench's *_train.txt and *_val.txt: a prompt a line. Each noun phrase that `cut` gives is asked for,
    of a prompt's first eight, as the official script does."""
    name = file.stem.removesuffix("_val").removesuffix("_train")
    lines = [line.strip() for line in _text(file).splitlines()]
    return [
        Item(f"{i:05d}", line, tuple(Question(f"{phrase}?", YES, name) for phrase in cut(line)[:MOST]))
        for i, line in enumerate(line for line in lines if line)
    ]


def read_compbench_spacy(file: Path) -> list[Item]:
    """With spaCy's noun chunks, as T2I-CompBench's BLIP_vqa.py.

    Raises:
        InputError: spaCy or its model is not installed.
    """
    try:
        language: Any = import_module("spacy").load(SPACY)
    except (ImportError, OSError) as error:
        raise InputError(
            f"t2i-compbench-spacy needs spaCy with {SPACY}: pip install 'hypernoise[spacy]', then python -m spacy "
            f"download {SPACY} ({first_line(error)})"
        ) from error
    return read_compbench(file, lambda prompt: [chunk.text for chunk in language(prompt).noun_chunks] or [prompt])


def score_dpg(item: Item, sure: Sequence[float]) -> tuple[float, list[float]]:
    """A yes is a probability above a half; a no is passed on to children and, in the file's order, to theirs.

    As the official compute_dpg_bench.py. Categories count answers as given.
    """
    yes = [float(one > 0.5) for one in sure]
    held = list(yes)
    for place, question in enumerate(item.questions):
        held[place] *= all(held[parent] for parent in question.parents)
    return sum(held) / len(held), yes


def score_soft(item: Item, sure: Sequence[float]) -> tuple[float, list[float]]:
    return math.exp(sum(math.log(max(one, LEAST)) for one in sure) / len(sure)), list(sure)


def score_product(item: Item, sure: Sequence[float]) -> tuple[float, list[float]]:
    return math.prod(sure), list(sure)


BENCHMARKS = {
    "dpg": Benchmark(read_dpg, "{} Please answer yes or no.", score_dpg),
    "geneval2": Benchmark(read_geneval2, "{} Answer with one word.", score_soft),
    "t2i-compbench": Benchmark(read_compbench, "{}", score_product),
    "t2i-compbench-spacy": Benchmark(read_compbench_spacy, "{}", score_product),
}


def read_items(benchmark: str, file: Path) -> list[Item]:
    """Raises InputError for a file that cannot be read, and names the line that is wrong."""
    items = BENCHMARKS[benchmark].read(file)
    if not items:
        raise InputError(f"{file} holds no prompt of {benchmark}")
    return items


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text") from error
