"""`attach`: the user's own diffusers pipeline, drawing from better noise.

With a spectral noise network a call runs once: its prompt is encoded and its noise drawn as always, and f is added to
the noise on the way to the first step.

With a LoRA it runs twice. The first run stops at the denoiser's first answer, given with
the adapter on: that is f, under the pipeline's own conditioning, scaling and timestep. The second is the
user's call, unchanged, but its initial latents are the first run's plus f. Prompts are encoded and noise
is drawn once, in the first run, so seeds and generators end where they would without the adapter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hypernoise.adapters import adapter_folder, load_adapter, read_about
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator, embeddings_of, quiet, replaced, stop_at_first_answer
from hypernoise.generators.families import family_of
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.spectral import SpectralNoise

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def attach(pipeline: Pipeline, adapter: str | Path | LoRANoise | SpectralNoise) -> Pipeline:
    """Makes `pipeline` draw from improved noise, in place, until `detach`; every argument works as before.

    Args:
        pipeline: a text-to-image pipeline whose family hypernoise knows.
        adapter: an adapter directory, a LoRANoise made on this pipeline, or a SpectralNoise. The latter touches none of
            the pipeline's modules: weights may be offloaded, and LoRAs loaded or fused, before or after.

    Returns:
        The same object.

    Raises:
        InputError: unknown family, an adapter of another base, or something attached already.
    """
    if not isinstance(pipeline, DiffusionPipeline):
        raise InputError(f"attach takes a diffusers pipeline, not a {type(pipeline).__name__}")
    if isinstance(pipeline, Attached):
        raise InputError("this pipeline has an adapter attached already; hypernoise.detach(pipe) takes it off")
    source = adapter if isinstance(adapter, LoRANoise | SpectralNoise) else adapter_folder(adapter)
    kind = read_about(source)["kind"] if isinstance(source, Path) else source.kind
    offloaded = any(weight.is_meta for weight in getattr(pipeline, family_of(pipeline).denoiser).parameters())
    if offloaded and kind == LoRANoise.kind:
        raise InputError("this pipeline's weights are offloaded already: attach before enable_sequential_cpu_offload")
    if isinstance(source, LoRANoise) and source.generator.pipeline is not pipeline:
        raise InputError("this noise network lives on another pipeline; attach it to that one, or save and load it")
    if isinstance(source, Path):
        name = str(pipeline.config.get("_name_or_path") or type(pipeline).__name__)
        generator = DiffusionGenerator(pipeline, name=name, freeze=False)
        network, own = load_adapter(generator, source), True
        if isinstance(network, LoRANoise):
            network.lora.to(generator.dtype)  # fp32 is for training; drawing goes at the pipeline's own speed
    else:
        network, own = source, False
    pipeline.__class__ = type(type(pipeline).__name__, (Attached, type(pipeline)), {})
    pipeline._hypernoise, pipeline._hypernoise_own = network, own  # type: ignore[attr-defined]
    return pipeline


def detach(pipeline: Pipeline) -> Pipeline:
    """Takes off what `attach` put on; the pipeline is then what it was, module for module.

    A LoRANoise that was handed to `attach` stays on the denoiser, switched off, and can be used on.
    """
    if not isinstance(pipeline, Attached):
        raise InputError("this pipeline has no adapter attached")
    network: LoRANoise | SpectralNoise = pipeline._hypernoise  # type: ignore[attr-defined]
    own: bool = pipeline._hypernoise_own  # type: ignore[attr-defined]
    pipeline.__class__ = type(pipeline).__mro__[2]
    del pipeline._hypernoise, pipeline._hypernoise_own  # type: ignore[attr-defined]
    if own and isinstance(network, LoRANoise):
        network.remove()
    return pipeline


class Attached:
    """Mixed into the class of an attached pipeline, under the class's own name."""

    _hypernoise: LoRANoise | SpectralNoise

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        network = self._hypernoise
        draw: Callable[..., Any] = super().__call__  # type: ignore[misc]
        if isinstance(network, SpectralNoise):
            given = inspect.signature(draw).bind(*args, **kwargs).arguments
            with replaced(self, _adding(self, network, given)):
                return draw(*args, **kwargs)
        network.check_alone()
        results: dict[str, list[Any]] = {"encode_prompt": [], "prepare_latents": []}
        record = {name: _recording(getattr(self, name), kept) for name, kept in results.items()}
        denoiser = network.generator.called
        with replaced(self, record), quiet(self), network.adapted(), stop_at_first_answer(denoiser) as answer:
            draw(*args, **kwargs)
        prepared = results["prepare_latents"][0]
        latents = _latents(prepared)
        family = network.generator.family
        rows = slice(None, len(latents)) if family.guided_first else slice(-len(latents), None)
        residual = network.residual(family.answer(answer[0][rows], tuple(latents.shape)))
        better = latents + (residual * _latent_scale(self)).to(latents.dtype)
        results["prepare_latents"][0] = _with_latents(prepared, better)
        with replaced(self, {name: _replaying(kept) for name, kept in results.items()}):
            return draw(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise InputError("an adapter is attached to this pipeline; hypernoise.detach(pipe) before saving it")


def _adding(pipeline: Any, network: SpectralNoise, given: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """The pipeline's methods for a call with arguments `given`: f of the prompt is added to the latents."""
    family, prepare = family_of(pipeline), pipeline.prepare_latents
    encoded: list[Any] = []  # the prompt's own first, a negative one's after it

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare(*args, **kwargs)
        latents = _latents(prepared)
        result = encoded[0] if encoded else [given.get(str(name)) for name in family.embeddings]  # embeddings given
        condition = _rows(embeddings_of(family, result), len(latents)).to(latents.device)
        size = inspect.signature(type(pipeline).prepare_latents).bind(pipeline, *args, **kwargs).arguments
        cell, scale = pipeline.vae_scale_factor * family.patch, _latent_scale(pipeline)
        grid = (int(size["height"]) // cell, int(size["width"]) // cell)
        residual = network.to(latents.device)(latents.float() / scale, condition, grid=grid)
        return _with_latents(prepared, (latents + residual * scale).to(latents.dtype))

    return {"encode_prompt": _recording(pipeline.encode_prompt, encoded), "prepare_latents": prepare_latents}


def _latents(prepared: Any) -> Tensor:
    """Of what `prepare_latents` returns: the latents alone, or a tuple of them and the positions of their tokens."""
    return prepared[0] if isinstance(prepared, tuple) else prepared


def _with_latents(prepared: Any, latents: Tensor) -> Any:
    """What `prepare_latents` returned, with other latents."""
    return (latents, *prepared[1:]) if isinstance(prepared, tuple) else latents


def _rows(tensors: dict[str, Tensor], samples: int) -> Condition:
    """A row for each of a prompt's pictures, where the pipeline copies prompts only later."""
    return Condition({name: rows.repeat_interleave(samples // len(rows), 0) for name, rows in tensors.items()})


def _recording(method: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        results.append(method(*args, **kwargs))
        return results[-1]

    return recorded


def _replaying(results: list[Any]) -> Callable[..., Any]:
    left = iter(results)
    return lambda *args, **kwargs: next(left)


def _latent_scale(pipeline: Any) -> float:
    """By how much `prepare_latents` multiplies N(0, 1) noise (1 where the scheduler has no such factor)."""
    return float(getattr(pipeline.scheduler, "init_noise_sigma", 1.0))
