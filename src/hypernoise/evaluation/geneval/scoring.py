"""An album judged: detections kept as they are made, verdicts, and the score with its interval.

The score is the benchmark's: the unweighted mean over categories of the share of right pictures. It is taken prompt by
prompt, which is the same where every prompt has as many pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypernoise.errors import InputError
from hypernoise.evaluation.bootstrap import grouped_mean, interval
from hypernoise.evaluation.geneval.detectors import Detector
from hypernoise.evaluation.geneval.files import as_json, from_json
from hypernoise.evaluation.geneval.picture_folder import Broken, Sample
from hypernoise.evaluation.geneval.rules import Detection, Verdict, judge, kept
from hypernoise.files import output_folder, read_json, write_json


@dataclass(frozen=True)
class Judged:
    """An album's verdicts, and what could not be judged. `missing`: pictures left to other shards."""

    found: list[tuple[Sample, list[Detection], Verdict]]
    broken: list[Broken]
    missing: int


def judge_album(
    samples: Sequence[Sample],
    detector: Detector,
    kept_in: Path | None = None,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], object] = lambda done: None,
) -> Judged:
    """Judges every picture by what the detector finds in it; one that cannot be looked at costs itself alone.

    Args:
        kept_in: a folder of detections, by a hash of picture, request and detector; what is there is not made again.
            Needed where the work is shared.
        shard: (k, n): this process looks at every n-th picture from the k-th on.
        progress: told how many pictures are done.
    """
    looks: dict[int, list[Detection] | str | None] = {}  # why not, where it is a text; None is left to other shards
    for number in range(shard[0], len(samples), shard[1]):
        looks[number] = _looked(samples[number], detector, kept_in)
        progress(1)
    found, broken, missing = [], [], 0
    for number, sample in enumerate(samples):
        look = looks[number] if number in looks else _known(sample, detector, kept_in)
        if look is None:
            missing += 1
        elif isinstance(look, str):
            broken.append(Broken(sample.name, look))
        else:
            try:
                found.append((sample, look, judge(sample.request, kept(look, sample.request.tag))))
            except InputError as error:  # a colour decides, and the detections have none
                broken.append(Broken(sample.name, str(error)))
    return Judged(found, broken, missing)


def _looked(sample: Sample, detector: Detector, kept_in: Path | None) -> list[Detection] | str:
    known = _known(sample, detector, kept_in)
    if known is not None:
        return known
    place = _place(sample, detector, kept_in)
    try:
        detections = detector(sample.file, sample.request)
    except InputError as error:
        if place is not None:
            write_json(place, str(error))
        return str(error)
    if place is not None:
        write_json(place, as_json(detections))
    return detections


def _known(sample: Sample, detector: Detector, kept_in: Path | None) -> list[Detection] | str | None:
    """What was kept, or why the picture cannot be read; None if it has yet to be looked at, or what was kept is
    damaged."""
    try:
        place = _place(sample, detector, kept_in)
    except OSError as error:
        return f"{sample.file} cannot be read: {error.strerror}"
    value = None if place is None else read_json(place)
    if value is None or isinstance(value, str):
        return value
    try:
        return from_json(value)
    except InputError:
        return None


def _place(sample: Sample, detector: Detector, kept_in: Path | None) -> Path | None:
    if kept_in is None:
        return None
    known = json.dumps([detector.label, detector.name, dict(sample.request.source)], sort_keys=True)
    digest = hashlib.sha256(known.encode() + sample.file.read_bytes()).hexdigest()
    return output_folder(kept_in) / f"{digest[:24]}.json"


def score_row(judged: Judged) -> dict[str, Any]:
    """The fields of a result row that verdicts give: score, interval, categories, and how much they rest on.

    Raises:
        InputError: no picture could be judged.
    """
    right, tags = by_prompt(judged)
    if not right:
        told = f"; the first: {judged.broken[0].name}: {judged.broken[0].why}" if judged.broken else ""
        raise InputError(f"no picture could be judged{told}")
    values, groups = np.array(list(right.values())), np.array([tags[number] for number in right])
    return {
        "score": grouped_mean(values, groups),
        "score_ci95": interval(values, groups),
        "categories": {name: float(values[groups == name].mean()) for name in dict.fromkeys(groups.tolist())},
        "images": len(judged.found),
        "prompts": len(right),
        "broken": len(judged.broken),
    }


def gain_over(ours: Judged, base: Judged) -> dict[str, Any]:
    """The rise in score over `base` and its interval, prompt by prompt, over the prompts that both could judge."""
    (mine, tags), (plain, _) = by_prompt(ours), by_prompt(base)
    both = [number for number in mine if number in plain]
    if not both:
        return {"gain": None, "gain_ci95": None}
    values, groups = np.array([mine[n] - plain[n] for n in both]), np.array([tags[n] for n in both])
    return {"gain": grouped_mean(values, groups), "gain_ci95": interval(values, groups)}


def by_prompt(judged: Judged) -> tuple[dict[int, float], dict[int, str]]:
    """Each judged prompt's share of right pictures, and its category."""
    verdicts: dict[int, list[bool]] = {}
    tags: dict[int, str] = {}
    for sample, _, verdict in judged.found:
        verdicts.setdefault(sample.number, []).append(verdict.correct)
        tags[sample.number] = sample.request.tag
    return {number: float(np.mean(right)) for number, right in verdicts.items()}, tags
