"""The contract of a noise network f: the residual it adds to the noise."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from hypernoise.generators.base import Condition


@runtime_checkable
class NoiseNetwork(Protocol):
    """f(x0, c) of the paper: x0 + f(x0, c) is the noise the frozen generator draws from.

    kind: the network's name in an adapter's metadata.
    settings: the keyword arguments that rebuild it, as JSON values.
    """

    kind: ClassVar[str]
    settings: dict[str, Any]

    def __call__(self, noise: Tensor, condition: Condition) -> Tensor:
        """The residual [B, *noise_shape], exactly 0 before training."""
        ...

    def trainable_parameters(self) -> list[nn.Parameter]: ...

    def trainable_state(self) -> dict[str, Tensor]:
        """What is saved: names and values of everything that trains."""
        ...

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Raises InputError unless the names and shapes are exactly those of `trainable_state`."""
        ...
