"""Options for generators to need less memory. Only `tiny_decoder` and `quantise`, which swap a network for a
smaller one, change the numbers.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hypernoise.errors import InputError, first_line
from hypernoise.generators.families import family_of
from hypernoise.generators.hub import HUB_ID, fetch
from hypernoise.generators.loading import Memory

NO_SAVING = Memory()


def checkpoint_blocks(denoiser: nn.Module) -> None:
    """The denoiser's blocks keep only their inputs and are recomputed for the gradient, with the first run's layers.

    Otherwise a block that ran for f with its LoRA would be recomputed without it.
    """
    blocks: Any = denoiser
    if not getattr(denoiser, "_supports_gradient_checkpointing", False):
        raise InputError(f"{type(denoiser).__name__} has no gradient checkpointing; remove gradient_checkpointing")

    def run(block: nn.Module, *arguments: Any) -> Any:
        return checkpoint(block, *arguments, use_reentrant=False, context_fn=lambda: (nullcontext(), _AsNow(block)))

    blocks.enable_gradient_checkpointing(run)


class _AsNow(AbstractContextManager):
    """Gives a block's layers the `forward` they have when it is created; reentrant (a retained graph runs its blocks
    again)."""

    def __init__(self, block: nn.Module):
        self.layers = list(block.modules())
        self.now = self._forwards()

    def __enter__(self) -> None:
        self.before = self._forwards()
        self._switch(self.now)

    def __exit__(self, *error: object) -> None:
        self._switch(self.before)

    def _forwards(self) -> list[Any]:
        return [vars(layer).get("forward") for layer in self.layers]

    def _switch(self, forwards: list[Any]) -> None:
        for layer, forward in zip(self.layers, forwards, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                vars(layer)["forward"] = forward


def decoding(vae: Any, memory: Memory) -> AbstractContextManager[None]:
    """A block where an autoencoder decodes in slices, recomputed for the gradient if requested: block by block if its
    blocks pass each other only tensors.

    Raises when memory runs out: SANA-Sprint's pipeline would only warn and continue without a picture.
    """
    decode = vae.decode

    def sliced(latents: Tensor, *arguments: Any, **keywords: Any) -> Any:
        def one(part: Tensor) -> Tensor:
            return decode(part, *arguments, **{**keywords, "return_dict": False})[0]

        again = memory.gradient_checkpointing and torch.is_grad_enabled()
        video = "feat_cache" in inspect.signature(vae.decoder.forward).parameters  # passed from block to block
        blocks = getattr(vae.decoder, "up_blocks", []) if again and not video else []
        run = partial(checkpoint, one, use_reentrant=False) if again and not blocks else one
        try:
            with ExitStack() as stack:
                for block in blocks:
                    again_later = partial(checkpoint, block.forward, use_reentrant=False)
                    stack.enter_context(replaced(block, {"forward": again_later}))
                parts = [run(part) for part in latents.split(memory.decode_slice or len(latents))]
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"out of memory while decoding {len(latents)} pictures; set memory.decode_slice: 1 and "
                "memory.gradient_checkpointing: true, or lower the batch size (see train --dry-run)"
            ) from error
        return (torch.cat(parts) if len(parts) > 1 else parts[0],)

    return replaced(vae, {"decode": sliced})


@contextmanager
def replaced(owner: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    """Sets the object's own attributes, such as a method in place of its class's, inside the block."""
    before = {name: vars(owner)[name] for name in attributes if name in vars(owner)}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name in attributes:
            delattr(owner, name)
        for name, value in before.items():
            setattr(owner, name, value)


def on_hub(tiny_decoder: str) -> bool:
    """Whether it is on the Hub, and not a directory. Raises InputError if it is neither."""
    if Path(tiny_decoder).is_dir():
        return False
    if not HUB_ID.fullmatch(tiny_decoder):
        raise InputError(f"no tiny_decoder at {tiny_decoder}: it is neither a directory nor a Hub repository")
    return True


def take_tiny_decoder(pipeline: Any, source: str) -> None:
    """Replaces the pipeline's autoencoder by an AutoencoderTiny."""
    from diffusers import AutoencoderTiny

    own = pipeline.vae
    if not family_of(pipeline).tiny_decoder:
        raise InputError(
            f"tiny_decoder cannot replace a {type(pipeline).__name__}'s autoencoder, whose statistics the "
            "pipeline reads; remove it (decode_slice: 1 and gradient_checkpointing: true save memory)"
        )
    if on_hub(source):
        for file in ("config.json", "diffusion_pytorch_model.safetensors"):
            fetch(source, file)  # its errors are clearer than the loader's
    try:
        tiny: Any = AutoencoderTiny.from_pretrained(source, torch_dtype=own.dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"tiny_decoder {source!r} cannot be loaded: {first_line(error)}") from error
    channels = own.config.latent_channels if "latent_channels" in own.config else own.config.get("z_dim")
    if tiny.config.latent_channels != channels:
        raise InputError(
            f"tiny_decoder {source!r} decodes {tiny.config.latent_channels} channels, but these latents have {channels}"
        )
    pipeline.vae = tiny.to(own.device).requires_grad_(False).eval()


QUANTISERS: dict[str, str] = {"int8": "torchao", "nf4": "bitsandbytes"}


def check_can_quantise(kind: str) -> None:
    """Raises InputError unless the package for this kind is installed."""
    if importlib.util.find_spec(QUANTISERS[kind]) is None:
        raise InputError(f"quantise: {kind} needs {QUANTISERS[kind]}: pip install 'hypernoise[quantise]'")


def quantise_linears(denoiser: nn.Module, kind: str, output_layer: str) -> None:
    """Quantises the denoiser's linear layers to 8 bits (torchao) or 4 (bitsandbytes), except f's output layer.

    The 4-bit ones are packed when moved to their device.
    """
    layers = [(n, m) for n, m in denoiser.named_modules() if isinstance(m, nn.Linear) and n != output_layer]
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found]

        chosen = {id(layer) for _, layer in layers}
        quantize_(denoiser, Int8WeightOnlyConfig(), lambda module, name: id(module) in chosen)
        return
    for name, layer in layers:
        parent, _, attribute = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), attribute, _nf4(layer))
    denoiser.is_loaded_in_4bit = True  # type: ignore[assignment]  # by which PEFT knows them


def _nf4(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit  # type: ignore[import-not-found]

    weight: Any = layer.weight
    packed: Any = Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=weight.dtype, device="meta"
    )
    packed.weight = Params4bit(weight.data, requires_grad=False, quant_type="nf4", module=packed)
    packed.bias = layer.bias
    packed.support_avx512bf16_for_cpu = False  # its kernel repacks the weights, which breaks the gradient
    return packed
