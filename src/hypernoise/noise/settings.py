"""What a recipe says of a spectral noise network. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from hypernoise.settings import MOST_RANK, typed, whole


@dataclass(frozen=True)
class Spectral:
    """Settings of `noise_network: spectral`."""

    k: int = 4
    """Frequencies of the latent grid that f changes, each way, in each channel."""
    width: int = 128
    """Of the network's hidden layers."""
    depth: int = 4
    """Couplings of its invertible map; 0: a scale and a shift that the prompt alone decides."""

    def __post_init__(self) -> None:
        typed(self, Spectral, "spectral.")
        whole(self, "k", "width", most=MOST_RANK, prefix="spectral.")
        whole(self, "depth", least=0, most=MOST_RANK, prefix="spectral.")
