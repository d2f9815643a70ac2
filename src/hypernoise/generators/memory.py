"""Options for generators to need less memory. None changes the numbers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hypernoise.errors import InputError
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
    """Gives a block's layers the `forward` they have when it is created; again if a retained graph reruns the block."""

    def __init__(self, block: nn.Module):
        self.layers = list(block.modules())
        self.now = [vars(layer).get("forward") for layer in self.layers]

    def __enter__(self) -> None:
        self.before = [put_forward(layer, now) for layer, now in zip(self.layers, self.now, strict=True)]

    def __exit__(self, *error: object) -> None:
        for layer, before in zip(self.layers, self.before, strict=True):
            put_forward(layer, before)


def put_forward(layer: nn.Module, forward: Any) -> Any:
    """Sets the layer's instance `forward`, or removes it for None; returns the previous one, or None."""
    before = vars(layer).pop("forward", None)
    if forward is not None:
        vars(layer)["forward"] = forward
    return before


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
