"""Loads released weights into transformers' models: strictly, from the Hub only when named, without running their code.

A file is safetensors or is read by `torch.load(weights_only=True)`. Every key must match: a checkpoint
with missing, unexpected or misshapen tensors is refused with their names.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hypernoise.errors import InputError, first_line
from hypernoise.generators.hub import explained

Model = TypeVar("Model", bound=nn.Module)
NAMED = 5  # keys that an error names


@dataclass(frozen=True)
class Released:
    """The published location of weights: a Hub repository and the first of `files` that it has."""

    repository: str
    files: tuple[str, ...]

    def fetch(self) -> Path:
        """The file, from the local Hub cache or downloaded. InputError if it is in neither."""
        with explained(self.repository, None, " or ".join(self.files)):
            for name in self.files[:-1]:
                with suppress(EntryNotFoundError):  # also if it is not cached and the Hub is unreachable
                    return Path(hf_hub_download(self.repository, name))
            return Path(hf_hub_download(self.repository, self.files[-1]))


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


def filled(build: Callable[[], Model], state: Mapping[str, Tensor], what: str) -> Model:
    """The model that `build` constructs, with exactly the tensors of `state`, frozen, in eval mode.

    It is built without allocating memory first, so loading costs one copy of the weights.

    Raises:
        InputError: keys are missing, unexpected, or of another shape; the first few are named.
    """
    with init_empty_weights():  # buffers, which are constants, get their values
        model = build()
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    given = {name: tensor.shape for name, tensor in state.items() if not name.endswith("position_ids")}
    wrong = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} {list(given[name])} for {list(wanted[name])}"
            for name in wanted
            if name in given and given[name] != wanted[name]
        ],
    }
    faults = [f"{len(names)} {kind} ({_some(names)})" for kind, names in wrong.items() if names]
    if faults:
        raise InputError(f"{what} does not fit the model: " + "; ".join(faults))
    model.load_state_dict({name: state[name] for name in wanted}, assign=True)
    return model.requires_grad_(False).eval()


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
