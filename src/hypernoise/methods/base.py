"""The interface of a method, a way to spend compute on a prompt and a noise, and the count of its calls.

A method gets a `Problem` (generator, reward, inference steps), prompts and noises, and returns a `Result`. Hooks on
the denoiser and the decoder count the calls, so no method reports its own.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition, Generator, Seed
from hypernoise.generators.module import parts_of
from hypernoise.objective import wide
from hypernoise.rewards.base import RewardFunction, scored
from hypernoise.settings import MOST_AT_ONCE, whole_number


@dataclass(frozen=True)
class Problem:
    """The input common to all methods: the generator, its inference steps, and the reward to maximise."""

    generator: Generator
    reward: RewardFunction | None  # None: no method may search
    num_inference_steps: int = 1  # denoiser calls per picture
    seed: Seed = 0  # for the noise that a stochastic scheduler adds between steps


@dataclass(frozen=True)
class Spent:
    """The cost of a batch. Calls count samples: a denoiser call on a batch of 8 is 8 forwards.

    seconds: from prompts and noise to pictures, text encoding included.
    """

    denoiser_forwards: int = 0
    denoiser_backwards: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(**{name: mine + getattr(other, name) for name, mine in vars(self).items()})


@dataclass(frozen=True)
class Result:
    """A method's result for a batch.

    pixels: [B, 3, H, W] in [0, 1], fp32 or better, detached.
    noise: [B, *noise_shape], from which they were drawn.
    prompts: with which they were drawn.
    kl: [B] in nats, how far the noise's distribution moved, as far as the method knows it; None if it does
        not change the noise.
    """

    pixels: Tensor
    noise: Tensor
    prompts: list[str]
    kl: Tensor | None
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


class Numbered:
    """A method whose arguments are whole numbers from 1, all of them in its name."""

    template: ClassVar[str]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole_number(value, name, most=MOST_AT_ONCE)

    @property
    def name(self) -> str:
        return self.template.format(**vars(self))

    def settings(self) -> dict[str, Any]:
        return {"method": self.name}


class Meter:
    """Draws and scores for one method, and counts; created by `metered`."""

    def __init__(self, problem: Problem):
        self.problem, self.seconds = problem, 0.0
        self.calls: Counter[str] = Counter()  # by field of `Spent`

    def draw(self, noise: Tensor, condition: Condition) -> Tensor:
        """Pixels [B, 3, H, W] in fp32 or better, differentiable in the noise."""
        steps, seed = self.problem.num_inference_steps, self.problem.seed
        return wide(self.problem.generator.sample(noise, condition, num_inference_steps=steps, seed=seed))

    def score(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Rewards [B], differentiable in the pixels. InputError without a reward, or for one that is not finite."""
        if self.problem.reward is None:
            raise InputError("a method that searches needs a reward to search by")
        self.calls.update(reward_calls=len(pixels))
        scores = scored(self.problem.reward, pixels, list(prompts))
        finite = torch.isfinite(scores)
        if not finite.all():
            place = int((~finite).nonzero()[0, 0])
            raise InputError(f"the reward is {scores[place].item()} for {prompts[place]!r}")
        return scores

    def spent(self) -> Spent:
        return Spent(**self.calls, seconds=self.seconds)

    def _on_denoiser(self, module: nn.Module, arguments: Any, output: Any) -> None:
        parts = [output] if isinstance(output, Tensor) else parts_of(output)
        answer = next(part for part in parts if isinstance(part, Tensor | list))
        self.calls.update(denoiser_forwards=len(answer))
        # Z-Image's denoiser returns a list with a tensor per sample
        for part, samples in [(answer, len(answer))] if isinstance(answer, Tensor) else [(one, 1) for one in answer]:
            if part.requires_grad:
                part.register_hook(lambda gradient, n=samples: self.calls.update(denoiser_backwards=n))


class BestSoFar:
    """Draws candidates for each sample and keeps the best one's noise, pixels and score."""

    def __init__(self, meter: Meter, prompts: list[str]):
        self.meter, self.prompts = meter, prompts
        self.condition = meter.problem.generator.encode(prompts)
        self.best: tuple[Tensor, ...] = ()  # noise, pixels, score

    def offer(self, noise: Tensor) -> Tensor:
        """The score [B] of a candidate [B, *noise_shape], which is kept where it is higher than all before."""
        pixels = self.meter.draw(noise, self.condition)
        score = self.meter.score(pixels, self.prompts)
        new = (noise.detach().clone(), pixels.detach(), score.detach())  # ReNO moves its noise in place
        best = self.best or new
        better = new[2] > best[2]
        self.best = tuple(torch.where(per_sample(better, a), a, b) for a, b in zip(new, best, strict=True))
        return score

    @property
    def noise(self) -> Tensor:
        return self.best[0]

    def result(self, kl: Tensor | None) -> Result:
        noise, pixels, _ = self.best
        return Result(pixels, noise, self.prompts, kl, self.meter.spent())


@contextmanager
def metered(problem: Problem) -> Iterator[Meter]:
    """Inside the block, counts all calls of the generator's networks and measures the time."""
    meter, generator = Meter(problem), problem.generator
    cuda = generator.device.type == "cuda"
    network = getattr(generator, "denoiser", None) or getattr(generator, "module", None)
    if network is None:
        raise InputError(f"{generator.name!r} needs an attribute `denoiser` or `module`, whose calls are counted")
    hooks = [network.register_forward_hook(meter._on_denoiser)]
    decoder = getattr(getattr(getattr(generator, "pipeline", None), "vae", None), "decoder", None)
    if decoder is not None:
        hooks.append(
            decoder.register_forward_hook(lambda module, given, output: meter.calls.update(decodes=len(output)))
        )
    if cuda:
        torch.cuda.synchronize(generator.device)
    began = time.perf_counter()
    try:
        yield meter
    finally:
        for hook in hooks:
            hook.remove()
    if cuda:
        torch.cuda.synchronize(generator.device)
    meter.seconds = time.perf_counter() - began


def fresh_noise(noise: Tensor, number: int, shape: tuple[int, ...] | None = None) -> Tensor:
    """The `number`-th additional draw from N(0, I) for each noise [B, ...], of its shape or another, seeded by it.

    So a sample's candidates are the same in any batch, process or machine.
    """
    draws = []
    for own in noise.detach().float().cpu():
        digest = hashlib.blake2b(own.numpy().tobytes() + number.to_bytes(8, "big"), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        draws.append(torch.randn(shape or own.shape, generator=generator))
    return torch.stack(draws).to(noise.device, noise.dtype)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] shaped to multiply `like` [B, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))
