"""A generator on the scenes world: pictures drawn, judged and measured into one result row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypernoise.generators.base import Condition, Generator
from hypernoise.noise.base import NoiseNetwork, kl_of
from hypernoise.noise.draws import EVALUATION_STEP, keyed_noise
from hypernoise.objective import l2_kl
from hypernoise.rewards.base import RewardFunction
from hypernoise.scenes.judge import Verdict, judge, score
from hypernoise.scenes.world import Request

BATCH = 32


@dataclass(frozen=True)
class Evaluation:
    """Pictures [requests · seeds, 3, H, W], request by request, their verdicts, and the result row.

    `right` [requests] is each request's share of right pictures, `categories` [requests] their categories.
    """

    pixels: Tensor
    verdicts: list[Verdict]
    row: dict[str, Any]
    right: np.ndarray
    categories: np.ndarray


@torch.no_grad()
def evaluate(
    generator: Generator,
    network: NoiseNetwork | None,
    requests: Sequence[Request],
    reward: RewardFunction,
    *,
    seeds: int = 4,
    steps: int = 1,
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Draws every request from `seeds` noises, the same for every network, and judges the pictures.

    The row has summary.json's fields. `kl` is the mean of the network's own KL, or of ½‖f‖², in nats; `diversity` the
    mean RMS distance between pixels of pictures of one request; `score_ci95` a bootstrap over requests;
    `seconds_per_image` is the time of noise network, denoiser and decoder, in batches of 32, after one to warm up.
    """
    asked = [request for request in requests for _ in range(seeds)]
    samples = range(len(asked))
    pixels, rewards, kls, seconds = [], [], [], 0.0
    for start in range(0, len(asked), BATCH):
        rows = samples[start : start + BATCH]
        captions = [asked[i].caption for i in rows]
        noise = keyed_noise(generator.noise_shape, seed=0, step=EVALUATION_STEP, samples=rows).to(generator.device)
        condition = generator.encode(captions)
        if start == 0:
            draw(generator, network, noise, condition, steps)
        began = _clock(generator)
        drawn, residual = draw(generator, network, noise, condition, steps)
        seconds += _clock(generator) - began
        pixels.append(drawn.float().cpu())
        rewards.append(reward(drawn.float(), captions).cpu())
        own = l2_kl(residual) if network is None else kl_of(network, noise, condition, residual)
        kls.append(own.cpu())
        progress(len(rows))
    drawn = torch.cat(pixels)
    verdicts = [judge(p.permute(1, 2, 0).numpy(), request) for p, request in zip(drawn, asked, strict=True)]
    right = np.array([v.correct for v in verdicts], float).reshape(-1, seeds).mean(1)
    categories = np.array([request.category for request in requests])
    summary = score(list(zip(asked, verdicts, strict=True)))
    row = {
        "method": "plain" if network is None else "hypernoise",
        "steps": steps,
        "score": summary["score"],
        "score_ci95": _interval(right[None], categories),
        "categories": summary["categories"],
        "reward": torch.cat(rewards).mean().item(),
        "watched_reward": None,
        "kl": torch.cat(kls).mean().item(),
        "artefacts": summary["artefacts"],
        "diversity": _diversity(drawn, seeds) if seeds > 1 else None,
        "denoiser_forwards": steps + (network is not None and network.kind != "spectral"),  # which calls no denoiser
        "denoiser_backwards": 0,
        "decodes": 1,
        "reward_calls": 0,
        "seconds_per_image": seconds / len(asked),
    }
    return Evaluation(drawn, verdicts, row, right, categories)


def draw(
    generator: Generator, network: NoiseNetwork | None, noise: Tensor, condition: Condition, steps: int
) -> tuple[Tensor, Tensor]:
    """Pixels and the residual that was added to the noise (zeros without a network)."""
    residual = torch.zeros_like(noise) if network is None else network(noise, condition)
    return generator.sample(noise + residual, condition, steps=steps, seed=0), residual


def _clock(generator: Generator) -> float:
    if generator.device.type == "cuda":
        torch.cuda.synchronize(generator.device)
    return time.perf_counter()


def pool(base: Evaluation, runs: Sequence[Evaluation]) -> dict[str, Any]:
    """One result row of several training runs, all on the requests and noises of `base`.

    Every number is the runs' mean. The score's interval resamples runs and requests; `gain` is the score's
    rise over `base`, its interval from the same draws, request by request; `runs` has each run's own row.
    """
    rows = [run.row for run in runs]
    means = {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("score", "reward", "kl", "artefacts", "seconds_per_image")
    }
    diversity = None if rows[0]["diversity"] is None else float(np.mean([row["diversity"] for row in rows]))
    categories = {name: float(np.mean([row["categories"][name] for row in rows])) for name in rows[0]["categories"]}
    right = np.stack([run.right for run in runs])
    return {
        **rows[0],
        **means,
        "diversity": diversity,
        "categories": categories,
        "score_ci95": _interval(right, base.categories),
        "gain": means["score"] - base.row["score"],
        "gain_ci95": _interval(right - base.right, base.categories),
        "runs": rows,
    }


def _interval(values: np.ndarray, categories: np.ndarray, rounds: int = 2000) -> list[float]:
    """95 % bootstrap interval of the mean over categories: runs, and requests within their category, resampled.

    `values` [runs, requests].
    """
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(categories == name) for name in np.unique(categories)]
    means = []
    for _ in range(rounds):
        runs = rng.integers(len(values), size=len(values))
        means.append(np.mean([values[np.ix_(runs, rng.choice(group, size=len(group)))].mean() for group in groups]))
    low, high = np.percentile(means, [2.5, 97.5])
    return [float(low), float(high)]


def _diversity(pixels: Tensor, seeds: int) -> float:
    groups = pixels.flatten(1).unflatten(0, (-1, seeds))
    distance = torch.cdist(groups, groups) / groups.shape[-1] ** 0.5
    return float(distance.sum((1, 2)).mean() / (seeds * (seeds - 1)))
