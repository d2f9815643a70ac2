"""Settings of a spectral noise network. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hypernoise.settings import Depth, Rank, typed


@dataclass(frozen=True)
class Spectral:
    """Settings of `noise_network: spectral`."""

    k: Rank = 4
    """f changes the k x k lowest frequencies of the latent grid in each channel."""
    width: Rank = 128
    """Width of the network's hidden layers."""
    depth: Depth = 4
    """Number of couplings in its invertible map; 0: only a scale and a shift that depend on the prompt."""
    map: Literal["coupling", "residual"] = "coupling"
    """residual: an MLP of `depth` hidden layers instead of the invertible map, to compare; its KL takes a backward
    pass per coefficient."""

    def __post_init__(self) -> None:
        typed(self, Spectral, "spectral.")
