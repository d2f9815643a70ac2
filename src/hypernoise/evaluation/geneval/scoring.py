"""Existing pictures judged by the benchmark's rules: verdicts, score, and the official results file.

The score is the benchmark's: the unweighted mean over categories of the share of right pictures. It is computed by
prompt, which is the same if all prompts have equally many pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypernoise.errors import InputError
from hypernoise.evaluation.bootstrap import grouped_mean, interval
from hypernoise.evaluation.geneval.detectors import Detector
from hypernoise.evaluation.geneval.picture_folder import Sample
from hypernoise.evaluation.geneval.rules import Detection, Verdict, judge, kept
from hypernoise.evaluation.pictures import Broken, read_picture
from hypernoise.files import write_text


@dataclass(frozen=True)
class Judged:
    """The verdicts on a folder, and the pictures that could not be judged."""

    found: list[tuple[Sample, list[Detection], Verdict]]
    broken: list[Broken]


def judge_folder(
    samples: Sequence[Sample], detector: Detector, *, progress: Callable[[int], object] = lambda done: None
) -> Judged:
    """Judges every picture by its detections; an unreadable one is skipped and reported.

    `progress` is called with the number of pictures just done.
    """
    found, broken = [], []
    for sample in samples:
        try:
            objects = detector(read_picture(sample.file), sample.request)
            found.append((sample, objects, judge(sample.request, kept(objects, sample.request.tag))))
        except InputError as error:
            broken.append(Broken(sample.name, str(error)))
        progress(1)
    return Judged(found, broken)


def score_row(judged: Judged, base: Judged | None = None) -> dict[str, Any]:
    """The result row's fields from verdicts, with the gain over `base` on common prompts.

    Raises:
        InputError: no picture could be judged.
    """
    right, tags = _by_prompt(judged)
    if not right:
        first = f"; the first: {judged.broken[0].name}: {judged.broken[0].why}" if judged.broken else ""
        raise InputError(f"no picture could be judged{first}")
    values, groups = np.array(list(right.values())), np.array([tags[number] for number in right])
    row: dict[str, Any] = {
        "score": grouped_mean(values, groups),
        "score_ci95": interval(values, groups),
        "categories": {name: float(values[groups == name].mean()) for name in dict.fromkeys(groups.tolist())},
        "judged": len(judged.found),
    }
    plain = {} if base is None or base is judged else _by_prompt(base)[0]
    both = [number for number in right if number in plain]
    if both:
        gains, groups = np.array([right[n] - plain[n] for n in both]), np.array([tags[n] for n in both])
        row |= {"gain": grouped_mean(gains, groups), "gain_ci95": interval(gains, groups)}
    return row


def _by_prompt(judged: Judged) -> tuple[dict[int, float], dict[int, str]]:
    """Each judged prompt's share of right pictures, and its category."""
    verdicts: dict[int, list[bool]] = {}
    tags: dict[int, str] = {}
    for sample, _, verdict in judged.found:
        verdicts.setdefault(sample.number, []).append(verdict.correct)
        tags[sample.number] = sample.request.tag
    return {number: float(np.mean(right)) for number, right in verdicts.items()}, tags


def write_results(file: Path, found: Sequence[tuple[Sample, list[Detection], Verdict]]) -> None:
    """Writes a line of JSON per picture, in the fields of the official results.jsonl, for its summary_scores.py."""
    lines = []
    for sample, objects, verdict in found:
        details = {name: [[*d.box, d.score] for d in same] for name, same in kept(objects, sample.request.tag).items()}
        line = {
            "filename": sample.name,
            "tag": sample.request.tag,
            "prompt": sample.request.prompt,
            "correct": verdict.correct,
            "reason": "\n".join(verdict.reasons),
            "metadata": json.dumps(sample.request.source),
            "details": json.dumps(details),
        }
        lines.append(json.dumps(line) + "\n")
    write_text(file, "".join(lines))
