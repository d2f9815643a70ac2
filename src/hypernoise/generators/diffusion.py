"""Any diffusers pipeline as a differentiable generator, through the pipeline's own `__call__`.

diffusers wraps every `__call__` in `torch.no_grad`; functools keeps the plain function as `__wrapped__`.
Running that one gives the pipeline's own numbers with gradients, so no pipeline is copied. The same call,
stopped when the denoiser first answers, is the evaluation of f: conditioning, input scaling and the first
timestep are the pipeline's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.generators.families import Family, family_of


class DiffusionGenerator:
    """A frozen few-step text-to-image pipeline.

    Args:
        pipeline: any pipeline whose class has a row in `families.FAMILIES`.
        name: how the generator is called in adapters and reports.
        size: height and width in pixels; the pipeline's own default if None.
        freeze: all parameters get requires_grad=False and all modules eval mode, as training needs
            (a backward pass would otherwise fill every weight's gradient).
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        name: str = "pipeline",
        size: tuple[int, int] | None = None,
        freeze: bool = True,
    ):
        if hasattr(pipeline, "_hypernoise"):
            raise InputError("an adapter is attached to this pipeline; hypernoise.detach(pipe) first")
        self.pipeline: Any = pipeline
        self._draw: Any = type(pipeline).__call__.__wrapped__  # type: ignore[attr-defined]
        self.name = name
        self.network: nn.Module | None = None  # the noise network that hangs on the denoiser, if any
        self.family: Family = family_of(pipeline)
        for module in pipeline.components.values():
            if freeze and isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        config: Any = self.denoiser.config
        scale: int = self.pipeline.vae_scale_factor
        self.size: tuple[int, int] = size or (config.sample_size * scale, config.sample_size * scale)
        self.noise_shape: tuple[int, ...] = (config.in_channels, self.size[0] // scale, self.size[1] // scale)

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self.pipeline, self.family.denoiser)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights (the LoRA that may hang on them has its own)."""
        weight: Any = self.denoiser.get_submodule(self.family.output_layer).weight
        return weight.dtype

    def encode(self, prompts: list[str]) -> Condition:
        check_prompts(prompts, self.pipeline.tokenizer)
        with torch.no_grad():
            encoded = self.pipeline.encode_prompt(
                list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        named = zip(self.family.embeddings, encoded, strict=True)
        return Condition({name: tensor for name, tensor in named if name is not None})

    def sample(
        self, noise: Tensor, condition: Condition, *, steps: int = 1, seed: int | Sequence[int] | None = None
    ) -> Tensor:
        return self._call(noise, condition, steps, seed, output_type="pt")

    def denoise_first(self, noise: Tensor, condition: Condition) -> Tensor:
        """The denoiser's first answer to `noise`, of noise's shape: what f adapts. Differentiable."""
        with stop_at_first_answer(self.denoiser) as answer:
            self._call(noise, condition, 1, None, output_type="latent")
        return answer[0]

    def _call(
        self, noise: Tensor, condition: Condition, steps: int, seed: int | Sequence[int] | None, output_type: str
    ) -> Tensor:
        with quiet(self.pipeline):
            return self._draw(
                self.pipeline,
                latents=noise.to(self.dtype),
                num_inference_steps=steps,
                height=self.size[0],
                width=self.size[1],
                generator=None if seed is None else self._draws(seed),
                output_type=output_type,
                return_dict=False,
                **condition.tensors,
                **self.family.call,
            )[0]

    def _draws(self, seed: int | Sequence[int]) -> torch.Generator | list[torch.Generator]:
        """torch's generators for a batch's seed, or for each sample's."""
        if isinstance(seed, int):
            return torch.Generator(self.device).manual_seed(seed)
        return [torch.Generator(self.device).manual_seed(own) for own in seed]


class _Answered(Exception):
    """Raised inside the pipeline's call to leave it once the denoiser has answered."""


@contextmanager
def stop_at_first_answer(denoiser: nn.Module) -> Iterator[list[Tensor]]:
    """Runs a block up to the denoiser's first answer, which is then the list's one element."""
    answer: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        answer.append(output[0])
        raise _Answered

    hook = denoiser.register_forward_hook(keep)
    try:
        yield answer
    except _Answered:
        pass
    finally:
        hook.remove()
    if not answer:
        raise InputError(f"the pipeline never called its {type(denoiser).__name__}")


@contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar."""
    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline._progress_bar_config = {"disable": True}
    try:
        yield
    finally:
        if before is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = before


def check_prompts(prompts: list[str], tokenizer: Any) -> None:
    """Refuses prompts that are empty or that the text encoder would cut, naming what would be lost."""
    if not prompts:
        raise InputError("no prompt was given")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise InputError(f"prompt {number} of {len(prompts)} is empty")
        limit = tokenizer.model_max_length
        tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(tokens) > limit:
            lost = tokenizer.decode(tokens[limit - 1 : -1])
            raise InputError(
                f"prompt {number} of {len(prompts)} has {len(tokens)} tokens and the text encoder takes {limit}: "
                f"{lost!r} would be cut; shorten it"
            )
