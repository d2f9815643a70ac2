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
from hypernoise.noise.base import NoiseNetwork
from hypernoise.objective import l2_kl
from hypernoise.rewards.base import RewardFunction
from hypernoise.scenes.judge import Verdict, judge, score
from hypernoise.scenes.world import Request
from hypernoise.training.noise import keyed_noise

BATCH = 32
EVALUATION_STEP = 10**9  # noise key of evaluation: no training step has it


@dataclass(frozen=True)
class Evaluation:
    """Pictures [requests · seeds, 3, H, W], request by request, their verdicts, and the result row."""

    pixels: Tensor
    verdicts: list[Verdict]
    row: dict[str, Any]


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

    The row has DESIGN's fields. `kl` is the mean of ½‖f‖² in nats; `diversity` the mean RMS distance between
    pixels of pictures of one request; `score_ci95` a bootstrap over requests; `seconds_per_image` is the
    time of noise network, denoiser and decoder, in batches of 32, after one batch to warm up.
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
        kls.append(l2_kl(residual).cpu())
        progress(len(rows))
    drawn = torch.cat(pixels)
    verdicts = [judge(p.permute(1, 2, 0).numpy(), request) for p, request in zip(drawn, asked, strict=True)]
    summary = score(list(zip(asked, verdicts, strict=True)))
    row = {
        "method": "plain" if network is None else "hypernoise",
        "steps": steps,
        "score": summary["score"],
        "score_ci95": _bootstrap(asked, verdicts, seeds),
        "categories": summary["categories"],
        "reward": torch.cat(rewards).mean().item(),
        "watched_reward": None,
        "kl": torch.cat(kls).mean().item(),
        "artefacts": summary["artefacts"],
        "diversity": _diversity(drawn, seeds) if seeds > 1 else None,
        "denoiser_forwards": steps + (network is not None),
        "denoiser_backwards": 0,
        "decodes": 1,
        "reward_calls": 0,
        "seconds_per_image": seconds / len(asked),
    }
    return Evaluation(drawn, verdicts, row)


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


def _bootstrap(asked: Sequence[Request], verdicts: Sequence[Verdict], seeds: int, rounds: int = 1000) -> list[float]:
    """95 % interval of the score, requests resampled within their category."""
    rng = np.random.default_rng(0)
    right = np.array([v.correct for v in verdicts], float).reshape(-1, seeds).mean(1)
    category = np.array([request.category for request in asked[::seeds]])
    means = [
        rng.choice(right[category == c], size=(rounds, int((category == c).sum()))).mean(1) for c in np.unique(category)
    ]
    low, high = np.percentile(np.mean(means, 0), [2.5, 97.5])
    return [float(low), float(high)]


def _diversity(pixels: Tensor, seeds: int) -> float:
    groups = pixels.flatten(1).unflatten(0, (-1, seeds))
    distance = torch.cdist(groups, groups) / groups.shape[-1] ** 0.5
    return float(distance.sum((1, 2)).mean() / (seeds * (seeds - 1)))
