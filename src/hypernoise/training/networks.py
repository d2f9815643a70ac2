"""The noise network that a recipe asks for."""

from __future__ import annotations

from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.spectral import SpectralNoise, spectral_noise
from hypernoise.training.config import Recipe


def build(recipe: Recipe, generator: DiffusionGenerator) -> LoRANoise | SpectralNoise:
    """A new noise network on `generator`, with f = 0."""
    if recipe.noise_network == "spectral":
        return spectral_noise(generator, recipe.spectral, seed=recipe.seed)
    lora = recipe.lora
    return LoRANoise(
        generator,
        rank=lora.rank,
        alpha=lora.alpha,
        seed=recipe.seed,
        layers=lora.layers or None,
        init=lora.init,
    )
