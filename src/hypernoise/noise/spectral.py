"""A stand-alone noise network on the noise's low frequencies, with an exact KL.

    f(x, c) = Pᵀ h(P x, c)

P is an orthonormal basis of the latent grid's low frequencies (DCT-II), k × k per channel, and T(u; c) = u + h(u, c)
an invertible map of its coefficients (`coupling`). With x ~ N(0, I) so is u = P x, and the rest of x is unchanged, so
KL(x + f ‖ N(0, I)) is exactly KL(T(u) ‖ N(0, I)). That a small network on these frequencies can replace a LoRA on
the whole denoiser is a finding of LENS (arXiv 2605.07253); the flow and its KL are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pixel_shuffle, pixel_unshuffle

from hypernoise.errors import InputError, unknown
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.coupling import CouplingFlow, ResidualMap
from hypernoise.noise.residual import embedded
from hypernoise.noise.settings import Spectral
from hypernoise.settings import seed_in_range, whole_number

QUERIES = 4
MAPS = {"coupling": CouplingFlow, "residual": ResidualMap}


class SpectralNoise(NoiseNetwork):
    """f on k × k frequencies of each latent channel, for a grid of any size.

    Args:
        channels: of the unpacked latent grid; for vector noise [B, n], n (a grid of one cell: k is 1).
        text_width: size of `described` prompts. For a module: its embedding's size, the number of classes if
            conditions are labels, or 1 without conditions.
        k: lowest frequencies in each direction; the map has channels · k² coefficients.
        width: of the hidden layers.
        map: coupling, invertible, or residual, an MLP to compare it with.
        depth: number of couplings, or of the MLP's hidden layers.
        patch: side in latent pixels of a cell that the noise packs: it is [B, C·p², H/p, W/p], or
            [B, H/p · W/p, C·p²] in tokens.
        grid: default size of noise in tokens in cells, (H/p, W/p).
        token_width: size of a token's embedding; the map then also sees `QUERIES` weighted means of the tokens with
            learned weights, which find a word among padding. 0: no tokens, or their plain mean is enough.
        seed: for the initial hidden weights; the last layers start at 0, so f does too.

    Raises:
        InputError: a setting that is not a whole number of at least 1 (depth: 0).
    """

    kind: ClassVar[str] = "spectral"

    def __init__(
        self,
        channels: int,
        text_width: int,
        *,
        k: int = 4,
        width: int = 128,
        depth: int = 4,
        map: Literal["coupling", "residual"] = "coupling",
        patch: int = 1,
        grid: tuple[int, int] | None = None,
        token_width: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        self.settings: dict[str, Any] = {
            "channels": channels, "text_width": text_width, "k": k, "width": width, "depth": depth, "patch": patch,
            "token_width": token_width,
        }  # fmt: skip
        for name, value in self.settings.items():
            whole_number(value, name, least=0 if name in ("depth", "token_width") else 1, most=2**20)
        if map not in MAPS:
            raise unknown("map", map, MAPS)
        if map != "coupling":
            self.settings["map"] = map
        seed_in_range(seed)
        self.channels, self.text_width, self.k, self.patch = channels, text_width, k, patch
        self.grid = (grid[0], grid[1]) if grid else None
        self.never_folds = map == "coupling"
        if grid:
            self.settings["grid"] = list(grid)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            seen = text_width + QUERIES * token_width
            self.embed = nn.Sequential(nn.Linear(seen, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
            self.map = MAPS[map](channels * k * k, width=width, depth=depth)
            if token_width:  # the initial weights are nearly uniform
                self.queries = nn.Parameter(0.2 * token_width**-0.5 * torch.randn(QUERIES, token_width))

    def forward(self, noise: Tensor, condition: Condition, *, grid: tuple[int, int] | None = None) -> Tensor:
        """The residual, in the weights' dtype and the noise's layout.

        Args:
            noise: [B, C·p², H/p, W/p], [B, H/p · W/p, C·p²] in tokens, or a vector [B, C].
            grid: (H/p, W/p) of tokens; by default the network's.

        Raises:
            InputError: channels or text width differ from the network's, a grid smaller than k, or tokens
                that do not fill the grid.
        """
        with torch.autocast(noise.device.type, enabled=False):  # small, and the sum should not be rounded
            u, e, (rows, columns) = self._seen(noise, condition, grid)
            residual = rows.T @ self.map(u, e).unflatten(1, (self.channels, self.k, self.k)) @ columns
            packed = pixel_unshuffle(residual, self.patch)
            return packed.flatten(2).mT if noise.ndim == 3 else packed.reshape(noise.shape)

    def kl(self, noise: Tensor, condition: Condition) -> Tensor:
        """Terms [B], in nats, whose mean over noise ~ N(0, I) is KL(x + f ‖ N(0, I)), exactly (its map's `kl`)."""
        with torch.autocast(noise.device.type, enabled=False):
            u, e, _ = self._seen(noise, condition, None)
            return self.map.kl(u, e)

    def _seen(
        self, noise: Tensor, condition: Condition, grid: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The coefficients [B, C·k²], the embedded prompts [B, width], and the bases of rows [k, H], columns [k, W]."""
        weight = self.map.last.weight
        x = unpacked(noise.to(weight.dtype), self.patch, grid or self.grid)
        if x.shape[1] != self.channels:
            raise InputError(f"this noise network is for {self.channels} latent channels; this noise has {x.shape[1]}")
        if self.k > min(x.shape[2:]):
            raise InputError(f"k = {self.k} frequencies do not fit into a latent grid of {x.shape[2]} x {x.shape[3]}")
        text = described(condition, self.text_width)
        if text.shape[1] != self.text_width:
            raise InputError(
                f"this noise network is for prompts of text width {self.text_width}; these have {text.shape[1]}"
            )
        if self.settings["token_width"]:
            text = torch.cat([text, _weighed(condition.tensors, self.queries)], 1)
        rows, columns = (cosine_basis(size)[: self.k].to(weight) for size in x.shape[2:])
        return (rows @ x @ columns.T).flatten(1), self.embed(text.to(weight)), (rows, columns)


def unpacked(noise: Tensor, patch: int, grid: tuple[int, int] | None) -> Tensor:
    """Noise [B, C·p², H/p, W/p], [B, H/p · W/p, C·p²] in tokens, or a vector [B, C], as a latent grid [B, C, H, W].

    FLUX, FLUX.2 and Qwen-Image all pack a patch's pixels as (C, p, p), as `pixel_shuffle` reads them.
    """
    if noise.ndim == 2:
        noise = noise[..., None, None]
    elif noise.ndim == 3:
        if grid is None or grid[0] * grid[1] != noise.shape[1]:
            raise InputError(f"the noise has {noise.shape[1]} tokens, which do not fill the grid {grid}")
        noise = noise.mT.unflatten(2, grid)
    if noise.shape[1] % patch**2:
        raise InputError(f"noise of {noise.shape[1]} channels does not hold patches of {patch} x {patch}")
    return pixel_shuffle(noise, patch)


def described(condition: Condition, width: int | None = None) -> Tensor:
    """An embedding of each prompt [B, text width]: the mean of the pipeline's unmasked token embeddings, and the pooled
    embedding if there is one, each layer-normalised. For a module: its embedding, or its labels as one-hot rows of
    `width`; without conditions, ones [B, 1]."""
    tensors = condition.tensors
    if width is not None and "embedding" in tensors:
        return embedded(condition, width)
    if list(tensors) == ["index"]:
        return torch.ones(len(condition), 1)
    mean = _weighed(tensors)
    pooled = tensors.get("pooled_prompt_embeds")
    return mean if pooled is None else torch.cat([mean, layer_norm(pooled.float(), pooled.shape[1:])], 1)


def _weighed(tensors: Mapping[str, Tensor], queries: Tensor | None = None) -> Tensor:
    """Layer-normalised weighted means [B, Q · D] of a prompt's tokens [B, L, D]. The weights are the softmax of the
    tokens' products with each query [Q, D], 0 for masked tokens; without queries, the plain mean [B, D]."""
    if "prompt_embeds" not in tensors:
        raise InputError(f"a spectral noise network needs prompt_embeds; this generator has {', '.join(tensors)}")
    tokens = tensors["prompt_embeds"].float().flatten(2)  # [B, L, D]; of several layers, side by side
    size = tokens.shape[2:]
    queries = tokens.new_zeros(1, *size) if queries is None else queries.to(tokens)
    if queries.shape[1:] != size:
        raise InputError(f"this noise network is for tokens of {queries.shape[1]} numbers; these have {size[0]}")
    score = layer_norm(tokens, size) @ queries.T  # [B, L, Q]
    mask = tensors.get("prompt_attention_mask", tensors.get("prompt_embeds_mask"))
    if mask is not None:
        score = score.masked_fill(mask[..., None] == 0, torch.finfo(score.dtype).min)
    return layer_norm(score.softmax(1).mT @ tokens, size).flatten(1)


def cosine_basis(size: int) -> Tensor:
    """The orthonormal DCT-II matrix [size, size] in fp64: row k is the k-th frequency."""
    places, frequencies = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi * (places + 0.5) * frequencies / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def spectral_noise(generator: DiffusionGenerator, settings: Spectral, *, seed: int = 0) -> SpectralNoise:
    """A new spectral noise network for a generator; encodes one prompt to find the embedding's size. Raises InputError
    for more frequencies than the generator's latent grid has."""
    condition, patch = generator.encode(["a picture"]), generator.family.patch
    rows, columns = (cells * patch for cells in generator.cells)
    if settings.k > min(rows, columns):
        grid = f"the latent grid of {generator.name!r}, {rows} x {columns}"
        raise InputError(f"k = {settings.k} frequencies do not fit into {grid}")
    sizes = {
        "text_width": described(condition).shape[1],
        "token_width": condition.tensors["prompt_embeds"][0, 0].numel(),
    }
    made = {"channels": generator.channels, "patch": patch, "seed": seed, **sizes, **asdict(settings)}
    return rebuilt(generator, made).to(torch.float64 if generator.dtype == torch.float64 else torch.float32)


def rebuilt(generator: Any, settings: Mapping[str, Any]) -> SpectralNoise:
    """A network from an adapter's settings, at the generator's size and on its device (on the CPU for one that is
    offloaded or only planned); its weights are loaded later. Raises InputError if the generator has other latent
    channels or packs them differently, TypeError for settings that it does not take."""
    channels, patch = generator.noise_shape[0], 1
    if hasattr(generator, "family"):  # not a module
        channels, patch = generator.channels, generator.family.patch
        settings = {**settings, "grid": generator.cells if generator.family.layout == "tokens" else None}
    network = SpectralNoise(**settings)
    if (network.channels, network.patch) != (channels, patch):
        raise InputError(
            f"this noise network is for {network.channels} latent channels in patches of {network.patch}, but "
            f"{generator.name!r} has {channels} in patches of {patch}"
        )
    return network if generator.device.type == "meta" else network.to(generator.device)
