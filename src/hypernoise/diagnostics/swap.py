"""The prompt-swap control: does the residual depend on the prompt, or is it one edit for all?

An independent re-implementation of the method on SD-Turbo found a gain that persists when f gets another prompt than
the picture. Here each picture is drawn three times from the same noise: plain, with f of its own prompt, and with
f of another one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hypernoise.diagnostics.kl import Estimate
from hypernoise.generators.base import Generator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.rewards.base import RewardFunction


@dataclass(frozen=True)
class Swap:
    """Gains in reward over the plain picture, with standard errors over noises; `lost` = own − swapped, paired."""

    own: Estimate
    swapped: Estimate
    lost: Estimate


@torch.no_grad()
def swap_control(
    generator: Generator,
    network: NoiseNetwork,
    reward: RewardFunction,
    prompts: list[str],
    noise: Tensor,
    *,
    num_inference_steps: int = 1,
    batch: int = 16,
) -> Swap:
    """Compares f(x, c) with f(x, c′), c′ the first other prompt from halfway through the list.

    Args:
        prompts: one per noise [B, *noise_shape], at least two of them different.
        num_inference_steps: denoiser calls per picture.
    """
    count = len(prompts)
    turns = range(count // 2, count // 2 + count)
    others = [next(p for k in turns if (p := prompts[(i + k) % count]) != own) for i, own in enumerate(prompts)]
    rewards = []
    for start in range(0, count, batch):
        rows = slice(start, start + batch)
        x, texts = noise[rows], prompts[rows]
        condition = generator.encode(texts)
        noises = (x, x + network(x, condition), x + network(x, generator.encode(others[rows])))
        drawn = (generator.sample(z, condition, num_inference_steps=num_inference_steps, seed=0) for z in noises)
        scores = [reward(pixels.to(x.dtype), texts) for pixels in drawn]
        rewards.append(torch.stack(scores, 1).double().cpu())
    plain, own, swapped = torch.cat(rewards).T
    return Swap(Estimate.of(own - plain), Estimate.of(swapped - plain), Estimate.of(own - swapped))
