"""Two ComfyUI nodes: noise improved by a spectral noise network, and a model whose noise a LoRA noise network improves.

ComfyUI's samplers take N(0, I) noise in the same latents as diffusers' pipelines and scale it themselves, so f is
added directly. FLUX's noise arrives unpacked, [B, 16, H, W], and is packed for the network here.

These interfaces of ComfyUI are used: a NOISE is any object with `seed` and `generate_noise(latent)`; a MODEL is cloned,
and the clone gets a wrapper around the sampler ("sampler_sample" of comfy.patcher_extension). Nothing else is
imported, except `comfy.samplers.calc_cond_batch` when a LoRA noise network is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pixel_shuffle, pixel_unshuffle

from hypernoise.adapters import adapter_folder, read_about, read_weights
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.spectral import SpectralNoise

from .unet_names import ldm_name

SPECTRAL_BASES = ("UNet2DConditionModel", "FluxTransformer2DModel")  # whose prompts ComfyUI encodes as diffusers does
SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True})
ADAPTER = ("STRING", {"default": "", "tooltip": "an adapter directory, or owner/name on the Hub"})
STRENGTH = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.5, "step": 0.05})


class SpectralNoiseNode:
    """NOISE for SamplerCustomAdvanced: a seed's, plus f of the prompt."""

    CATEGORY, FUNCTION, RETURN_TYPES = "hypernoise", "noise", ("NOISE",)
    DESCRIPTION = "Noise improved by a spectral noise network. The model needs no patching."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        given = {"seed": SEED, "conditioning": ("CONDITIONING",), "adapter": ADAPTER, "strength": STRENGTH}
        return {"required": given}

    def noise(self, seed: int, conditioning: Any, adapter: str, strength: float) -> tuple[BetterNoise]:
        check_strength(strength)
        return (BetterNoise(seed, only_one(conditioning), spectral(adapter), strength),)


class LoRANoiseNode:
    """A MODEL that starts every run from noise improved by a LoRA noise network for SD or SDXL."""

    CATEGORY, FUNCTION, RETURN_TYPES = "hypernoise", "wrap", ("MODEL",)
    DESCRIPTION = "A model that improves its noise with a LoRA noise network: one extra call at the start of a run."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "adapter": ADAPTER, "strength": STRENGTH}}

    def wrap(self, model: Any, adapter: str, strength: float) -> tuple[Any]:
        check_strength(strength)
        loras = lora(adapter, model.model)
        wrapped = model.clone()

        def improved(executor: Callable[..., Any], guider: Any, *rest: Any) -> Any:
            sigmas, extra_args, callback, noise, *more = rest
            f = first_answer(guider, loras, noise, extra_args.get("model_options", {}))
            return executor(guider, sigmas, extra_args, callback, noise + strength * f, *more)

        wrapped.add_wrapper_with_key("sampler_sample", "hypernoise", improved)
        return (wrapped,)


NODE_CLASS_MAPPINGS = {"HyperNoiseSpectral": SpectralNoiseNode, "HyperNoiseLoRA": LoRANoiseNode}
NODE_DISPLAY_NAME_MAPPINGS = {"HyperNoiseSpectral": "HyperNoise: noise", "HyperNoiseLoRA": "HyperNoise: model"}


class BetterNoise:
    """A sampler's noise source: the noise of `seed`, plus strength · f(noise, prompt)."""

    def __init__(self, seed: int, prompt: tuple[Tensor, Tensor | None], network: SpectralNoise, strength: float):
        self.seed, self.prompt, self.network, self.strength = seed, prompt, network, strength

    @torch.no_grad()
    def generate_noise(self, input_latent: Mapping[str, Any]) -> Tensor:
        """Noise in the shape of the latent's samples, on the CPU, like ComfyUI's own."""
        noise = plain_noise(input_latent["samples"], self.seed, input_latent.get("batch_index"))
        tokens, pooled = self.prompt
        tensors = {"prompt_embeds": tokens.float().cpu()}
        if pooled is not None and tokens.shape[-1] != self.network.text_width:  # of SDXL and FLUX
            tensors["pooled_prompt_embeds"] = pooled.float().cpu()
        condition = Condition({name: rows[:1].expand(len(noise), *rows.shape[1:]) for name, rows in tensors.items()})
        patch = self.network.patch if noise.shape[1] == self.network.channels else 1
        f = pixel_shuffle(self.network(pixel_unshuffle(noise, patch), condition), patch)
        return (noise + self.strength * f).to(noise.dtype)


def plain_noise(samples: Tensor, seed: int, places: Sequence[int] | None) -> Tensor:
    """Noise as drawn by `comfy.sample.prepare_noise`: the whole batch at once, or by batch index of a longer batch."""
    draw = torch.Generator().manual_seed(seed)
    if places is None:
        return torch.randn(samples.shape, generator=draw, dtype=samples.dtype)
    shape = (1, *samples.shape[1:])
    drawn = [torch.randn(shape, generator=draw, dtype=samples.dtype) for _ in range(max(places) + 1)]
    return torch.cat([drawn[place] for place in places])


def only_one(conditioning: Any) -> tuple[Tensor, Tensor | None]:
    """The token embeddings [1, L, D] and the pooled one [1, P] of a conditioning with a single prompt."""
    if len(conditioning) != 1:
        raise InputError(f"a noise network reads one prompt; this conditioning combines {len(conditioning)}")
    tokens, more = conditioning[0]
    return tokens, more.get("pooled_output")


def check_strength(strength: float) -> None:
    if not 0 <= strength <= 1.5:
        raise InputError(f"strength must be from 0 to 1.5, not {strength}")


def described(adapter: str, kind: str) -> tuple[Path, dict[str, Any]]:
    """The directory of an adapter, and its metadata. InputError for another kind than the node's."""
    if not adapter.strip():
        raise InputError("name an adapter: a directory, or owner/name on the Hub")
    folder = adapter_folder(adapter.strip())
    about = read_about(folder)
    if about["kind"] != kind:
        other = {"lora": "take 'HyperNoise: model'", "spectral": "take 'HyperNoise: noise'"}.get(about["kind"])
        raise InputError(f"{adapter} holds a {about['kind']} noise network{f': {other}' if other else ''}")
    return folder, about


def spectral(adapter: str) -> SpectralNoise:
    folder, about = described(adapter, SpectralNoise.kind)
    base = (about["base"] or {}).get("denoiser")
    if base not in SPECTRAL_BASES:
        raise InputError(f"{adapter} is for a {base}, whose prompts ComfyUI encodes differently from diffusers")
    network = SpectralNoise(**about["settings"])
    network.load_trainable_state(read_weights(folder))
    return network.requires_grad_(False)


def lora(adapter: str, model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """(A, scaled B) of each layer of a LoRA noise network, under ComfyUI's name for the layer.

    Raises:
        InputError: the model lacks such a layer, or has one of another shape: another architecture.
    """
    folder, about = described(adapter, "lora")
    settings = about["settings"]
    state, net = read_weights(folder), model.diffusion_model
    modules = dict(net.named_modules())
    blocks = getattr(getattr(model, "model_config", None), "unet_config", {}).get("num_res_blocks")
    if blocks is None:
        raise InputError(f"a LoRA noise network is for SD or SDXL here; this model is a {type(net).__name__}")
    found = {}
    for name in sorted({key.rpartition(".lora_")[0] for key in state}):
        own = ldm_name(name, blocks, modules)
        down, up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        weight = getattr(modules.get(own), "weight", None)
        if weight is None or (len(up), down[0].numel()) != (weight.shape[0], weight[0].numel()):
            raise InputError(f"{adapter} does not fit this model: it has no layer {own} of the shape of {name}")
        found[own] = down, up * (settings["alpha"] / settings["rank"])
    return found


@torch.no_grad()
def first_answer(
    guider: Any,
    loras: Mapping[str, tuple[Tensor, Tensor]],
    noise: Tensor,
    options: Mapping[str, Any],
) -> Tensor:
    """f: the adapted model's output at its first timestep, with only the update in the output layer."""
    from comfy.samplers import calc_cond_batch  # type: ignore[import-not-found]

    positive = guider.conds["positive"]
    if len(positive) != 1:
        raise InputError(f"a noise network reads one prompt; this conditioning combines {len(positive)}")
    model = guider.inner_model
    sigma = float(model.model_sampling.sigma_max)
    sigmas = torch.full((len(noise),), sigma, device=noise.device)
    with adapted(model.diffusion_model, loras) as answers:
        calc_cond_batch(model, [positive], noise * sigma, sigmas, dict(options))
    return answers[0].to(noise)


@contextmanager
def adapted(net: nn.Module, loras: Mapping[str, tuple[Tensor, Tensor]], last: str = "out.2") -> Iterator[list[Tensor]]:
    """Inside the block the model computes f; the list receives its output layer's output."""
    answers: list[Tensor] = []

    def hook(down: Tensor, up: Tensor, name: str) -> Callable[..., Tensor]:
        def updated(module: Any, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = given[0]
            a, b = down.to(x), up.to(x)
            if a.ndim == 2 and isinstance(module, nn.Linear):
                update = linear(linear(x, a), b)
            else:
                a, b = (w if w.ndim == 4 else w[..., None, None] for w in (a, b))
                update = conv2d(conv2d(x, a, None, module.stride, module.padding), b)
            if name != last:
                return output + update
            answers.append(update)
            return update

        return updated

    hooks = [net.get_submodule(name).register_forward_hook(hook(*pair, name)) for name, pair in loras.items()]
    try:
        yield answers
    finally:
        for one in hooks:
            one.remove()
