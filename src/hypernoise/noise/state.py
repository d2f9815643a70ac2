"""A network's trained tensors, read and copied strictly (every name and shape, or a clear error)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hypernoise.errors import InputError


def copy_state(own: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Copies `state` into the tensors of `own`, or raises InputError without changing anything."""
    matching = own.keys() & state.keys()
    if not matching:
        raise InputError("the adapter matches no weight of this generator: it was made for another architecture")
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        example = (missing or extra)[0]
        raise InputError(
            f"the adapter does not fit this generator: {len(missing)} of its {len(own)} weights are missing "
            f"and {len(extra)} are unknown here, for example {example}"
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise InputError(
                f"the adapter does not fit this generator: {name} has shape {list(state[name].shape)}, "
                f"here it is {list(tensor.shape)}"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


class TrainedWhole(nn.Module):
    """A network with only trainable parameters: the part of `base.NoiseNetwork` that follows from that."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def trainable_state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        copy_state(self.trainable_state(), state)
