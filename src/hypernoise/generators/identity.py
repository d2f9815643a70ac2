"""What a frozen network is recognised by: its names and shapes, and a few of its weights or a hash of all."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

PROBED = 64  # matrices of a denoiser of which one weight each is noted


def identify_module(module: nn.Module) -> dict[str, Any]:
    """The layout and a hash of all values of a small module."""
    state = sorted(module.state_dict().items())
    values = hashlib.sha256()
    for _, tensor in state:
        values.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    layout = [type(module).__name__, *((name, list(tensor.shape)) for name, tensor in state)]
    return {"fingerprint": _digest(layout), "weights": values.hexdigest()}


def identify_denoiser(denoiser: nn.Module) -> dict[str, Any]:
    """The layout of a large network, which may carry a LoRA, and one weight of each of up to `PROBED` matrices."""
    frozen = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in denoiser.named_parameters()
        if ".lora_" not in name
    }
    matrices = [parameter.detach() for parameter in frozen.values() if parameter.ndim > 1]
    spread = torch.linspace(0, len(matrices) - 1, min(PROBED, len(matrices))).long().tolist()
    return {
        "denoiser": type(denoiser).__name__,
        "fingerprint": _digest(sorted((name, list(_shape(parameter))) for name, parameter in frozen.items())),
        "probe": [None if _quantised(matrices[i]) else _middle(matrices[i]) for i in spread],
    }


def _digest(layout: Any) -> str:
    return hashlib.sha256(json.dumps(layout).encode()).hexdigest()


def _quantised(weight: Tensor) -> bool:
    """Whether its numbers cannot be read: packed in fewer bits, by torchao (a class of its own) or bitsandbytes (as
    integers), or offloaded."""
    return weight.is_meta or type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point()


def _shape(weight: Tensor) -> torch.Size:
    """As it was before bitsandbytes packed it; torchao's keep their shape."""
    packed = getattr(weight, "quant_state", None)
    return weight.shape if packed is None else packed.shape


def _middle(weight: Tensor) -> float:
    flat = weight.flatten()
    return round(float(flat[flat.numel() // 2]), 7)
