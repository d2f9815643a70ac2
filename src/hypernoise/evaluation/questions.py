"""Benchmarks that ask questions about a picture: DPG-Bench, UniGenBench++ and GenEval 2.

Each prompt has questions, each question its right answer; a model returns P(that answer). How answers
combine to a score differs, and is a row of `KINDS`:

- dpg (ELLA, arXiv 2403.05135): the share of yes; a question whose parents do not count as yes counts as no.
- unigenbench (arXiv 2510.18701): the share of test points that the picture meets.
- geneval2 (arXiv 2512.16853): Soft-TIFA, the geometric mean of the probabilities.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from hypernoise.errors import InputError, unknown
from hypernoise.evaluation.benchmarks import Benchmark
from hypernoise.evaluation.records import Judgement
from hypernoise.files import json_lines, parse_json, read_text
from hypernoise.rewards.base import RewardSettings

YES = "yes"
LEAST = 1e-12  # minimum probability in a geometric mean
DPG = ("item_id", "text", "proposition_id", "dependency", "category_broad", "question_natural_language")


@dataclass(frozen=True)
class Question:
    """`parents` are the numbers of earlier questions, from 0, without whose yes this one makes no sense."""

    text: str
    answer: str
    category: str
    parents: tuple[int, ...] = ()


Questions = tuple[Question, ...]


class Kind(NamedTuple):
    """How a benchmark's file (its text, and its name for messages) is read, its questions are phrased, and the right
    answers' probabilities combine to a picture's score, and each question's value in its category."""

    name: str
    read: Callable[[str, str], Iterator[tuple[str, Questions]]]
    sentence: str
    score: Callable[[Questions, Sequence[float]], tuple[float, list[float]]]


def _rows(text: str, file: str, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with their places. Raises InputError for one without all `needed` columns."""
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            place = f"{file}, line {reader.line_num}"
            if any(row.get(name) is None for name in needed):
                raise InputError(f"{place}: it lacks a column; needed are {', '.join(needed)}")
            yield place, row
    except csv.Error as error:  # such as an unclosed quote
        raise InputError(f"{file}, line {reader.line_num} is not CSV: {error}") from error


def read_dpg(text: str, file: str) -> Iterator[tuple[str, Questions]]:
    """dpg_bench.csv: a line per question. Every line counts (the official script skips the first)."""
    groups: dict[str, list[dict[str, str]]] = {}
    for _, row in _rows(text, file, DPG):
        groups.setdefault(row["item_id"], []).append(row)
    for name, rows in groups.items():
        numbers, questions = [row["proposition_id"].strip() for row in rows], []
        for number, row in zip(numbers, rows, strict=True):
            parents = [part.strip() for part in row["dependency"].split(",") if part.strip() not in ("", "0")]
            if not set(parents) <= set(numbers) - {number}:
                raise InputError(f"{file}: dependency {row['dependency']!r} does not name other questions of {name}")
            after = tuple(numbers.index(parent) for parent in parents)
            questions.append(Question(row["question_natural_language"], YES, row["category_broad"], after))
        yield rows[0]["text"], tuple(questions)


def read_unigenbench(text: str, file: str) -> Iterator[tuple[str, Questions]]:
    """test_prompts_en.csv: a prompt per line in prompt_en; sub_dims_en is JSON with Testpoints ("Attribute - Color")
    and each one's Testpoint Description in this prompt. A point's category is the part before the dash."""
    for place, row in _rows(text, file, ("prompt_en", "sub_dims_en")):
        value = parse_json(row["sub_dims_en"], f"{place}: sub_dims_en")
        about: Any = value if isinstance(value, dict) else {}
        points, seen = (about.get(name) for name in ("Testpoints", "Testpoint Description"))
        if not (_texts(points) and _texts(seen) and len(points) == len(seen) > 0):
            raise InputError(f"{place}: sub_dims_en needs Testpoints and Testpoint Description, as many of each")
        asked = [
            (f'Does the picture show "{what}" ({point})?', point) for point, what in zip(points, seen, strict=True)
        ]
        yield row["prompt_en"], tuple(Question(text, YES, point.partition(" - ")[0]) for text, point in asked)


def read_geneval2(text: str, file: str) -> Iterator[tuple[str, Questions]]:
    """geneval2_data.jsonl: {"prompt", "vqa_list": [[question, answer], ...], "skills": [...]} per line."""
    for place, value in json_lines(text, file):
        about: Any = value if isinstance(value, dict) else {}
        prompt, pairs, skills = (about.get(name) for name in ("prompt", "vqa_list", "skills"))
        paired = isinstance(pairs, list) and all(_texts(pair) and len(pair) == 2 for pair in pairs)
        if not (isinstance(prompt, str) and paired and _texts(skills) and len(pairs) == len(skills) > 0):
            raise InputError(f"{place}: needs a prompt, a vqa_list of [question, answer], and as many skills")
        yield prompt, tuple(Question(*pair, category=skill) for pair, skill in zip(pairs, skills, strict=True))


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def score_dpg(questions: Questions, sure: Sequence[float]) -> tuple[float, list[float]]:
    """A yes is a probability above a half; a no also fails the children and, in file order, their children.

    Like the official compute_dpg_bench.py. Categories count answers as given.
    """
    yes = [float(one > 0.5) for one in sure]
    held = list(yes)
    for place, question in enumerate(questions):
        held[place] *= all(held[parent] for parent in question.parents)
    return sum(held) / len(held), yes


def score_soft(questions: Questions, sure: Sequence[float]) -> tuple[float, list[float]]:
    return math.exp(sum(math.log(max(one, LEAST)) for one in sure) / len(sure)), list(sure)


YES_OR_NO = "{} Please answer yes or no."
KINDS = (
    Kind("dpg", read_dpg, YES_OR_NO, score_dpg),
    Kind("unigenbench", read_unigenbench, YES_OR_NO, score_dpg),
    Kind("geneval2", read_geneval2, "{} Answer with one word.", score_soft),
)


def read_items(file: Path) -> tuple[Kind, dict[str, Questions]]:
    """The benchmark of a file, by its suffix and first line, and the questions of each prompt.

    Raises InputError for any other file, or a prompt that occurs with two sets of questions.
    """
    dpg, unigenbench, geneval2 = KINDS
    if file.suffix not in (".csv", ".jsonl"):
        raise InputError(
            "--prompts questions:FILE takes dpg_bench.csv, UniGenBench++'s test_prompts_en.csv or geneval2_data.jsonl, "
            f"not {str(file)!r}"
        )
    text = read_text(file, f"questions {file}")
    kind = geneval2 if file.suffix == ".jsonl" else unigenbench if "prompt_en" in text.partition("\n")[0] else dpg
    items: dict[str, Questions] = {}
    for prompt, questions in kind.read(text, str(file)):
        if items.setdefault(prompt, questions) != questions:
            raise InputError(f"the prompt {prompt!r} appears twice in {file}, with different questions")
    if not items:
        raise InputError(f"{file} has no prompts of {kind.name}")
    return kind, items


def benchmark(file: str, count: int, judge: str = "", colors: str = "") -> Benchmark:
    """The first `count` prompts of a benchmark's file, 0: all, and a model that answers its questions.

    Raises the errors of `read_items`.
    """
    kind, items = read_items(Path(file))
    prompts = list(items)[: count or len(items)]

    def load_judge(device: Any) -> QuestionJudge:
        from hypernoise.rewards import vqa

        name = judge or "vqascore"
        if name not in vqa.VLMS:
            raise unknown("judge", name, vqa.VLMS)
        return QuestionJudge(kind, items, vqa.load(name, RewardSettings()), device)

    about = {"benchmark": kind.name, "file": file, "count": len(prompts)}
    return Benchmark(prompts, load_judge=None if judge == "none" else load_judge, about=about)


class QuestionJudge:
    """Asks the model of a reward of `rewards.vqa` every question about a picture; the probabilities of the right
    answers, among all possible outputs, give its score."""

    def __init__(self, kind: Kind, items: Mapping[str, Questions], reward: Any, device: torch.device | str = "cpu"):
        self.kind, self.items, self.reward, self.device = kind, items, reward, device
        self.name = f"{kind.name} by {reward.name}"

    def __call__(self, picture: np.ndarray, prompt: str) -> Judgement:
        questions, pixels = self.items[prompt], torch.from_numpy(picture).permute(2, 0, 1)
        sure = [self.probability(pixels, question) for question in questions]
        score, counted = self.kind.score(questions, sure)
        parts: dict[str, list[float]] = {}
        notes, details = [f"{score:.3f}"], []
        for question, probability, value in zip(questions, sure, counted, strict=True):
            parts.setdefault(question.category, []).append(value)
            notes += [question.text] if probability <= 0.5 else []
            about = {"question": question.text, "answer": question.answer, "category": question.category}
            details.append({**about, "probability": probability})
        return Judgement(score, note="; ".join(notes), parts=parts, details=details)

    @torch.no_grad()
    def probability(self, pixels: Tensor, question: Question) -> float:
        """P(right answer) for one picture [3, H, W] in [0, 1]."""
        answer = question.answer.capitalize()  # the capitalisation that the model was trained with
        asking = self.reward.asking(self.kind.sentence, answer)
        return asking(pixels[None].to(self.device), [question.text]).exp().item()
