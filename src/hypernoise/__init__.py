"""Noise hypernetworks for few-step text-to-image models.

    import hypernoise as hn
    pipe = hn.attach(DiffusionPipeline.from_pretrained("stabilityai/sd-turbo"), "path/of/an/adapter")

Names are imported on first use, so `import hypernoise` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hypernoise.quiet import without_idle_advice

if TYPE_CHECKING:
    from hypernoise.adapters import load_adapter, save_adapter
    from hypernoise.diagnostics.diagnosis import diagnose
    from hypernoise.diagnostics.kl import estimate_kl
    from hypernoise.diagnostics.lipschitz import spectral_norm
    from hypernoise.errors import InputError
    from hypernoise.evaluation.engine import Comparison, compare
    from hypernoise.generators.diffusion import DiffusionGenerator
    from hypernoise.generators.module import ModuleGenerator
    from hypernoise.generators.registry import load_generator
    from hypernoise.methods.finetune import FineTune, LoRATune, finetune, load_finetuned
    from hypernoise.methods.hypernoise import HyperNoise
    from hypernoise.methods.plain import Plain
    from hypernoise.methods.prompt_search import PromptSearch
    from hypernoise.methods.reno import ReNO
    from hypernoise.methods.search import BestOfN, Search
    from hypernoise.model_card import push_to_hub
    from hypernoise.noise.lora import LoRANoise
    from hypernoise.noise.residual import ResidualNoise
    from hypernoise.noise.spectral import SpectralNoise
    from hypernoise.objective import exact_kl, l2_kl
    from hypernoise.pipeline import attach, detach, disabled, set_strength
    from hypernoise.rewards.base import RewardSettings
    from hypernoise.rewards.check import check_reward
    from hypernoise.rewards.ensemble import WeightedSum, load_reward
    from hypernoise.training.config import Lipschitz, Recipe, TrainConfig, read_recipe
    from hypernoise.training.loop import TrainResult, train
    from hypernoise.version import __version__

_HOME = {
    "adapters": ("load_adapter", "save_adapter"),
    "diagnostics.diagnosis": ("diagnose",),
    "diagnostics.kl": ("estimate_kl",),
    "diagnostics.lipschitz": ("spectral_norm",),
    "errors": ("InputError",),
    "evaluation.engine": ("Comparison", "compare"),
    "generators.diffusion": ("DiffusionGenerator",),
    "generators.module": ("ModuleGenerator",),
    "generators.registry": ("load_generator",),
    "methods.finetune": ("FineTune", "LoRATune", "finetune", "load_finetuned"),
    "methods.hypernoise": ("HyperNoise",),
    "methods.plain": ("Plain",),
    "methods.prompt_search": ("PromptSearch",),
    "methods.reno": ("ReNO",),
    "methods.search": ("BestOfN", "Search"),
    "model_card": ("push_to_hub",),
    "noise.lora": ("LoRANoise",),
    "noise.residual": ("ResidualNoise",),
    "noise.spectral": ("SpectralNoise",),
    "objective": ("exact_kl", "l2_kl"),
    "pipeline": ("attach", "detach", "disabled", "set_strength"),
    "rewards.base": ("RewardSettings",),
    "rewards.check": ("check_reward",),
    "rewards.ensemble": ("WeightedSum", "load_reward"),
    "training.config": ("Lipschitz", "Recipe", "TrainConfig", "read_recipe"),
    "training.loop": ("TrainResult", "train"),
    "version": ("__version__",),
}
without_idle_advice()  # before any of these names imports diffusers

_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BestOfN",
    "Comparison",
    "DiffusionGenerator",
    "FineTune",
    "HyperNoise",
    "InputError",
    "Lipschitz",
    "LoRANoise",
    "LoRATune",
    "ModuleGenerator",
    "Plain",
    "PromptSearch",
    "ReNO",
    "Recipe",
    "ResidualNoise",
    "RewardSettings",
    "Search",
    "SpectralNoise",
    "TrainConfig",
    "TrainResult",
    "WeightedSum",
    "__version__",
    "attach",
    "check_reward",
    "compare",
    "detach",
    "diagnose",
    "disabled",
    "estimate_kl",
    "exact_kl",
    "finetune",
    "l2_kl",
    "load_adapter",
    "load_finetuned",
    "load_generator",
    "load_reward",
    "push_to_hub",
    "read_recipe",
    "save_adapter",
    "set_strength",
    "spectral_norm",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'hypernoise' has no attribute {name!r}")
    return getattr(import_module(f"hypernoise.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
