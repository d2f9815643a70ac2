"""The interface of a method, a way to spend compute on a prompt and a noise, and the count of its calls.

A method gets a `Problem` (generator, reward, inference steps), prompts and noises, and returns a `Result`. Hooks on
the denoiser and the decoder count the calls, so no method reports its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition, Generator, Seed
from hypernoise.generators.callables import parts_of
from hypernoise.rewards.base import RewardFunction, scores_of


@dataclass(frozen=True)
class Problem:
    """The input common to all methods: the generator, its inference steps, and the reward to maximise."""

    generator: Generator
    reward: RewardFunction
    num_inference_steps: int = 1  # denoiser calls per picture
    seed: Seed = 0  # for the noise that a stochastic scheduler adds between steps


@dataclass(frozen=True)
class Spent:
    """The cost of a batch. Calls count samples: a denoiser call on a batch of 8 is 8 forwards.

    seconds: from prompts and noise to pictures, text encoding included.
    peak_bytes: peak accelerator memory; None on devices that do not report it.
    """

    denoiser_forwards: int = 0
    denoiser_backwards: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None

    def __add__(self, other: Spent) -> Spent:
        """The sum of both, one after the other; the peak is the higher one."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Spent)[:-1]}
        peaks = [peak for peak in (self.peak_bytes, other.peak_bytes) if peak is not None]
        return Spent(**sums, peak_bytes=max(peaks, default=None))


@dataclass(frozen=True)
class Result:
    """A method's result for a batch.

    pixels: [B, 3, H, W] in [0, 1], fp32 or better, detached.
    noise: [B, *noise_shape], from which they were drawn.
    prompts: with which they were drawn.
    kl: [B] in nats, how far the noise's distribution moved, as far as the method knows it; None if it does
        not change the noise.
    scores: [B, candidates] every reward the method evaluated, in order, NaN where a sample had stopped; None
        if it evaluated none.
    """

    pixels: Tensor
    noise: Tensor
    prompts: list[str]
    kl: Tensor | None
    scores: Tensor | None
    spent: Spent


@runtime_checkable
class Method(Protocol):
    """One way to spend compute on the same prompts and noises."""

    @property
    def name(self) -> str:
        """The name in tables and on the command line, such as best-of-8."""
        ...

    def settings(self) -> dict[str, Any]:
        """All settings that determine its numbers, as JSON values: the key of cached results."""
        ...

    def generate(self, problem: Problem, prompts: list[str], noise: Tensor) -> Result:
        """Pictures of `prompts` from `noise` [B, *noise_shape] ~ N(0, I), or from noise derived from it.

        A sample's result depends only on its own prompt and noise, not on its batch, as far as the generator's
        does: a stochastic scheduler draws the noise between steps for the whole batch.
        """
        ...


class Meter:
    """Draws and scores for one method, and counts; created by `metered`."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.forwards = self.backwards = self.decodes = self.reward_calls = 0
        self.seconds = 0.0
        self.peak_bytes: int | None = None

    def draw(self, noise: Tensor, condition: Condition) -> Tensor:
        """Pixels [B, 3, H, W] in fp32 or better, differentiable in the noise."""
        steps, seed = self.problem.num_inference_steps, self.problem.seed
        pixels = self.problem.generator.sample(noise, condition, num_inference_steps=steps, seed=seed)
        return pixels if pixels.dtype == torch.float64 else pixels.float()

    def score(self, pixels: Tensor, prompts: list[str], hint: str = "") -> Tensor:
        """Rewards [B], differentiable in the pixels. InputError, with the hint, for one that is not finite."""
        self.reward_calls += len(pixels)
        scores = scores_of(self.problem.reward, pixels, prompts)
        finite = torch.isfinite(scores)
        if not finite.all():
            place = int((~finite).nonzero()[0, 0])
            raise InputError(f"the reward is {scores[place].item()} for {prompts[place]!r}{hint}")
        return scores

    def spent(self) -> Spent:
        return Spent(self.forwards, self.backwards, self.decodes, self.reward_calls, self.seconds, self.peak_bytes)

    def _on_denoiser(self, module: nn.Module, arguments: Any, output: Any) -> None:
        answer = output if isinstance(output, Tensor) else next(filter(_counts, parts_of(output)))
        self.forwards += len(answer)
        alone = not isinstance(answer, Tensor)  # Z-Image's denoiser returns a list with a tensor per sample
        for part in answer if alone else [answer]:
            if part.requires_grad:
                part.register_hook(lambda gradient: self._on_backward(1 if alone else len(gradient)))

    def _on_backward(self, samples: int) -> None:
        self.backwards += samples

    def _on_decoder(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self.decodes += len(output)


class BestSoFar:
    """Draws candidates for each sample and keeps the best one's noise and pixels, and all scores in order."""

    def __init__(self, meter: Meter, prompts: list[str], noise: Tensor):
        self.meter, self.prompts = meter, prompts
        self.condition = meter.problem.generator.encode(prompts)
        self.noise, self.pixels = noise, meter.draw(noise, self.condition)
        self.score = meter.score(self.pixels, prompts)
        self.scores = [self.score]

    def offer(self, noise: Tensor) -> None:
        """Keeps a candidate [B, *noise_shape] where it scores higher than all before."""
        pixels = self.meter.draw(noise, self.condition)
        score = self.meter.score(pixels, self.prompts)
        better = score > self.score
        self.scores.append(score)
        self.score = torch.where(better, score, self.score)
        self.noise = torch.where(per_sample(better, noise), noise, self.noise)
        self.pixels = torch.where(per_sample(better, pixels), pixels, self.pixels)


@contextmanager
def metered(problem: Problem) -> Iterator[Meter]:
    """Inside the block, counts all calls of the generator's networks and measures the time."""
    meter, generator = Meter(problem), problem.generator
    cuda = generator.device.type == "cuda"
    hooks = [_denoiser(generator).register_forward_hook(meter._on_denoiser)]
    decoder = getattr(getattr(getattr(generator, "pipeline", None), "vae", None), "decoder", None)
    if decoder is not None:
        hooks.append(decoder.register_forward_hook(meter._on_decoder))
    if cuda:
        torch.cuda.synchronize(generator.device)
        torch.cuda.reset_peak_memory_stats(generator.device)
    began = time.perf_counter()
    try:
        yield meter
    finally:
        for hook in hooks:
            hook.remove()
    if cuda:
        torch.cuda.synchronize(generator.device)
        meter.peak_bytes = torch.cuda.max_memory_allocated(generator.device)
    meter.seconds = time.perf_counter() - began


def _denoiser(generator: Generator) -> nn.Module:
    """The network whose calls are counted: a diffusion generator's denoiser, or a module generator's module."""
    network = getattr(generator, "denoiser", None) or getattr(generator, "module", None)
    if network is None:
        raise InputError(
            f"the calls of {generator.name!r} cannot be counted: give it an attribute `denoiser` or `module` "
            "that holds its network"
        )
    return network


def _counts(part: Any) -> bool:
    return isinstance(part, Tensor | list)


def fresh_noise(noise: Tensor, number: int) -> Tensor:
    """The `number`-th additional draw from N(0, I) for each noise [B, ...], seeded by that noise.

    So a sample's candidates are the same in any batch, process or machine.
    """
    draws = []
    for own in noise.detach().float().cpu():
        digest = hashlib.blake2b(own.numpy().tobytes() + number.to_bytes(8, "big"), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        draws.append(torch.randn(own.shape, generator=generator))
    return torch.stack(draws).to(noise.device, noise.dtype)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] shaped to multiply `like` [B, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))
