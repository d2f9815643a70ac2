"""Pictures that are there, judged by the benchmark's rules: detections kept as they are made, and the score.

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
from hypernoise.evaluation.geneval.picture_folder import Sample
from hypernoise.evaluation.geneval.rules import Detection, Verdict, judge, kept
from hypernoise.evaluation.pictures import Broken, read_picture
from hypernoise.files import output_folder, read_json, write_json

Look = Callable[[Sample], list[Detection]]
"""What a picture shows. Raises InputError for one that cannot be used."""


@dataclass(frozen=True)
class Judged:
    """The verdicts on a folder, and what could not be judged. `missing`: pictures left to other shards."""

    found: list[tuple[Sample, list[Detection], Verdict]]
    broken: list[Broken]
    missing: int


class KeptDetections:
    """A detector whose findings, or failures, are kept in a folder by a hash of picture, request and detector."""

    def __init__(self, detector: Detector, folder: Path):
        self.detector, self.folder = detector, output_folder(folder)

    def __call__(self, sample: Sample) -> list[Detection]:
        kept = self.known(sample)
        if kept is None:
            try:
                kept = self.detector(read_picture(sample.file), sample.request)
            except InputError as error:
                write_json(self._place(sample), str(error))
                raise
            write_json(self._place(sample), as_json(kept))
        return kept

    def known(self, sample: Sample) -> list[Detection] | None:
        """What was kept; None if nothing was, or it is damaged. Raises InputError for a failure that was kept."""
        value = read_json(self._place(sample))
        if isinstance(value, str):
            raise InputError(value)
        try:
            return from_json(value)
        except InputError:
            return None

    def _place(self, sample: Sample) -> Path:
        known = json.dumps([self.detector.name, dict(sample.request.source)], sort_keys=True)
        try:
            digest = hashlib.sha256(known.encode() + sample.file.read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"{sample.file} cannot be read: {error.strerror}") from error
        return self.folder / f"{digest[:24]}.json"


def judge_album(
    samples: Sequence[Sample],
    look: Look,
    *,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], object] = lambda done: None,
) -> Judged:
    """Judges every picture by what is found in it; one that cannot be used costs itself alone.

    Args:
        shard: (k, n): this process looks at every n-th picture from the k-th on, and the others' findings are taken
            from a `KeptDetections`.
        progress: called with the number of pictures just done.
    """
    found, broken, missing = [], [], 0
    for number, sample in enumerate(samples):
        own = number % shard[1] == shard[0]
        try:
            objects = look(sample) if own or not isinstance(look, KeptDetections) else look.known(sample)
            if objects is not None:
                found.append((sample, objects, judge(sample.request, kept(objects, sample.request.tag))))
            missing += objects is None
        except InputError as error:
            broken.append(Broken(sample.name, str(error)))
        progress(own)
    return Judged(found, broken, missing)


def score_row(judged: Judged, base: Judged | None = None) -> dict[str, Any]:
    """The fields of a result row that verdicts decide, with the gain over `base` on the prompts that both have.

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
