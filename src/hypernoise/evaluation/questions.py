"""Benchmarks that ask questions about a picture: DPG-Bench, UniGenBench++ and GenEval 2.

Each prompt has questions, each question its right answer; a model returns P(that answer). How answers
combine to a score differs, and is a row of `KINDS`:

- dpg (ELLA, arXiv 2403.05135): the share of yes; a question whose parents do not count as yes counts as no.
- unigenbench (arXiv 2510.18701): the share of test points that the picture meets.
- geneval2 (arXiv 2512.16853): Soft-TIFA, the geometric mean of the probabilities.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from hypernoise.errors import InputError, unknown
from hypernoise.evaluation.benchmarks import Benchmark, Models, one_per_prompt
from hypernoise.evaluation.geneval.requests import lines_of
from hypernoise.evaluation.records import Judgement
from hypernoise.files import parse_json, read_text
from hypernoise.rewards.base import RewardSettings

YES = "yes"
LEAST = 1e-12  # minimum probability in a geometric mean
UNIGENBENCH = ("Testpoints", "Testpoint Description")


def _lines(file: Path) -> list[str]:
    return read_text(file, f"questions {file}").split("\n")


@dataclass(frozen=True)
class Question:
    """`parents` are the numbers of earlier questions, from 0, without whose yes this one makes no sense."""

    text: str
    answer: str
    category: str
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Item:
    """A prompt, its name in the file, and its questions."""

    name: str
    prompt: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Kind:
    """How a benchmark's file is read, its questions are phrased, and probabilities combine to a picture's score.

    score: from the probabilities of an item's right answers; and each question's value in its category.
    """

    name: str
    read: Callable[[Path], list[Item]]
    sentence: str
    score: Callable[[Item, Sequence[float]], tuple[float, list[float]]]


def read_dpg(file: Path) -> list[Item]:
    """dpg_bench.csv: a line per question, with the columns item_id, text, proposition_id, dependency,
    category_broad and question_natural_language. Every line counts (the official script skips the first)."""
    groups: dict[str, list[tuple[int, dict[str, str]]]] = {}
    needed = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")
    for number, line in _rows(file, "dpg_bench.csv", needed):
        groups.setdefault(line["item_id"], []).append((number, line))
    return [_dpg_item(file, name, lines) for name, lines in groups.items()]


def _rows(file: Path, known: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a CSV file with their numbers. Raises InputError if one lacks a column that `known` has."""
    reader = csv.DictReader((f"{line}\n" for line in _lines(file)), strict=True)
    lacking = [name for name in needed if name not in (reader.fieldnames or [])]
    if lacking:
        raise InputError(f"{file} has no column {lacking[0]!r}; {known} has {', '.join(needed)}")
    try:
        for line in reader:
            if any(line[name] is None for name in needed):
                raise InputError(f"{file}, line {reader.line_num}: fewer columns than the first line names")
            yield reader.line_num, line
    except csv.Error as error:  # such as an unclosed quote
        raise InputError(f"{file}, line {reader.line_num} is not CSV: {error}") from error


def read_unigenbench(file: Path) -> list[Item]:
    """test_prompts_en.csv: a prompt per line in prompt_en; sub_dims_en is JSON with Testpoints ("Attribute - Color")
    and each one's Testpoint Description in this prompt. A point's category is the part before the dash."""
    items = []
    for number, line in _rows(file, "test_prompts_en.csv", ("prompt_en", "sub_dims_en")):
        about = parse_json(line["sub_dims_en"], f"sub_dims_en in line {number} of {file}")
        points, seen = (about.get(n) if isinstance(about, dict) else None for n in UNIGENBENCH)
        if not (_texts(points) and _texts(seen) and len(points) == len(seen) > 0):
            raise InputError(f"{file}, line {number}: sub_dims_en needs {' and '.join(UNIGENBENCH)}, as many of each")
        questions = [
            Question(f'Does the picture show "{what}" ({point})?', YES, point.partition(" - ")[0])
            for point, what in zip(points, seen, strict=True)
        ]
        items.append(Item(f"{len(items):05d}", line["prompt_en"], tuple(questions)))
    return items


def _dpg_item(file: Path, name: str, lines: list[tuple[int, dict[str, str]]]) -> Item:
    numbers = {line["proposition_id"].strip(): place for place, (_, line) in enumerate(lines)}
    questions = []
    for place, (number, line) in enumerate(lines):
        parents = [part.strip() for part in line["dependency"].split(",") if part.strip() not in ("", "0")]
        for parent in parents:
            if numbers.get(parent, place) == place:
                raise InputError(f"{file}, line {number}: dependency {parent!r} is not another question of {name}")
        told = tuple(numbers[parent] for parent in parents)
        questions.append(Question(line["question_natural_language"], YES, line["category_broad"], told))
    return Item(name, lines[0][1]["text"], tuple(questions))


def read_geneval2(file: Path) -> list[Item]:
    """geneval2_data.jsonl: {"prompt", "vqa_list": [[question, answer], ...], "skills": [...]} per line."""
    items = []
    for number, value in lines_of(file, "questions"):
        names = ("prompt", "vqa_list", "skills")
        prompt, pairs, skills = (value.get(name) if isinstance(value, dict) else None for name in names)
        whole = isinstance(pairs, list) and isinstance(skills, list) and len(pairs) == len(skills) > 0
        if not (isinstance(prompt, str) and whole and all(_pair(pair) for pair in pairs or [])):
            raise InputError(
                f"{file}, line {number}: needs a prompt, a vqa_list of [question, answer], and as many skills"
            )
        questions = [Question(q, a, str(skill)) for (q, a), skill in zip(pairs or [], skills or [], strict=True)]
        items.append(Item(f"{len(items):05d}", prompt, tuple(questions)))
    return items


def _pair(value: Any) -> bool:
    return _texts(value) and len(value) == 2


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def score_dpg(item: Item, sure: Sequence[float]) -> tuple[float, list[float]]:
    """A yes is a probability above a half; a no also fails the children and, in the file's order, theirs.

    Like the official compute_dpg_bench.py. Categories count answers as given.
    """
    yes = [float(one > 0.5) for one in sure]
    held = list(yes)
    for place, question in enumerate(item.questions):
        held[place] *= all(held[parent] for parent in question.parents)
    return sum(held) / len(held), yes


def score_soft(item: Item, sure: Sequence[float]) -> tuple[float, list[float]]:
    return math.exp(sum(math.log(max(one, LEAST)) for one in sure) / len(sure)), list(sure)


YES_OR_NO = "{} Please answer yes or no."
KINDS = (
    Kind("dpg", read_dpg, YES_OR_NO, score_dpg),
    Kind("unigenbench", read_unigenbench, YES_OR_NO, score_dpg),
    Kind("geneval2", read_geneval2, "{} Answer with one word.", score_soft),
)


def read_items(file: Path) -> tuple[Kind, list[Item]]:
    """The benchmark of a file, by its suffix and first line, and its items. Raises InputError for any other file."""
    dpg, unigenbench, geneval2 = KINDS
    if file.suffix not in (".csv", ".jsonl"):
        raise InputError(
            "--prompts questions:FILE takes dpg_bench.csv, UniGenBench++'s test_prompts_en.csv or geneval2_data.jsonl, "
            f"not {str(file)!r}"
        )
    kind = geneval2 if file.suffix == ".jsonl" else unigenbench if "prompt_en" in _lines(file)[0] else dpg
    items = kind.read(file)
    if not items:
        raise InputError(f"{file} has no prompts of {kind.name}")
    return kind, items


def benchmark(file: str, count: int, models: Models) -> Benchmark:
    """The first `count` prompts of a benchmark's file, 0: all, and a model that answers its questions."""
    kind, items = read_items(Path(file))
    items = items[: count or len(items)]
    _by_prompt(items)

    def load_judge(device: Any) -> QuestionJudge:
        return QuestionJudge(kind, items, VqaModel.load(models.judge or "vqascore", device))

    return Benchmark(
        prompts=[item.prompt for item in items],
        load_judge=None if models.judge == "none" else load_judge,
        about={"benchmark": kind.name, "file": file, "count": len(items)},
    )


def _by_prompt(items: Sequence[Item]) -> dict[str, Item]:
    """Raises InputError if a prompt occurs with two sets of questions."""
    return one_per_prompt(items, "questions", "the file, with different questions")


class VqaModel:
    """P(right answer) among all possible outputs of a reward of `rewards.vqa`, asked otherwise."""

    def __init__(self, reward: Any, device: torch.device | str = "cpu"):
        self.name, self.reward, self.device = reward.name, reward, device
        self.asking: dict[tuple[str, str], Any] = {}

    @classmethod
    def load(cls, name: str, device: torch.device | str) -> VqaModel:
        """Raises InputError for an unknown name, and weights that are missing or do not fit."""
        from hypernoise.rewards import vqa

        if name not in vqa.VLMS:
            raise unknown("judge", name, vqa.VLMS)
        return cls(vqa.load(name, RewardSettings()), device)

    @torch.no_grad()
    def __call__(self, picture: Tensor, questions: Sequence[Question], sentence: str) -> list[float]:
        """[questions] of one picture [3, H, W] in [0, 1]; `sentence` has a {} for the question."""
        found = []
        for question in questions:
            key = (sentence, question.answer.capitalize())  # the capitalisation that the model was trained with
            if key not in self.asking:
                self.asking[key] = self.reward.asking(*key)
            found.append(self.asking[key](picture[None].to(self.device), [question.text]).exp().item())
        return found


class QuestionJudge:
    """Asks a model every question about a picture; the right answers' probabilities give its score."""

    def __init__(self, kind: Kind, items: Sequence[Item], model: Any):
        self.kind, self.model, self.items = kind, model, _by_prompt(items)
        self.name = f"{kind.name} by {model.name}"

    def __call__(self, picture: np.ndarray, prompt: str) -> Judgement:
        item = self.items[prompt]
        sure = self.model(torch.from_numpy(picture).permute(2, 0, 1), item.questions, self.kind.sentence)
        score, counted = self.kind.score(item, sure)
        parts: dict[str, list[float]] = {}
        for question, value in zip(item.questions, counted, strict=True):
            parts.setdefault(question.category, []).append(value)
        asked = [
            {"question": q.text, "answer": q.answer, "category": q.category, "probability": p}
            for q, p in zip(item.questions, sure, strict=True)
        ]
        unsure = [q.text for q, p in zip(item.questions, sure, strict=True) if p <= 0.5]
        return Judgement(score, note="; ".join([f"{score:.3f}", *unsure]), parts=parts, details=asked)
