"""The paper's noise network: a LoRA on the frozen denoiser, evaluated at the first timestep.

Every Linear and Conv layer gets a low-rank update; while f is evaluated, the output layer returns only its update
(without base path and bias). With B = 0 at the start, f is exactly 0 (arXiv 2508.09968). The same weights, with the
updates off, are the generator.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hypernoise.errors import InputError, shown
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator, in_turn
from hypernoise.generators.identity import layers_of
from hypernoise.generators.memory import put_forward
from hypernoise.noise.base import NoiseNetwork
from hypernoise.settings import MOST_RANK, positive, seed_in_range, whole_number

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
WITHOUT_DEPTHWISE = "without-depthwise"


class LoRANoise(NoiseNetwork):
    """f as a LoRA on a generator's denoiser.

    The LoRA is kept outside the denoiser, whose layers apply it only while f is evaluated. Between evaluations the
    denoiser is unchanged: several networks may share one, and the user's own LoRAs may come and go.

    Args:
        generator: the frozen generator.
        rank, alpha: the LoRA's; the update is scaled by alpha / rank.
        seed: for the LoRA's initial A (B starts at 0).
        layers: names of the layers to adapt, including the output layer; or "without-depthwise", every Linear and Conv
            layer but the depthwise convolutions, on which a LoRA is no smaller than full rank. None: every layer.
        init: of A: PEFT's default, or N(0, 1/rank²), PEFT's "gaussian".

    Raises:
        InputError: rank < 1, alpha not a positive number, or missing layers.
    """

    kind: ClassVar[str] = "lora"
    drops_base_path: ClassVar[bool] = True  # of the output layer

    def __init__(
        self,
        generator: DiffusionGenerator,
        *,
        rank: int = 16,
        alpha: float = 32.0,
        seed: int = 0,
        layers: Sequence[str] | None = None,
        init: Literal["kaiming", "gaussian"] = "kaiming",
    ):
        super().__init__()
        whole_number(rank, "rank", most=MOST_RANK)
        seed_in_range(seed)
        positive(alpha, "alpha")
        if not hasattr(generator, "denoiser"):
            raise InputError(f"a {type(generator).__name__} has no denoiser to put a LoRA on: use ResidualNoise")
        if init not in ("kaiming", "gaussian"):
            raise InputError(f"init must be kaiming or gaussian, not {shown(init)}")
        self.settings: dict[str, Any] = {"rank": int(rank), "alpha": float(alpha)}
        self.output_layer = generator.family.output_layer
        there = adaptable_layers(generator.denoiser)
        names = list(there)
        if layers is not None:
            self.settings["layers"] = names = _chosen(layers, there, self.output_layer)
        self._generator = (generator,)  # a tuple, so that the frozen weights are not part of this module
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the user's accelerators
            self.lora = nn.ModuleList([Update(there[name][1], rank, alpha / rank, init) for name in names])
        self.lora.to(torch.float64 if generator.dtype == torch.float64 else torch.float32)
        place: Any = there[self.output_layer][1].weight.device
        if place.type != "meta":  # offloaded, or only planned
            self.lora.to(place)
        self.layers: dict[str, Update] = dict(zip(names, self.lora, strict=True))  # type: ignore[arg-type]

    @property
    def generator(self) -> DiffusionGenerator:
        return self._generator[0]

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        """The residual [B, *noise_shape] for noise [B, *noise_shape]."""
        with self.adapted():
            return self.generator.denoise_first(noise, condition)

    @contextmanager
    def adapted(self, pipeline: Any = None) -> Iterator[None]:
        """The pipeline's denoiser computes f inside the block, and is the frozen generator again after it.

        The user's LoRAs are off in the block, unless they are fused. Other threads still see the plain denoiser, and
        wait if they need f.

        Args:
            pipeline: by default the generator's own.

        Raises:
            InputError: a denoiser without the layers this network was made for.
        """
        pipeline = pipeline or self.generator.pipeline
        there = adaptable_layers(getattr(pipeline, self.generator.family.denoiser))
        self._check(there)
        last, bare = there[self.output_layer]
        with in_turn(bare), ExitStack() as stack:
            now = vars(last).get("forward")
            if not (isinstance(now, _Adapted) and now.update is self.layers[self.output_layer]):  # else already on
                for name, (layer, bare) in there.items():
                    update = self.layers.get(name)
                    if update is not None or layer is not bare:
                        alone = self.drops_base_path and name == self.output_layer
                        before = put_forward(layer, _Adapted(layer, bare, update, alone))
                        stack.callback(put_forward, layer, before)
            yield

    def _check(self, there: dict[str, tuple[nn.Module, nn.Module]]) -> None:
        for name, update in self.layers.items():
            if name not in there or update.sizes != _sizes(there[name][1]):
                raise InputError(
                    f"the denoiser is not the one that this noise network was made for: its layer {name!r} "
                    f"{'has another size' if name in there else 'is missing'}; restore that denoiser, or create or "
                    "load the network on this one"
                )

    def trainable_state(self) -> dict[str, Tensor]:
        """PEFT's names: `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
        return {
            f"{name}.{side}.weight": getattr(update, side).weight.detach()
            for name, update in self.layers.items()
            for side in ("lora_A", "lora_B")
        }

    def scale_output(self, factor: float) -> None:
        """Scales the residual by `factor` permanently: it is linear in the output layer's B."""
        self.trainable_state()[f"{self.output_layer}.lora_B.weight"].mul_(factor)


class Update(nn.Module):
    """scale · B(A(x)), the LoRA's contribution to one layer. Ignores a convolution's groups: B·A is full.

    (SANA's depthwise convolutions need that: the paper authors' released adapters are full on them.)
    """

    def __init__(self, layer: Any, rank: int, scale: float, init: Literal["kaiming", "gaussian"]):
        super().__init__()
        self.scale, self.sizes = scale, _sizes(layer)
        if isinstance(layer, nn.Linear):
            self.lora_A: Any = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_B: Any = nn.Linear(rank, layer.out_features, bias=False)
        else:
            kind, where = CONVOLUTIONS[len(layer.kernel_size)], (layer.stride, layer.padding, layer.dilation)
            self.lora_A = kind(layer.in_channels, rank, layer.kernel_size, *where, bias=False)
            self.lora_B = kind(rank, layer.out_channels, 1, bias=False)
        if init == "gaussian":
            nn.init.normal_(self.lora_A.weight, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))  # a second draw, as in PEFT
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.lora_A.weight.device != x.device:  # the pipeline was moved or is offloaded
            self.to(x.device)
        return self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype))) * self.scale


class _Adapted:
    """A layer's `forward` while f is evaluated: its own, unwrapped, plus the update. For other threads it is the
    layer's own, except for those of autograd, which recompute blocks of f."""

    def __init__(self, layer: nn.Module, bare: nn.Module, update: Update | None, alone: bool):
        self.own, self.thread = layer.forward, threading.get_ident()
        self.plain = bare if bare is not layer else self.own.plain if isinstance(self.own, _Adapted) else self.own
        self.update, self.alone = update, alone

    def __call__(self, x: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        if threading.get_ident() != self.thread and torch._C._current_graph_task_id() == -1:
            return self.own(x, *arguments, **keywords)
        answer = self.plain(x, *arguments, **keywords)
        if self.update is None:
            return answer
        base = torch.zeros_like(answer) if self.alone else answer
        return (base + self.update(x)).to(answer.dtype)


def adaptable_layers(denoiser: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The denoiser's Linear and Conv layers by name, in order: each as it is, and unwrapped. Raises InputError if
    attention projections are fused, so that calls bypass the layers that an adapter targets."""
    kinds, found = nn.Linear | nn.modules.conv._ConvNd, {}
    for name, layer, bare in layers_of(denoiser):
        if vars(bare).get("fused_projections") and (  # the older classes only restore their processor
            hasattr(bare, "unfuse_projections") or "Fused" in type(vars(bare).get("processor")).__name__
        ):
            raise InputError(
                f"the {type(denoiser).__name__}'s attention projections are fused; call "
                "pipe.unfuse_qkv_projections() to use a LoRA noise network"
            )
        if isinstance(bare, kinds):
            found[name] = layer, bare
    return found


def _sizes(layer: Any) -> tuple[int, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, *layer.kernel_size


def _chosen(layers: Sequence[str], there: dict[str, tuple[nn.Module, nn.Module]], output_layer: str) -> list[str]:
    if WITHOUT_DEPTHWISE in layers:
        dense = [name for name, (_, bare) in there.items() if getattr(bare, "groups", 1) == 1]
        layers = [*(name for name in layers if name != WITHOUT_DEPTHWISE), *dense]
    strange = sorted(set(layers) - set(there))
    if strange:
        raise InputError(f"the denoiser has no Linear or Conv layer {strange[0]!r} ({len(strange)} such names in all)")
    if output_layer not in layers:
        raise InputError(f"layers leave out {output_layer!r}: without its update the residual would always be 0")
    return [name for name in there if name in set(layers)]
