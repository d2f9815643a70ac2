"""A training step's memory and arithmetic, from running its parts on tensors without data.

A few pictures are traced, part by part (noise network, generator, decoder, rewards; then backwards), and a part's cost
grows with the number of pictures: so one trace covers any batch, also with decoding in slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hypernoise.noise.base import kl_of
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.spectral import SpectralNoise
from hypernoise.plan.generators import Planned
from hypernoise.plan.trace import Live, fused_attention, moved

TRACED = 2  # pictures: with one, torch would skip copies that a batch needs


@dataclass(frozen=True)
class Part:
    """The cost of a part in a step with `TRACED` pictures. Memory in bytes.

    kept: what it keeps for the gradient.
    forward, backward: its peak in addition to that, and to what earlier parts keep, in each pass.
    flops, flops_back: floating-point operations in each pass.
    """

    kept: int
    forward: int
    flops: int
    backward: int
    flops_back: int


def activations(parts: Mapping[str, Part], batch: int, decode_slice: int = 0) -> int:
    """Peak bytes of activations in an accumulation step of `batch` pictures, with parts in order."""
    most = held = 0
    for name, part in parts.items():
        at_once = min(decode_slice or batch, batch) if name == "decoder" else batch
        held += part.kept * batch // TRACED
        most = max(most, held + max(part.forward, part.backward) * at_once // TRACED)
    return most


class _Parts:
    """Watches a step; `end` closes a part in the forward pass, `ended_back` in the backward pass."""

    def __init__(self, live: Live):
        self.live = live
        self.forward: dict[str, tuple[int, int, int, int]] = {}  # bytes kept, more at the peak, flops, bytes at its end
        self.backward: dict[str, tuple[int, int]] = {}
        self._next()

    def _next(self) -> None:
        self.at = self.live.bytes, self.live.flops
        self.live.peak = self.live.bytes

    def end(self, name: str) -> None:
        held = self.live.bytes
        self.forward[name] = held - self.at[0], self.live.peak - held, self.live.flops - self.at[1], held
        self._next()

    def ended_back(self, name: str) -> None:
        self.backward[name] = self.live.peak - self.forward[name][-1], self.live.flops - self.at[1]
        self._next()

    def found(self) -> dict[str, Part]:
        return {name: Part(*own[:3], *self.backward[name]) for name, own in self.forward.items()}


def generator_parts(planned: Planned, network: LoRANoise | SpectralNoise, *, steps: int = 1) -> dict[str, Part]:
    """Noise network, generator and decoder, in a step with this many denoiser calls per picture.

    Args:
        network: on the planned generator; a LoRA in the dtype that its layers compute in (under autocast, bf16).
    """
    generator, trained = planned.generator, network.trainable_parameters()
    for parameter in trained:  # their gradients count as trained memory: allocated in advance, in the layers' dtype
        parameter.grad = torch.empty_like(parameter)
    dtype = torch.float32 if trained[0].dtype.itemsize < 4 else trained[0].dtype
    noise = torch.zeros(TRACED, *generator.noise_shape, dtype=dtype)
    condition, live = planned.condition(TRACED), Live()
    with torch.enable_grad(), live, fused_attention(live):
        parts = _Parts(live)
        residual = network(noise, condition)
        nats = kl_of(network, noise, condition, residual).mean()
        improved = noise + residual
        parts.end("noise network")

        def decode(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            hook.remove()  # checkpointing calls it again
            parts.end("generator")
            arguments[0].register_hook(lambda gradient: parts.ended_back("decoder"))

        hook = generator.pipeline.vae.decoder.register_forward_pre_hook(decode)
        pixels = generator.sample(improved, condition, num_inference_steps=steps)
        parts.end("decoder")
        improved.register_hook(lambda gradient: parts.ended_back("generator"))
        (nats + moved(pixels.mean(), "cpu")).backward()
        parts.ended_back("noise network")
    for parameter in trained:
        parameter.grad = None
    return parts.found()


def reward_parts(score: Callable[[Tensor], Tensor], size: tuple[int, int]) -> dict[str, Part]:
    """Scoring pictures of this size, forward and backward."""
    live = Live()
    pixels = torch.empty(TRACED, 3, *size, device="meta", requires_grad=True)
    with torch.enable_grad(), live, fused_attention(live):
        parts = _Parts(live)
        total = score(pixels).mean()
        parts.end("rewards")
        torch.autograd.grad(total, pixels)
        parts.ended_back("rewards")
    return parts.found()
