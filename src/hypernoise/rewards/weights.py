"""Loads released weights into transformers' models: strictly, from the Hub only when named, without running their code.

A file is safetensors or is read by `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from hypernoise.errors import InputError, first_line, no_traceback
from hypernoise.quiet import no_loading_bars

Model = TypeVar("Model", bound=nn.Module)
SAVED_ONCE = ("position_ids", "inv_freq")  # constants that older versions of transformers saved


def read_state(file: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors file or a torch file with only tensors, on the CPU, unchanged."""
    if not file.is_file():
        raise InputError(f"there is no weights file {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{file} is not a complete file of tensors: {first_line(error)}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # as training scripts save it
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} does not hold a state dict of tensors")
    return state


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str], unused: str = "$^") -> dict[str, Tensor]:
    """A state dict with every pattern of `names` replaced in its keys, in order, without keys that match `unused`."""
    found = {}
    for name, tensor in state.items():
        if re.match(unused, name):
            continue
        for pattern, ours in names.items():
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    return found


def filled(build: Callable[[], Model], state: Mapping[str, Tensor], what: str) -> Model:
    """The model that `build` constructs, with exactly the tensors of `state`, frozen, in eval mode.

    It is built without allocating memory first, so loading costs one copy of the weights. Raises InputError with the
    keys that are missing, unexpected, or of another shape.
    """
    with init_empty_weights():  # buffers, which are constants, get their values
        model = build()
    given = {name: tensor for name, tensor in state.items() if not name.endswith(SAVED_ONCE)}
    try:
        model.load_state_dict(given, assign=True)
    except RuntimeError as error:
        faults = " ".join(str(error).partition(":")[2].split())
        raise InputError(f"{what} does not fit the model: {faults}") from error
    return model.requires_grad_(False).eval()


def pretrained(architecture: Any, source: str, what: str, *, strict: bool = False, **settings: Any) -> Any:
    """`architecture.from_pretrained(source)` of a Hub repository or a folder, frozen, in eval mode; safetensors only.

    Raises InputError, whose message begins with `what`, for weights that cannot be loaded or do not fit; if `strict`,
    also for weights that the model does not have.
    """
    with no_loading_bars(), no_traceback(f"{what} cannot be loaded (to download it: hf download {source})"):
        model, report = architecture.from_pretrained(
            source, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True, **settings
        )
    kinds = ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if strict else []))
    wrong = sorted(str(name) for kind in kinds for name in report[kind])
    wrong = [name for name in wrong if not name.endswith(SAVED_ONCE)]
    if wrong:
        raise InputError(f"{what} does not fit the model: {', '.join(wrong[:5])}")
    return model.requires_grad_(False).eval()


def load_tokenizer(repository: str) -> Any:
    """The tokenizer of a Hub repository or a folder. InputError if it cannot be loaded."""
    get = f"hf download {repository} --include '*.json' --include '*.txt'"
    with no_traceback(f"the tokenizer of {repository} cannot be loaded (put it in the local Hub cache with: {get})"):
        return AutoTokenizer.from_pretrained(repository, trust_remote_code=False)
