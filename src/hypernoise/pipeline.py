"""`attach`: makes the user's diffusers pipeline draw from improved noise.

The pipeline's modules are unchanged: only its class becomes one whose `__call__` adds f to the noise.

With a spectral noise network a call runs once: the prompt is encoded and the noise drawn as usual, and f is added to
the noise before the first step.

With a LoRA it runs twice. The first run stops at the denoiser's first output, with
the adapter on: this is f, under the pipeline's own conditioning, scaling and timestep. The second is the
user's call, unchanged, but its initial latents are the first run's plus f. Prompts are encoded and noise
is drawn once, in the first run, so seeds and generators end in the same state as without the adapter.
"""

from __future__ import annotations

import dataclasses
import inspect
import reprlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from hypernoise.adapters import adapter_folder, differing, load_adapter, read_about
from hypernoise.errors import InputError, check_is
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import (
    DiffusionGenerator,
    embeddings_of,
    in_turn,
    quiet,
    replaced,
    stop_at_first_answer,
)
from hypernoise.generators.families import ASKED, Family, asked_otherwise, family_of, sibling_of
from hypernoise.generators.identity import probe
from hypernoise.noise.base import check_strength
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.spectral import SpectralNoise, unpacked

BUSY = "_hypernoise_call"  # an attribute of a pipeline while it draws

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def attach(
    pipeline: Pipeline,
    adapter: str | Path | LoRANoise | SpectralNoise,
    *,
    strength: float = 1.0,
    check_base: bool = True,
) -> Pipeline:
    """Makes `pipeline` draw from improved noise, in place, until `detach`; every argument works as before.

    The pipeline's modules are unchanged: weights may be offloaded, cast or compiled, and LoRAs loaded, weighted or
    fused, before or after. While f is evaluated those LoRAs are off, unless they are fused.

    Args:
        pipeline: a text-to-image pipeline whose family hypernoise knows.
        adapter: an adapter directory, a LoRANoise made on this pipeline, or a SpectralNoise.
        strength: s from 0 to 1.5: the noise becomes x + s·f; see `set_strength`.
        check_base: refuse other weights than the adapter was trained on; if False (for a merge or a fine-tune of its
            base), only warn.

    Returns:
        The same object.

    Raises:
        InputError: unknown family, an adapter of another base, an adapter already attached, or a strength out of range.
    """
    check_is(pipeline, DiffusionPipeline, "pipeline", "a diffusers pipeline")
    if isinstance(pipeline, Attached):
        raise InputError("this pipeline already has an adapter attached; remove it with hypernoise.detach(pipe)")
    check_strength(strength)
    denoiser = _denoiser(pipeline)
    network: Any = adapter
    call = {name: value for name, value in family_of(pipeline).call.items() if name in ASKED}
    if isinstance(adapter, LoRANoise):
        if adapter.generator.denoiser is not denoiser:
            raise InputError("this noise network belongs to another pipeline; attach it there, or save and load it")
        call = adapter.generator.call_settings()
    elif not isinstance(adapter, SpectralNoise):
        folder = adapter_folder(adapter)
        call = read_about(folder).get("call") or call
        name = str(pipeline.config.get("_name_or_path") or type(pipeline).__name__)
        generator = DiffusionGenerator(_text_to_image(pipeline), name=name, freeze=False)
        network = load_adapter(generator, folder, check_base=check_base)
        if isinstance(network, LoRANoise):
            network.lora.to(generator.dtype)  # fp32 is for training; drawing uses the pipeline's precision
    held = Held(network, strength, call, weakref.ref(denoiser), probe(denoiser), check_base)
    pipeline.__class__ = type(type(pipeline).__name__, (Attached, type(pipeline)), {})
    pipeline._hypernoise = held  # type: ignore[attr-defined]
    return pipeline


def detach(pipeline: Pipeline) -> Pipeline:
    """Undoes `attach`; a noise network that was passed to it remains usable.

    Raises:
        InputError: a pipeline without an adapter.
    """
    _held(pipeline)
    classes = type(pipeline).__mro__
    pipeline.__class__ = classes[classes.index(Attached) + 1]
    del pipeline._hypernoise  # type: ignore[attr-defined]
    return pipeline


def set_strength(pipeline: DiffusionPipeline, strength: float) -> None:
    """From the next call on the noise is x + strength·f; 0 draws like the plain pipeline, bit for bit.

    Args:
        strength: 0 to 1.5; an adapter is trained at 1.

    Raises:
        InputError: a pipeline without an adapter, or a strength out of range.
    """
    check_strength(strength)
    _hold(pipeline, strength=strength)


@contextmanager
def disabled(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Inside the block the pipeline draws as without its adapter.

    Raises:
        InputError: a pipeline without an adapter.
    """
    before = _held(pipeline).on
    _hold(pipeline, on=False)
    try:
        yield
    finally:
        if isinstance(pipeline, Attached):
            _hold(pipeline, on=before)


@dataclass(frozen=True)
class Held:
    """The state of an attached pipeline.

    call: the `__call__` arguments that the adapter was trained with (`families.asked`).
    denoiser, probe: the denoiser it was attached to, and a sample of its weights.
    on: whether f is added. said: the warnings already given.
    """

    network: LoRANoise | SpectralNoise
    strength: float
    call: Mapping[str, Any]
    denoiser: weakref.ref[nn.Module]
    probe: Mapping[str, float | None]
    check_base: bool
    on: bool = True
    said: set[str] = field(default_factory=set)


def _held(pipeline: Any) -> Held:
    held = vars(pipeline).get("_hypernoise") if isinstance(pipeline, Attached) else None
    if held is None:
        raise InputError("this pipeline has no adapter attached")
    return held


def _hold(pipeline: Any, **changes: Any) -> None:
    pipeline._hypernoise = dataclasses.replace(_held(pipeline), **changes)


class Attached:
    """Mixed into the class of an attached pipeline, under the class's own name."""

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        draw: Callable[..., Any] = super().__call__  # type: ignore[misc]
        held: Held | None = vars(self).get("_hypernoise")  # None: a new pipeline of an attached pipeline's class
        with in_turn(self):
            if held is None or not held.on or held.strength == 0:
                return draw(*args, **kwargs)
            if BUSY in vars(self):
                raise InputError("a callback cannot draw with the pipeline that calls it; use another pipeline there")
            bound = inspect.signature(draw).bind(*args, **kwargs)
            bound.apply_defaults()
            _check(self, held, bound.arguments)
            if sibling_of(self):
                methods = _renoised(self, held, bound.arguments)
            elif isinstance(held.network, SpectralNoise):
                methods = _adding(self, held, held.network, bound.arguments)
            else:
                methods = _drawn_first(self, held, held.network, partial(draw, *args, **kwargs))
            with replaced(self, {**methods, BUSY: draw}):
                return draw(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise InputError("an adapter is attached to this pipeline; hypernoise.detach(pipe) before saving it")


def _check(pipeline: Any, held: Held, given: Mapping[str, Any]) -> None:
    """Checks that the denoiser is the attached one and the call as in training; refuses, or warns once."""
    denoiser = _denoiser(pipeline)
    now = probe(denoiser, list(held.probe))
    differs = differing(list(held.probe.values()), list(now.values()), held.network.kind)
    if differs and denoiser is not held.denoiser() and held.check_base:
        raise InputError(
            f"the pipeline's {family_of(pipeline).denoiser} was replaced by another ({differs} differ); restore the "
            "old one, or call hypernoise.detach(pipe) and attach an adapter of the new one (for a merge or a fine-tune "
            "of the old one: the same adapter with check_base=False)"
        )
    found = {}
    if differs:
        found["weights"] = f"the denoiser's weights have changed since attach ({differs}): f is evaluated on them"
    for name, value in asked_otherwise(pipeline, held.call, given).items():
        trained = f"{name}={reprlib.repr(held.call[name])}"
        found[name] = (
            f"this call has {name}={reprlib.repr(value)}, but the adapter was trained with {trained}: pass {trained} "
            "to match its training"
        )
    for name, warning in found.items():
        if name not in held.said:
            held.said.add(name)
            warnings.warn(warning, stacklevel=4)


def _denoiser(pipeline: Any) -> nn.Module:
    """The module without torch.compile's wrapper."""
    name = family_of(pipeline).denoiser
    denoiser = getattr(pipeline, name, None)
    if not isinstance(denoiser, nn.Module):
        raise InputError(f"this pipeline has no {name}; restore it before drawing or attaching")
    return getattr(denoiser, "_orig_mod", denoiser)


def _drawn_first(
    pipeline: Any, held: Held, network: LoRANoise, draw: Callable[[], Any]
) -> dict[str, Callable[..., Any]]:
    """The pipeline's methods for the call after a first run: they return that run's results, except for the noise."""
    results: dict[str, list[Any]] = {"encode_prompt": [], "prepare_latents": []}
    record = {name: _recording(getattr(pipeline, name), kept) for name, kept in results.items()}
    family = family_of(pipeline)
    called = getattr(pipeline, family.denoiser)
    with (
        replaced(pipeline, record),
        quiet(pipeline),
        network.adapted(pipeline),
        stop_at_first_answer(called) as answer,
    ):
        draw()

    def better(latents: Tensor) -> Tensor:
        rows = slice(None, len(latents)) if family.guided_first else slice(-len(latents), None)
        residual = family.answer(answer[0][rows], tuple(latents.shape))
        return latents + (held.strength * residual * _latent_scale(pipeline)).to(latents.dtype)

    results["prepare_latents"][0] = _changed(results["prepare_latents"][0], better)
    return {name: _replaying(kept) for name, kept in results.items()}


def _adding(
    pipeline: Any, held: Held, network: SpectralNoise, given: Mapping[str, Any]
) -> dict[str, Callable[..., Any]]:
    """The pipeline's methods for a call with arguments `given`: they add f of the prompt to the latents."""
    family, prepare = family_of(pipeline), pipeline.prepare_latents
    encoded: list[Any] = []  # the prompt's first, a negative prompt's after it

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        size = inspect.signature(type(pipeline).prepare_latents).bind(pipeline, *args, **kwargs).arguments
        cell, scale = pipeline.vae_scale_factor * family.patch, _latent_scale(pipeline)
        grid = (int(size["height"]) // cell, int(size["width"]) // cell)

        def better(latents: Tensor) -> Tensor:
            condition = _condition(family, encoded, given, latents)
            residual = network.to(latents.device)(latents.float() / scale, condition, grid=grid)
            return (latents + held.strength * residual * scale).to(latents.dtype)

        return _changed(prepare(*args, **kwargs), better)

    return {"encode_prompt": _recording(pipeline.encode_prompt, encoded), "prepare_latents": prepare_latents}


def _renoised(pipeline: Any, held: Held, given: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The methods of a pipeline that draws from a picture or a control: its noise, drawn or given, becomes
    x + s·f(x), with f as in text-to-image."""
    family, network, encoded = family_of(pipeline), held.network, []
    original = inspect.unwrap(type(pipeline).prepare_latents)
    seen: list[Tensor] = []
    if given.get("latents") is not None and "Img2Img" in type(pipeline).__name__:
        raise InputError("latents given here are the noisy picture: omit them so that f can improve the noise")

    def better(noise: Tensor) -> Tensor:
        seen.append(noise)
        condition, patch = _condition(family, encoded, given, noise), family.patch
        x, grid = noise, (noise.shape[-2], noise.shape[-1])
        if family.layout == "tokens":  # drawn unpacked; the pipeline packs it together with the picture
            x = pixel_unshuffle(noise.reshape(len(noise), -1, *grid), patch).flatten(2).mT
            grid = grid[0] // patch, grid[1] // patch
        if isinstance(network, SpectralNoise):
            residual = network.to(noise.device)(x.float(), condition, grid=grid)
        else:
            plain, cell = _text_to_image(pipeline), pipeline.vae_scale_factor * patch
            size = grid[0] * cell, grid[1] * cell
            with network.adapted(plain):
                residual = DiffusionGenerator(plain, size=size, freeze=False).denoise_first(x, condition)
        if family.layout == "tokens":
            residual = unpacked(residual, patch, grid).reshape(noise.shape)
        return noise + (held.strength * residual).to(noise.dtype)

    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(pipeline, *args, **kwargs)
        latents = bound.arguments.get("latents")
        if latents is not None:
            bound.arguments["latents"] = better(latents)
        own = {"randn_tensor": lambda *a, **k: better(randn_tensor(*a, **k))}
        drawing = FunctionType(original.__code__, {**original.__globals__, **own}, argdefs=original.__defaults__)
        prepared = drawing(*bound.args, **bound.kwargs)
        if not seen:
            raise InputError("this call draws no noise for f to improve; use hypernoise.disabled(pipe) around it")
        return prepared

    return {"encode_prompt": _recording(pipeline.encode_prompt, encoded), "prepare_latents": prepare_latents}


def _text_to_image(pipeline: Any) -> Any:
    """The text-to-image pipeline with the same modules if this one draws from a picture or a control; else itself."""
    name = sibling_of(pipeline)
    if name is None:
        return pipeline
    cls, scheduler = getattr(diffusers, name), pipeline.scheduler
    parts = {**pipeline.config, **pipeline.components, "scheduler": type(scheduler).from_config(scheduler.config)}
    return cls(**{name: parts[name] for name in inspect.signature(cls.__init__).parameters if name in parts})


def _changed(prepared: Any, better: Callable[[Tensor], Tensor]) -> Any:
    """`prepare_latents`' result, latents or a tuple of them and token positions, with better latents."""
    return (better(prepared[0]), *prepared[1:]) if isinstance(prepared, tuple) else better(prepared)


def _condition(family: Family, encoded: Sequence[Any], given: Mapping[str, Any], noise: Tensor) -> Condition:
    """The pipeline's first encoding, or the given embeddings, repeated to a row for each sample of `noise` if the
    pipeline repeats prompts only later."""
    result = encoded[0] if encoded else [given.get(str(name)) for name in family.embeddings]
    tensors = embeddings_of(family, result)
    rows = {name: own.repeat_interleave(len(noise) // len(own), 0) for name, own in tensors.items()}
    return Condition(rows).to(noise.device)


def _recording(method: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        results.append(method(*args, **kwargs))
        return results[-1]

    return recorded


def _replaying(results: list[Any]) -> Callable[..., Any]:
    left = iter(results)
    return lambda *args, **kwargs: next(left)


def _latent_scale(pipeline: Any) -> float:
    """The factor by which `prepare_latents` scales N(0, 1) noise (1 if the scheduler has none)."""
    return float(getattr(pipeline.scheduler, "init_noise_sigma", 1.0))
