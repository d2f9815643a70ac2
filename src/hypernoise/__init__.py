"""Noise hypernetworks for few-step text-to-image models.

    import hypernoise as hn
    pipe = hn.attach(DiffusionPipeline.from_pretrained("stabilityai/sd-turbo"), "path/of/an/adapter")

Names are imported on first use, so `import hypernoise` is fast.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypernoise.quiet import drop_idle_advice

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
    from hypernoise.methods.best_of_n import BestOfN, Plain
    from hypernoise.methods.finetune import FineTune, LoRATune, finetune, load_finetuned
    from hypernoise.methods.hypernoise import HyperNoise
    from hypernoise.methods.prompt_search import PromptSearch
    from hypernoise.methods.reno import ReNO
    from hypernoise.methods.search import Search
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

drop_idle_advice()  # before any of these names imports diffusers

__all__ = [
    "BestOfN", "Comparison", "DiffusionGenerator", "FineTune", "HyperNoise", "InputError", "Lipschitz", "LoRANoise",
    "LoRATune", "ModuleGenerator", "Plain", "PromptSearch", "ReNO", "Recipe", "ResidualNoise", "RewardSettings",
    "Search", "SpectralNoise", "TrainConfig", "TrainResult", "WeightedSum", "__version__", "attach", "check_reward",
    "compare", "detach", "diagnose", "disabled", "estimate_kl", "exact_kl", "finetune", "l2_kl", "load_adapter",
    "load_finetuned", "load_generator", "load_reward", "push_to_hub", "read_recipe", "save_adapter", "set_strength",
    "spectral_norm", "train",
]  # fmt: skip


@cache
def _homes() -> dict[str, str]:
    """The module of each public name, read off the imports above."""
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.name: str(node.module) for node in imports for alias in node.names if alias.name in __all__}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hypernoise' has no attribute {name!r}")
    return getattr(import_module(_homes()[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
