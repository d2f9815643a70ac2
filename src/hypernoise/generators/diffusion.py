"""Any diffusers pipeline as a differentiable generator, through the pipeline's own `__call__`.

diffusers wraps every `__call__` in `torch.no_grad`; functools keeps the plain function as `__wrapped__`.
Calling that function gives the pipeline's own numbers with gradients, so no pipeline is copied. The same call,
stopped at the denoiser's first output, evaluates f: conditioning, input scaling and the first
timestep are the pipeline's own.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hypernoise.errors import InputError, no_traceback, shown
from hypernoise.generators.base import Condition, Generator, Seed, check_texts
from hypernoise.generators.families import Family, asked, family_of, few_step_doubt, sibling_of
from hypernoise.generators.identity import identify_denoiser
from hypernoise.generators.memory import NO_SAVING, Memory, checkpoint_blocks, decoding, replaced
from hypernoise.settings import MOST_SIDE, whole_number


class DiffusionGenerator(Generator):
    """A frozen few-step text-to-image pipeline.

    Args:
        pipeline: any pipeline whose class has a row in `families.FAMILIES`.
        name: the generator's name in adapters and reports.
        size: height and width in pixels; the pipeline's own default if None.
        call: this model's `__call__` arguments, in addition to its family's.
        memory: ways to need less memory.
        freeze: set requires_grad=False and eval mode on everything, as training needs
            (otherwise a backward pass would fill every weight's gradient).

    A pipeline that does not look like a few-step model is used with a warning that says why.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        name: str = "pipeline",
        size: tuple[int, int] | None = None,
        call: Mapping[str, Any] = {},
        memory: Memory = NO_SAVING,
        freeze: bool = True,
    ):
        if hasattr(pipeline, "_hypernoise"):
            raise InputError("an adapter is attached to this pipeline; hypernoise.detach(pipe) first")
        if sibling_of(pipeline):
            raise InputError(
                f"a {type(pipeline).__name__} does not draw from prompts alone: use {sibling_of(pipeline)}"
            )
        self.pipeline: Any = pipeline
        self._draw: Any = type(pipeline).__call__.__wrapped__  # type: ignore[attr-defined]
        self.name = name
        self.family: Family = family_of(pipeline)
        self._call_of_model = dict(call)
        for argument in call.keys() - inspect.signature(self._draw).parameters.keys():
            raise InputError(f"{name} is a {type(pipeline).__name__}, which takes no {argument}")
        self.memory = memory
        self._description: dict[str, Any] | None = None
        for module in pipeline.components.values():
            if freeze and isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        config: Any = cast(Any, self.denoiser).config
        scale: int = self.pipeline.vae_scale_factor
        side = config.get("sample_size") or getattr(pipeline, "default_sample_size", 128)
        self.size: tuple[int, int] = size or (side * scale, side * scale)
        if not isinstance(self.size, Sequence) or len(self.size) != 2:
            raise InputError(f"size is height and width in pixels, such as (512, 512), not {shown(size)}")
        for side in self.size:
            whole_number(side, "a side of size", most=MOST_SIDE)
        unit = scale * self.family.patch
        if any(side < unit or side % unit for side in self.size):
            raise InputError(f"{name} draws sizes in multiples of {unit} pixels, not {self.size[0]} x {self.size[1]}")
        packed: int = config.in_channels
        self.cells = self.size[0] // unit, self.size[1] // unit  # rows and columns of the noise, in patches
        self.channels = packed // self.family.patch**2  # of the latents
        grid = self.family.layout == "grid"
        self.noise_shape: tuple[int, ...] = (packed, *self.cells) if grid else (math.prod(self.cells), packed)
        if memory.gradient_checkpointing or getattr(self.denoiser, "is_gradient_checkpointing", False):
            checkpoint_blocks(self.denoiser)
        moving = pipeline.components.items() if memory.text_encoders == "offload" else ()
        self._encoders = {own: part for own, part in moving if own.startswith("text_encoder") and part is not None}
        self._rest(list(self._encoders))
        doubt = None if "timesteps" in self._call_of_model else few_step_doubt(pipeline)
        if doubt:
            warnings.warn(f"{name} does not look like a few-step model: {doubt}", stacklevel=2)

    @property
    def called(self) -> nn.Module:
        """The denoiser as the pipeline calls it, or its torch.compile wrapper."""
        return getattr(self.pipeline, self.family.denoiser)

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self.called, "_orig_mod", self.called)

    @property
    def device(self) -> torch.device:
        """The device it computes on; its weights may be elsewhere, under diffusers' offloading."""
        weight: Any = self.denoiser.get_submodule(self.family.output_layer).weight
        if weight.device.type not in ("cpu", "meta") or not torch.accelerator.is_available():
            return weight.device
        return self.pipeline._execution_device  # searches every module for offloading hooks

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in; weights may be stored in fp8, under diffusers' layerwise casting."""
        weight: Any = self.denoiser.get_submodule(self.family.output_layer).weight
        return weight.dtype if weight.dtype.itemsize > 1 else cast(Any, self.denoiser).dtype

    @property
    def least_steps(self) -> int:
        """The smallest valid number of steps: 1, or the number of timesteps if the model fixes them."""
        return len(self._call_of_model.get("timesteps") or [1])

    def check_steps(self, steps: int) -> None:
        """Refuses more steps than training timesteps, and a number other than that of the model's fixed timesteps."""
        whole_number(steps, "num_inference_steps")
        most = self.pipeline.scheduler.config.get("num_train_timesteps")
        if most is not None and steps > most:
            raise InputError(f"{self.name} has {most} timesteps, so it cannot draw in {steps} steps")
        fixed = self._call_of_model.get("timesteps")
        if fixed is not None and steps != len(fixed):  # they would override num_inference_steps
            at = f"timesteps {', '.join(map(str, fixed))}"
            raise InputError(f"{self.name} only draws at {at}: the number of steps must be {len(fixed)}, not {steps}")

    def call(self, steps: int) -> dict[str, Any]:
        """The pipeline's `__call__` arguments for this number of inference steps. InputError if it is not supported."""
        self.check_steps(steps)
        height, width = self.size
        own = {**self._call_of_model, "num_inference_steps": steps, "height": height, "width": width}
        return {**self.family.call, **self.family.call_at(steps), **own}

    def call_settings(self) -> dict[str, Any]:
        """The call's arguments that an adapter records, as JSON values; see `families.asked`."""
        defaults = {name: own.default for name, own in inspect.signature(self._draw).parameters.items()}
        return asked({**defaults, **self.call(self.least_steps), "prompt": "any"})

    def check_prompts(self, prompts: list[str]) -> None:
        """Refuses prompts that are empty or that the text encoder would truncate, naming the lost part."""
        check_texts(prompts)
        if not prompts:
            raise InputError("no prompt was given")
        with no_traceback(f"{self.name} cannot read prompts"):
            own = (getattr(self.pipeline, name, None) for name in self.family.tokenizers)
            tokenizer: Any = next(one for one in own if one is not None)  # with the longest prompts
            longest = self.call_settings().get("max_sequence_length", tokenizer.model_max_length)
            limit = int(min(longest, tokenizer.model_max_length)) - self.family.template
            for number, prompt in enumerate(prompts, 1):
                which = f"prompt {number} of {len(prompts)}"
                if not prompt.strip():
                    raise InputError(f"{which} is empty")
                tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
                if len(tokens) > limit:
                    lost = tokenizer.decode(tokens[limit - 1 : -1])
                    raise InputError(
                        f"{which} has {len(tokens)} tokens, but the text encoder takes {limit}: {lost!r} would be cut; "
                        "shorten it"
                    )

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """The pipeline's text conditioning: runs its call with these prompts until `encode_prompt` returns."""
        self.check_prompts(prompts)
        cannot = f"{self.name} cannot encode prompts, or cannot draw this size"
        with self.encoding(), no_traceback(cannot), quiet(self.pipeline), stop_at_encoding(self.pipeline) as encoded:
            self._draw(self.pipeline, prompt=list(prompts), **self.call(self.least_steps))
        return Condition(embeddings_of(self.family, encoded[0]))

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Offloaded text encoders are on the device inside the block, which may nest: several calls of `encode` move
        them once."""
        woken = [name for name in self._encoders if getattr(self.pipeline, name) is None]
        for name in woken:
            setattr(self.pipeline, name, self._encoders[name].to(self.device))
        try:
            yield
        finally:
            self._rest(woken)

    def _rest(self, encoders: list[str]) -> None:
        """Moves them to the CPU and out of the pipeline, as in diffusers for encoders that were never loaded."""
        for name in encoders:
            self._encoders[name].to("cpu")
            setattr(self.pipeline, name, None)

    def sample(self, noise: Tensor, condition: Condition, *, num_inference_steps: int = 1, seed: Seed = None) -> Tensor:
        with no_traceback(f"{self.name} cannot draw"):
            return self._call(noise, condition, num_inference_steps, seed, output_type="pt")

    def latents(
        self, noise: Tensor, condition: Condition, *, num_inference_steps: int = 1, seed: Seed = None
    ) -> Tensor:
        """The latents that `sample` decodes, as with the pipeline's output_type "latent". Differentiable."""
        return self._call(noise, condition, num_inference_steps, seed, output_type="latent")

    def denoise_first(self, noise: Tensor, condition: Condition) -> Tensor:
        """The denoiser's first output for `noise`, in noise's shape: what f adapts. Differentiable."""
        with no_traceback(f"{self.name} cannot draw"), stop_at_first_answer(self.called) as answer:
            self._call(noise, condition, self.least_steps, None, output_type="latent")
        return self.family.answer(answer[0], tuple(noise.shape))

    def describe(self) -> dict[str, Any]:
        """What an adapter records of its base; computed once."""
        if self._description is None:
            self._description = {**super().describe(), **identify_denoiser(self.denoiser)}
        return self._description

    def decoding(self) -> AbstractContextManager[None]:
        """A block where the pipeline decodes as `memory` says, also in the user's calls."""
        return decoding(self.pipeline.vae, self.memory)

    def _call(self, noise: Tensor, condition: Condition, steps: int, seed: Seed, output_type: str) -> Tensor:
        with quiet(self.pipeline), self.decoding():
            return self._draw(
                self.pipeline,
                latents=noise.to(torch.float32 if self.family.wide_noise else self.dtype),
                generator=None if seed is None else self._draws(seed),
                output_type=output_type,
                return_dict=False,
                **self.family.arguments(condition.tensors),
                **self.call(steps),
            )[0]

    def _draws(self, seed: int | Sequence[int]) -> torch.Generator | list[torch.Generator]:
        """torch generators for a batch's seed, or for each sample's."""
        if isinstance(seed, int):
            return torch.Generator(self.device).manual_seed(seed)
        return [torch.Generator(self.device).manual_seed(own) for own in seed]


def embeddings_of(family: Family, encoded: Sequence[Any]) -> dict[str, Tensor]:
    """A condition's tensors with a row per sample, from the results of the family's `encode_prompt`: lists are padded
    with a mask, and a missing mask becomes ones."""
    tensors: dict[str, Tensor] = {}
    for name, value in zip(family.embeddings, encoded, strict=True):
        if name is None:
            continue
        if isinstance(value, list | tuple):
            lengths = torch.tensor([len(row) for row in value], device=value[0].device)
            tensors[name] = nn.utils.rnn.pad_sequence(list(value), batch_first=True)
            tensors[f"{name}_mask"] = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        elif value is None:  # Qwen-Image omits a mask that hides nothing
            embeddings = tensors[name.removesuffix("_mask")]
            tensors[name] = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        else:
            tensors[name] = value
    return tensors


_TURNS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # locks of what one thread at a time may change


def in_turn(thing: Any) -> AbstractContextManager[Any]:
    """A block that only one thread at a time enters for the same thing; it may nest."""
    return _TURNS.setdefault(thing, threading.RLock())


class _Answered(Exception):
    """Raised inside the pipeline's call to leave it after the denoiser's output."""


@contextmanager
def stop_at_encoding(pipeline: Any) -> Iterator[list[Any]]:
    """Runs a block until the pipeline's `encode_prompt` returns; the result becomes the list's one element."""
    encoded: list[Any] = []
    encode = pipeline.encode_prompt

    def keep(*args: Any, **kwargs: Any) -> None:
        encoded.append(encode(*args, **kwargs))
        raise _Answered

    with replaced(pipeline, {"encode_prompt": keep}), suppress(_Answered):
        yield encoded


@contextmanager
def stop_at_first_answer(denoiser: nn.Module) -> Iterator[list[Any]]:
    """Runs a block until the denoiser's first output, which becomes the list's one element."""
    answer: list[Any] = []
    thread = threading.get_ident()

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        if threading.get_ident() == thread:  # another thread may be drawing
            answer.append(output[0])
            raise _Answered

    hook = denoiser.register_forward_hook(keep)
    try:
        with suppress(_Answered), _uncompiled():
            yield answer
    finally:
        hook.remove()
    if not answer:
        raise InputError(f"the pipeline never called its {type(denoiser).__name__}")


def _uncompiled() -> AbstractContextManager[Any]:
    """Inside the block torch.compile's results run uncompiled: a compiled graph can neither be left halfway nor notice
    that its layers have another `forward`."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def quiet(pipeline: Any) -> AbstractContextManager[None]:
    """A block without the pipeline's progress bar."""
    return replaced(pipeline, {"_progress_bar_config": {"disable": True}})
