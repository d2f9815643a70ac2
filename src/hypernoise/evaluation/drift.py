"""An album's features and rewards, and the row of what they say: variety, and drift from another album."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from hypernoise.errors import InputError
from hypernoise.evaluation.bootstrap import interval
from hypernoise.evaluation.features import Features, of_pictures
from hypernoise.evaluation.fidelity import frechet, kernel_distance, mean_squared_distance, pairwise_similarity, vendi
from hypernoise.evaluation.geneval.picture_folder import Broken, Sample
from hypernoise.evaluation.lpips import Lpips
from hypernoise.evaluation.rewards import read_picture
from hypernoise.rewards.ensemble import WeightedSum


@dataclass(frozen=True)
class Measured:
    """Of each picture [N]: its place, its prompt's number, its features [N, D], and its rewards by name [N].

    lpips: of each prompt by number, the mean over pairs of its pictures; empty if it was not asked for.
    """

    names: list[str]
    numbers: np.ndarray
    features: np.ndarray
    rewards: dict[str, np.ndarray]
    broken: list[Broken]
    lpips: dict[int, float]


def measured(
    samples: Sequence[Sample],
    features: Features,
    reward: WeightedSum | None,
    perceptual: Lpips | None = None,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> Measured:
    """Reads every picture; one that cannot be read costs itself.

    Raises:
        InputError: none could be read.
    """
    vectors, names, numbers, broken = [], [], [], []
    scores: dict[str, list[float]] = {}
    for start in range(0, len(samples), batch_size):
        pictures, whole = [], []
        for sample in samples[start : start + batch_size]:
            try:
                pictures.append(read_picture(sample.file))
                whole.append(sample)
            except InputError as error:
                broken.append(Broken(sample.name, str(error)))
        if not whole:
            continue
        vectors.append(of_pictures(features, pictures, batch_size))
        names += [sample.name for sample in whole]
        numbers += [sample.number for sample in whole]
        if reward is not None:
            for picture, sample in zip(pictures, whole, strict=True):
                with torch.no_grad():
                    reward(picture[None].to(device), [sample.request.prompt])
                for name, score in reward.member_scores().items():
                    scores.setdefault(name, []).append(score.item())
    if not names:
        raise InputError(f"no picture could be read; the first: {broken[0].why}" if broken else "there is no picture")
    apart: dict[int, float] = {}
    if perceptual is not None:
        lost = {one.name for one in broken}
        apart, odd = looks_apart([sample for sample in samples if sample.name not in lost], perceptual, device)
        broken += odd
    rewards = {name: np.array(values) for name, values in scores.items()}
    return Measured(names, np.array(numbers), np.concatenate(vectors), rewards, broken, apart)


def looks_apart(
    samples: Sequence[Sample], perceptual: Lpips, device: torch.device | str = "cpu"
) -> tuple[dict[int, float], list[Broken]]:
    """LPIPS by prompt, the mean over pairs of its pictures, of prompts that have two; and what cannot be compared."""
    broken: list[Broken] = []

    def vectors(same: Iterable[Sample]) -> Iterator[np.ndarray]:
        first = None
        for sample in same:
            picture = read_picture(sample.file)
            size = f"{picture.shape[-1]} x {picture.shape[-2]}"
            first = first or size
            try:
                if size != first:
                    raise InputError(f"is {size} pixels, its prompt's first {first}")
                vector = perceptual(picture[None].to(device))[0]
            except InputError as error:
                broken.append(Broken(sample.name, str(error)))
                continue
            yield vector.numpy()

    found = {}
    for number, same in groupby(samples, key=lambda sample: sample.number):
        distance = mean_squared_distance(vectors(same))
        if distance is not None:
            found[number] = distance
    return found, broken


def row(ours: Measured, base: Measured) -> dict[str, Any]:
    """Variety, averaged over the prompts that have two pictures or more; distances to `base`, None for itself."""
    groups = [ours.features[ours.numbers == number] for number in np.unique(ours.numbers)]
    several = [group for group in groups if len(group) > 1]
    enough = ours is not base and min(len(ours.names), len(base.names)) > 1
    return {
        "images": len(ours.names),
        "prompts": len(groups),
        "similarity": float(np.mean([pairwise_similarity(group) for group in several])) if several else None,
        "vendi": float(np.mean([vendi(group) for group in several])) if several else None,
        "lpips": float(np.mean(list(ours.lpips.values()))) if ours.lpips else None,
        "frechet": frechet(ours.features, base.features) if enough else None,
        "kernel": kernel_distance(ours.features, base.features) if enough else None,
        "rewards": {name: _gain(name, ours, base) for name in ours.rewards},
    }


def _gain(name: str, ours: Measured, base: Measured) -> dict[str, Any]:
    """A reward's mean, and its gain over the same places of `base`, with an interval over prompts."""
    told: dict[str, Any] = {"mean": float(ours.rewards[name].mean()), "gain": None, "gain_ci95": None}
    place = {picture: i for i, picture in enumerate(base.names)}
    both = [(i, place[picture]) for i, picture in enumerate(ours.names) if picture in place]
    if ours is base or not both:
        return told
    mine, theirs = (np.array(side) for side in zip(*both, strict=True))
    risen, numbers = ours.rewards[name][mine] - base.rewards[name][theirs], ours.numbers[mine]
    by_prompt = np.array([risen[numbers == number].mean() for number in np.unique(numbers)])
    return {**told, "gain": float(by_prompt.mean()), "gain_ci95": interval(by_prompt, np.zeros(len(by_prompt)))}
