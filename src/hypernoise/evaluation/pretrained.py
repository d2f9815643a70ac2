"""Loads a transformers model for measuring: completely, frozen, from a Hub repository or a folder, safetensors only."""

from __future__ import annotations

from typing import Any

import torch

from hypernoise.errors import InputError, no_traceback
from hypernoise.quiet import no_loading_bars


def pretrained(architecture: Any, source: str, called: str, kind: str, device: torch.device | str) -> Any:
    """`architecture.from_pretrained(source)`, from the local cache or downloaded.

    Args:
        called, kind: the model's role here and its expected kind, for messages.

    Raises:
        InputError: weights that cannot be loaded or do not fit.
    """
    with no_loading_bars(), no_traceback(f"{called} {source} cannot be loaded"):
        model, told = architecture.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    wrong = sorted(str(name) for keys in ("missing_keys", "mismatched_keys") for name in told[keys])
    if wrong:
        raise InputError(f"{called} {source} does not fit {kind}: {', '.join(wrong[:5])}")
    return model.requires_grad_(False).eval().to(device)
