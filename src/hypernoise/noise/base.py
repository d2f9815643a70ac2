"""The interface of a noise network f: the residual it adds to the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hypernoise.errors import InputError, shown
from hypernoise.generators.base import Condition, Generator
from hypernoise.objective import l2_kl
from hypernoise.settings import finite

STRENGTHS = (0.0, 1.5)  # allowed multiples of f; it is trained at 1


class NoiseNetwork(nn.Module):
    """f(x0, c) of the paper: x0 + f(x0, c) is the noise the frozen generator draws from.

    kind: the network's name in an adapter's metadata; only this package's own kinds can be saved as adapters.
    settings: the keyword arguments that rebuild it, as JSON values.
    never_folds: whether x + f is invertible whatever the weights, so that its own `kl` is the KL and no lower bound.
    """

    kind: ClassVar[str] = "own"
    never_folds: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}

    @property
    def knows_kl(self) -> bool:
        """Whether it has a `kl` of its own."""
        return type(self).kl is not NoiseNetwork.kl

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        """The residual [B, *noise_shape], exactly 0 before training."""
        raise NotImplementedError

    def kl(self, noise: Tensor, condition: Condition) -> Tensor:
        """Terms [B], in nats, whose mean over noise ~ N(0, I) is KL(x + f ‖ N(0, I)), with a gradient whose mean is the
        KL's; for a network that `knows_kl`."""
        raise NotImplementedError

    def suit(self, generator: Generator, prompts: Sequence[str]) -> None:
        """Called before training, to take what is not yet known from the generator."""

    def scale_output(self, factor: float) -> None:
        """Scales what depends on the noise by `factor` permanently. InputError if the network cannot."""
        raise InputError(f"lipschitz: clamp rescales the residual, which a {self.kind!r} network cannot")

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def trainable_state(self) -> dict[str, Tensor]:
        """The trained tensors by name, which are saved."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Raises InputError, and changes nothing, unless names and shapes are exactly those of `trainable_state`."""
        own = self.trainable_state()
        there, here = ({name: list(tensor.shape) for name, tensor in part.items()} for part in (state, own))
        wrong = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        if wrong:
            shapes = f"{there.get(wrong[0], 'missing')} in the adapter, {here.get(wrong[0], 'missing')} here"
            raise InputError(
                "the adapter does not fit this generator (it was made for another architecture, or is damaged): "
                f"{len(wrong)} weights differ, such as {wrong[0]}: {shapes}"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])


def kl_of(network: NoiseNetwork, noise: Tensor, condition: Condition, residual: Tensor) -> Tensor:
    """The KL term of each sample [B], in nats: the network's own, exact on average, or the paper's ½‖f‖²."""
    return network.kl(noise, condition) if network.knows_kl else l2_kl(residual)


def check_strength(strength: float) -> None:
    """Raises InputError unless it is a number from 0 to 1.5."""
    if not (finite(strength) and STRENGTHS[0] <= strength <= STRENGTHS[1]):
        raise InputError(f"strength must be a number from 0 to {STRENGTHS[1]}, not {shown(strength)}")
