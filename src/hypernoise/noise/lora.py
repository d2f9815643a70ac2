"""The paper's noise network: a LoRA on the frozen denoiser, evaluated at the first timestep.

Every Linear and Conv layer gets a low-rank update; the output layer, while f is evaluated, answers with
its update alone (its base path and bias are left out). With B = 0 at the start, f is exactly 0 (paper,
section 4; arXiv 2508.09968). The same weights, with the updates off, stay the generator.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from hypernoise.errors import InputError, shown
from hypernoise.generators.base import Condition, Generator
from hypernoise.generators.diffusion import DiffusionGenerator, replaced
from hypernoise.noise.frequencies import low_frequencies
from hypernoise.noise.state import copy_state
from hypernoise.settings import MOST_RANK, finite, whole_number

ADAPTER = "hypernoise"
_NETWORKS: WeakValueDictionary[int, LoRANoise] = WeakValueDictionary()  # by the id of the generator each is on


class LoRANoise(nn.Module):
    """f as a LoRA on a generator's denoiser.

    Args:
        generator: the frozen generator; its denoiser's layers are wrapped in place until `remove()`. A noise
            network made on it before is removed, and refuses to run from then on.
        rank, alpha: of the LoRA; the update is scaled by alpha / rank.
        seed: of the LoRA's initial A (B starts at 0).
        layers: names of the layers to adapt, the output layer among them, or of a set of them (`LAYER_SETS`); every
            Linear and Conv layer if None.
        init: of A: PEFT's own, or N(0, 1/rank²), which PEFT calls gaussian.
        unscaled: f is given the noise itself, not what the pipeline's scheduler makes of it for the generator, as
            the paper's authors train SD-Turbo's (0.2 % apart; see `Family.released`).
        frequencies: of the residual, kept each way (`low_frequencies`); 0: all.

    Raises:
        InputError: the denoiser carries another adapter, rank < 1, alpha not a positive number, layers that are not
            there, or frequencies of a noise that is no picture of channels (packed into tokens).
    """

    kind: ClassVar[str] = "lora"

    def __init__(
        self,
        generator: DiffusionGenerator,
        *,
        rank: int = 16,
        alpha: float = 32.0,
        seed: int = 0,
        layers: Sequence[str] | None = None,
        init: Literal["kaiming", "gaussian"] = "kaiming",
        unscaled: bool = False,
        frequencies: int = 0,
    ):
        super().__init__()
        whole_number(rank, "rank", most=MOST_RANK)
        whole_number(frequencies, "frequencies", least=0)
        if not (finite(alpha) and alpha > 0):
            raise InputError(f"alpha must be a positive number, not {shown(alpha)}")
        if frequencies and len(generator.noise_shape) != 3:
            raise InputError(f"frequencies are of noise [C, H, W]; {generator.name!r} takes {generator.noise_shape}")
        if not hasattr(generator, "denoiser"):
            raise InputError(f"{generator.name!r} has no denoiser to put a LoRA on: take ResidualNoise")
        before = _NETWORKS.get(id(generator))
        if before is not None:
            before.remove()
        self.settings: dict[str, Any] = {"rank": rank, "alpha": alpha}
        self.output_layer = generator.family.output_layer
        _check_bare(generator.denoiser)
        names = adaptable_layers(generator.denoiser)
        if layers is not None:
            names = _chosen(_named(layers, generator.denoiser, names), names, self.output_layer)
            self.settings["layers"] = names
        if unscaled:
            self.settings["unscaled"] = True
        if frequencies:
            self.settings["frequencies"] = frequencies
        self._unscaled, self._frequencies = unscaled, frequencies
        self._generator = (generator,)  # a tuple, so that the frozen weights are no part of this module
        self._trainable_before = [p for p in generator.denoiser.parameters() if p.requires_grad]
        self.layers: dict[str, LoraLayer] = _inject(generator.denoiser, names, rank, alpha, seed, init)
        self.lora = nn.ModuleList([nn.ModuleList([m.lora_A, m.lora_B]) for m in self.layers.values()])
        self.lora.to(torch.float64 if generator.dtype == torch.float64 else torch.float32)
        base = self.layers[self.output_layer].get_base_layer()
        self._hook = base.register_forward_hook(self._drop_base_path)
        self._removed = False
        _NETWORKS[id(generator)] = self

    @property
    def generator(self) -> DiffusionGenerator:
        return self._generator[0]

    def is_on(self, generator: Generator) -> bool:
        """Whether it can run on this generator: made on it, and not removed since."""
        return generator is self.generator and not self._removed

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        """The residual [B, *noise_shape] for noise [B, *noise_shape]."""
        if self._removed:
            raise InputError("this noise network was removed from its generator; make or load it again")
        with self.adapted():
            answer = self.generator.denoise_first(noise, condition)
        return self.residual(answer)

    def residual(self, answer: Tensor) -> Tensor:
        """f, of what the adapted denoiser answers [B, *noise_shape]."""
        return low_frequencies(answer, self._frequencies) if self._frequencies else answer

    @contextmanager
    def adapted(self) -> Iterator[None]:
        """The denoiser is f inside the block, and the frozen generator again after it."""
        self._switch(True)
        try:
            with self._input():
                yield
        finally:
            self._switch(False)

    def _input(self) -> AbstractContextManager[None]:
        """What the scheduler hands to the denoiser inside the block: the noise itself, if f takes it unscaled."""
        scheduler = self.generator.pipeline.scheduler
        if not self._unscaled or not hasattr(scheduler, "scale_model_input"):
            return nullcontext()
        return replaced(scheduler, {"scale_model_input": lambda latents, step: latents / scheduler.init_noise_sigma})

    def check_alone(self) -> None:
        """Raises InputError if other adapters came onto the denoiser: switching would silence them too."""
        others = {name for layer in self.layers.values() for name in layer.lora_A} - {ADAPTER}
        if others:
            raise InputError(
                f"the adapter {min(others)!r} was loaded beside the noise network; "
                "detach, load and fuse it (pipe.fuse_lora(); pipe.unload_lora_weights()), then attach again"
            )

    def _switch(self, active: bool) -> None:
        # PEFT's enable_adapters() would also toggle requires_grad, and a backward pass after it would
        # silently see no gradient; the private flag only selects the forward path (pinned by a test).
        for layer in self.layers.values():
            layer._disable_adapters = not active

    def _drop_base_path(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output) if self.active else output

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.lora.parameters())

    def trainable_state(self) -> dict[str, Tensor]:
        """PEFT's names: `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
        return {
            f"{name}.{side}.weight": getattr(layer, side)[ADAPTER].weight.detach()
            for name, layer in self.layers.items()
            for side in ("lora_A", "lora_B")
        }

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        copy_state(self.trainable_state(), state)

    @property
    def active(self) -> bool:
        """Whether the denoiser is f at the moment, and not the generator."""
        return not self.layers[self.output_layer]._disable_adapters

    def scale_output(self, factor: float) -> None:
        """Multiplies the residual by `factor`, for good: it is linear in the output layer's B."""
        self.trainable_state()[f"{self.output_layer}.lora_B.weight"].mul_(factor)

    def remove(self) -> None:
        """Takes the LoRA out of the denoiser, which is then what it was before, module for module."""
        if self._removed:
            return
        self._removed = True
        _NETWORKS.pop(id(self.generator), None)
        self._hook.remove()
        for name, layer in self.layers.items():
            parent, _, attribute = name.rpartition(".")
            setattr(self.generator.denoiser.get_submodule(parent), attribute, layer.get_base_layer())
        del self.generator.denoiser.peft_config  # where PEFT notes what it injected
        for parameter in self._trainable_before:  # PEFT froze them
            parameter.requires_grad_(True)


def adaptable_layers(denoiser: nn.Module) -> list[str]:
    """The names of its Linear and Conv layers, in the denoiser's order, whether they are adapted or not."""
    kinds = nn.Linear | nn.modules.conv._ConvNd
    found = [name for name, module in denoiser.named_modules() if isinstance(module, kinds)]
    return [name.removesuffix(".base_layer") for name in found if ".lora_" not in name]


LAYER_SETS: dict[str, Callable[[nn.Module], bool]] = {
    "without-depthwise": lambda layer: getattr(layer, "groups", 1) == 1,
}
"""Layers by the name of their set. On a depthwise convolution, whose own weights are few, a LoRA is a whole one."""


def _named(layers: Sequence[str], denoiser: nn.Module, names: list[str]) -> list[str]:
    """`layers`, with the layers of a set in the place of its name."""
    found: list[str] = []
    for name in layers:
        belongs = LAYER_SETS.get(name)
        found += [name] if belongs is None else [own for own in names if belongs(denoiser.get_submodule(own))]
    return found


def _check_bare(denoiser: nn.Module) -> None:
    if any(isinstance(module, LoraLayer) for module in denoiser.modules()):
        raise InputError(
            f"the {type(denoiser).__name__} already carries an adapter: take a noise network off with "
            "network.remove() or hypernoise.detach(pipe); fuse and unload another LoRA "
            "(pipe.fuse_lora(); pipe.unload_lora_weights())"
        )


def _chosen(layers: Sequence[str], names: list[str], output_layer: str) -> list[str]:
    strange = sorted(set(layers) - set(names))
    if strange:
        raise InputError(f"the denoiser has no Linear or Conv layer {strange[0]!r} ({len(strange)} such names in all)")
    if output_layer not in layers:
        raise InputError(f"layers leave out {output_layer!r}: without its update the residual would always be 0")
    return [name for name in names if name in set(layers)]


def _inject(
    denoiser: nn.Module, names: list[str], rank: int, alpha: float, seed: int, init: Literal["kaiming", "gaussian"]
) -> dict[str, LoraLayer]:
    whole = "|".join(map(re.escape, names))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=whole,
        init_lora_weights="gaussian" if init == "gaussian" else True,
    )
    with torch.random.fork_rng(devices=[]), _ungrouped(denoiser), warnings.catch_warnings():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the user's accelerators too
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass")  # to merge, which is never done
        inject_adapter_in_model(config, denoiser, adapter_name=ADAPTER)
    layers = {name: denoiser.get_submodule(name) for name in names}
    for name, layer in layers.items():
        assert isinstance(layer, LoraLayer), f"PEFT left {name} out"
        layer.get_base_layer().requires_grad_(False)
        layer._disable_adapters = True
    return layers  # type: ignore[return-value]


@contextmanager
def _ungrouped(denoiser: nn.Module) -> Iterator[None]:
    """Inside the block every conv has one group, so that PEFT puts a full B·A on it, whatever the rank.

    SANA's depthwise convs need it: PEFT refuses a rank that their groups do not divide, and the released adapters
    were made by a PEFT that knew no groups.
    """
    grouped = [(m, m.groups) for m in denoiser.modules() if isinstance(m, nn.modules.conv._ConvNd) and m.groups > 1]
    for conv, _ in grouped:
        conv.groups = 1
    try:
        yield
    finally:
        for conv, groups in grouped:
            conv.groups = groups
