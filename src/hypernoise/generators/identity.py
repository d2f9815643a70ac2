"""Identifies a frozen network: by its names and shapes, and a few of its weights or a hash of all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PROBED = 64  # matrices of a denoiser to sample one weight from


def identify_module(module: nn.Module) -> dict[str, Any]:
    """The layout of a small module and a hash of all its values."""
    state = sorted(module.state_dict().items())
    values = hashlib.sha256()
    for _, tensor in state:
        values.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    layout = [type(module).__name__, *((name, list(tensor.shape)) for name, tensor in state)]
    return {"fingerprint": _digest(layout), "weights": values.hexdigest()}


def identify_denoiser(denoiser: nn.Module) -> dict[str, Any]:
    """The layout of a large network, without LoRAs on it, and one weight of each of up to `PROBED`
    matrices."""
    shapes = {  # before bitsandbytes packed them; torchao's keep their shape
        name: (getattr(parameter, "quant_state", None) or parameter).shape
        for name, parameter in _parameters(denoiser).items()
    }
    return {
        "denoiser": type(denoiser).__name__,
        "fingerprint": _digest(sorted((name, list(shape)) for name, shape in shapes.items())),
        "probe": list(probe(denoiser).values()),
    }


def probe(denoiser: nn.Module, names: Sequence[str] = ()) -> dict[str, float | None]:
    """The middle weight of each of up to `PROBED` matrices, or of the named ones; None if unreadable, NaN
    if there is no such matrix."""
    found = {name: _parameter(denoiser, name) for name in names}
    if not names:
        matrices = [(name, parameter) for name, parameter in _parameters(denoiser).items() if parameter.ndim > 1]
        spread = torch.linspace(0, len(matrices) - 1, min(PROBED, len(matrices))).long().tolist()
        found = dict(matrices[i] for i in spread)
    whole = {name: own.detach() for name, own in found.items() if own is not None and _readable(own)}
    middles = [own[tuple(map(int, np.unravel_index(own.numel() // 2, own.shape)))].float() for own in whole.values()]
    # a single read, since each one synchronises the device
    read = torch.stack([middle.to(middles[0].device) for middle in middles]).tolist() if middles else []
    known = {name: round(value, 7) for name, value in zip(whole, read, strict=True)}
    return {name: math.nan if own is None else known.get(name) for name, own in found.items()}


def layers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Its modules and their names, itself first: each as it is, and without wrappers of PEFT and
    torch.compile. Skips other contents of the wrappers, and IP-Adapters."""
    waiting = [("", module)]
    while waiting:
        name, layer = waiting.pop()
        bare = _unwrapped(layer)
        yield name, layer, bare
        waiting += [
            (f"{name}.{key}" if name else key, child)
            for key, child in reversed(bare._modules.items())
            if child is not None and key not in ("processor", "encoder_hid_proj")  # home of IP-Adapters
        ]


def _unwrapped(module: nn.Module) -> nn.Module:
    while wrapped := module._modules.get("base_layer") or module._modules.get("_orig_mod"):
        module = wrapped
    return module


def _parameter(denoiser: nn.Module, name: str) -> Tensor | None:
    """One of `_parameters`, without a walk over all modules: every attached call looks weights up."""
    *path, key = name.split(".")
    module = _unwrapped(denoiser)
    for step in path:
        child = module._modules.get(step)
        if child is None:
            return None
        module = _unwrapped(child)
    return module._parameters.get(key)


def _parameters(denoiser: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    once: dict[int, tuple[str, Tensor]] = {}
    for name, _, bare in layers_of(denoiser):
        for key, parameter in bare._parameters.items():
            if parameter is not None:
                once.setdefault(id(parameter), (f"{name}.{key}" if name else key, parameter))
    return dict(once.values())


def _digest(layout: Any) -> str:
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()


def _readable(weight: Tensor) -> bool:
    """Whether its numbers are here: not offloaded, nor quantised by torchao (its own class), bitsandbytes (integers)
    or diffusers' layerwise casting (fp8)."""
    whole = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.itemsize > 1
    return whole and not weight.is_meta
