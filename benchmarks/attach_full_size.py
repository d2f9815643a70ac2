"""The time that attaching a spectral noise network adds to a call of one picture of a published generator, full size.

    python -m benchmarks.attach_full_size --generator sd-turbo --rounds 3

Random weights, without text encoders. The denoiser and the decoder compute once; later calls get the same results back
at once, so that what `attach` adds does not disappear in the noise of their times.
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from hypernoise.quiet import wait_passively

wait_passively()

import torch

from benchmarks.networks import PROMPTS
from hypernoise.commands.flags import parse
from hypernoise.generators.diffusion import quiet, replaced
from hypernoise.generators.loading import Loading
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.pipeline import attach, disabled
from hypernoise.plan.smoke import random_generator


@dataclass(frozen=True)
class FullSize:
    generator: str = "sd-turbo"
    """A published generator."""
    rounds: int = 5
    """Tens of pairs of calls, plain and attached."""


def main(config: FullSize) -> None:
    generator = random_generator(Loading(config.generator), torch.float32, torch.device("cpu"))
    pipeline, denoiser, vae = generator.pipeline, generator.denoiser, generator.pipeline.vae
    given = generator.family.arguments(generator.encode(PROMPTS[:1]).tensors)
    given |= generator.call(generator.least_steps)
    attach(pipeline, spectral_noise(generator, Spectral()))
    answers: dict[Any, Any] = {}
    seconds: dict[Any, float] = {}

    def keeping(method: Any) -> Any:
        def kept(*arguments: Any, **keywords: Any) -> Any:
            began = time.process_time()
            answers[method] = method(*arguments, **keywords)
            seconds[method] = time.process_time() - began
            return answers[method]

        return kept

    def call(attached: bool) -> float:
        began = time.process_time()
        with nullcontext() if attached else disabled(pipeline), quiet(pipeline):
            pipeline(**given, output_type="pt")
        return time.process_time() - began

    forward, decode = denoiser.forward, vae.decode
    with replaced(denoiser, {"forward": keeping(forward)}), replaced(vae, {"decode": keeping(decode)}):
        plain, attached = call(False), call(True)
    again = {method: lambda *_, method=method, **__: answers[method] for method in (forward, decode)}
    with replaced(denoiser, {"forward": again[forward]}), replaced(vae, {"decode": again[decode]}):
        call(True)
        pairs = [(call(False), call(True)) for _ in range(10 * config.rounds)]
    added = statistics.median(after - before for before, after in pairs)
    print(f"{config.generator}, {generator.size[0]} px, one step: plain {plain:.2f} s, attached {attached:.2f} s")
    print(f"denoiser {seconds[forward]:.2f} s, decoder {seconds[decode]:.2f} s")
    print(f"attach adds {1000 * added:.1f} ms, {added / plain:.3%} of the plain call")


if __name__ == "__main__":
    main(parse(FullSize))
