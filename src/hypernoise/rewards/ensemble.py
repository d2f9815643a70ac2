"""A weighted sum of rewards that keeps each member's scores, and the table of reward names."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Container, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from hypernoise.errors import InputError, no_traceback, shown, unknown
from hypernoise.rewards.base import RewardFunction, RewardSettings, check_callable, check_pairs, scored
from hypernoise.rewards.endpoint import SCHEMES, EndpointReward
from hypernoise.rewards.pixel import PIXEL_REWARDS
from hypernoise.settings import finite_weights

NETWORKS: dict[str, str] = {  # modules whose `load(name, settings)` finds the weights
    "scenes-match": "hypernoise.scenes.scorers",
    **dict.fromkeys(("clip", "pickscore", "hpsv2.1", "long-clip"), "hypernoise.rewards.clip"),
    "imagereward": "hypernoise.rewards.image_reward",
    "aesthetic-v2": "hypernoise.rewards.aesthetic",
    **dict.fromkeys(("vqascore", "vqascore-small"), "hypernoise.rewards.vqa"),
    **dict.fromkeys(("vqascore-qwen2.5-vl", "vqascore-qwen3-vl"), "hypernoise.rewards.vqa"),
    "hpsv3": "hypernoise.rewards.hpsv3",
}
ENSEMBLES: dict[str, dict[str, float]] = {
    "scenes": {"scenes-match": 20.0},
    "human-preference": {"imagereward": 1.0, "hpsv2.1": 5.0, "pickscore": 0.05, "clip": 0.01},  # arXiv 2508.09968
}
ALSO = {  # common spellings, without punctuation
    **dict.fromkeys(("hps", "hpsv2", "hpsv21", "hpscore"), "hpsv2.1"),
    **dict.fromkeys(("pickscorev1", "pick"), "pickscore"),
    **dict.fromkeys(("imagerewardv1", "imagerewardv10"), "imagereward"),
    **dict.fromkeys(("aesthetic", "aestheticscore", "laionaesthetic"), "aesthetic-v2"),
    "clipscore": "clip",
    "vqa": "vqascore",
}


def named(name: Any) -> str:
    """A reward's name in the tables: PickScore_v1, ImageReward and hpsv2 are understood; unknown names pass."""
    if not isinstance(name, str):
        raise InputError(f"a reward's name must be text, not {shown(name)}")
    tables = (ENSEMBLES, NETWORKS, PIXEL_REWARDS)
    known = {_plain(own): own for table in tables for own in table} | ALSO
    return name if ":" in name else known.get(_plain(name.rpartition("/")[2]), name)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def load_reward(name: str, settings: RewardSettings | None = None) -> RewardFunction:
    """The reward or weighted ensemble of a name, the user's own from an import path "module:name", or one behind a
    URL "http://...". Raises InputError for an unknown name (with the nearest), a path that cannot be imported, or
    weights that cannot be loaded."""
    name = named(name)
    if name in ENSEMBLES:
        return WeightedSum(ENSEMBLES[name], settings=settings)
    if name in NETWORKS:
        return import_module(NETWORKS[name]).load(name, settings or RewardSettings())
    if name in PIXEL_REWARDS:
        return PIXEL_REWARDS[name]
    if name.startswith(SCHEMES):
        return EndpointReward(name)
    module, colon, rest = name.partition(":")
    if module in {*ENSEMBLES, *NETWORKS, *PIXEL_REWARDS}:
        raise InputError(f"unknown reward {name!r}; write a weight as {module}={rest}, in a recipe as {module}: {rest}")
    if colon:
        return imported(name)
    raise unknown("reward", name, [*ENSEMBLES, *NETWORKS, *PIXEL_REWARDS])


def imported(path: str) -> RewardFunction:
    """A user's reward at "module:name": a function, or a class constructed without arguments.

    Searches the working directory first, as `python -m` does. Importing a module runs it: only name modules that you
    would run. Raises InputError if there is no such module or name, or it is not callable.
    """
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    with no_traceback(f"reward {path!r}: module {module_name!r} cannot be imported from {here}"):
        module = import_module(module_name)
    if not hasattr(module, name):
        raise unknown(f"name in {module_name}", name, [known for known in vars(module) if not known.startswith("_")])
    found = getattr(module, name)
    if isinstance(found, type):
        with no_traceback(f"reward {path!r}: the class cannot be constructed without arguments"):
            found = found()
    check_callable(found, f"reward {path!r}")
    return found


def members_of(weights: Mapping[str, float], own: Container[str] = ()) -> dict[str, float]:
    """Weights under the tables' names, except the user's `own`, with every ensemble replaced by its members."""
    flat: dict[str, float] = {}
    for given, weight in weights.items():
        name = given if given in own else named(given)
        for member, share in ENSEMBLES.get(name, {name: 1.0}).items():
            flat[member] = flat.get(member, 0.0) + weight * share
    return flat


class WeightedSum:
    """Σ weight · reward over named members; an ensemble's name is expanded to its members.

    Args:
        weights: by name.
        members: user rewards by name; the others are loaded with `settings`.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        members: Mapping[str, RewardFunction] | None = None,
        *,
        settings: RewardSettings | None = None,
    ):
        if not weights:
            raise InputError("no reward was given; for example rewards: {redness: 1.0}")
        finite_weights(weights)
        self.weights = members_of(weights, members or ())
        self.members = {name: (members or {}).get(name) or load_reward(name, settings) for name in self.weights}
        for name, member in self.members.items():
            check_callable(member, f"reward {name!r}")
        self.name = "+".join(weights)
        self.settings = settings or RewardSettings()
        self._scores: dict[str, Tensor] = {}

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores [B] of pixels [B, 3, H, W] in [0, 1]."""
        check_pairs(pixels, prompts)
        self._scores = {
            name: scored(member, pixels, prompts, f"reward {name!r}") for name, member in self.members.items()
        }
        return torch.stack([self.weights[name] * score for name, score in self._scores.items()]).sum(0)

    def member_scores(self) -> dict[str, Tensor]:
        """Each member's scores [B] of the last call, with their graph, before the weight."""
        return self._scores


def each_of(reward: RewardFunction, *, weighted: bool = False) -> dict[str, RewardFunction]:
    """The rewards of a sum (only those with a weight, if `weighted`), or the reward itself, as messages name them."""
    if not isinstance(reward, WeightedSum):
        return {"the reward": reward}
    return {f"reward {n!r}": member for n, member in reward.members.items() if reward.weights[n] or not weighted}


def known_by(reward: Any) -> Any:
    """The identity of a reward or a judge in results and checkpoints: a sum's weights and precision, or a name."""
    if isinstance(reward, WeightedSum):
        dtype = reward.settings.dtype
        return reward.weights if dtype == "float32" else {**reward.weights, "dtype": dtype}
    own = getattr(reward, "name", None) or getattr(reward, "__qualname__", type(reward).__qualname__)
    return None if reward is None else own
