"""What a training run is: the loop's settings, and a recipe that adds what it trains. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal

import tyro
import yaml

from hypernoise.errors import RENAMED, InputError, at_least_one, finite_weights, unknown
from hypernoise.generators.loading import Loading
from hypernoise.noise.settings import Spectral
from hypernoise.precision import MixedPrecision


def _words(
    metavar: str, read: Callable[[list[str]], Any], kind: type | UnionType, told: Callable[[Any], list[str]]
) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """How a field takes any number of words on the command line, and how its value is told in them."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=told,
    )


def _told_weights(weights: dict[str, float]) -> list[str]:
    return [f"{name}={weight:g}" for name, weight in weights.items()]


def _weights_from_flags(flags: list[str]) -> dict[str, float]:
    weights = {}
    for flag in flags:
        name, equals, weight = flag.partition("=")
        if name in weights:
            raise InputError(f"reward {name!r} is named twice; give it one weight")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError:
            raise InputError(f"--rewards takes NAME or NAME=WEIGHT, such as redness=500, not {flag!r}") from None
    return weights


Weights = Annotated[dict[str, float], _words("NAME=WEIGHT [NAME=WEIGHT ...]", _weights_from_flags, dict, _told_weights)]
"""Names and weights: a mapping or one name in a recipe, NAME=WEIGHT words on the command line; no weight is 1."""

WATCHES = ("lipschitz", "kl")
TRACKERS = ("tensorboard", "trackio", "wandb")


def _names_from_flags(flags: list[str]) -> tuple[str, ...]:
    return tuple(name for flag in flags for name in flag.split(",") if name)


Names = Annotated[tuple[str, ...], _words("NAME[,NAME ...]", _names_from_flags, tuple, list)]
"""Names out of a table: a name or a list in a recipe, separated by commas or spaces on the command line."""


def _sources_from_flags(flags: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for flag in flags:
        source, _, number = flag.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = None
        if not source or weight is None:  # no weight; a path may hold a = of its own
            source, weight = flag, 1.0
        if source in weights:
            raise InputError(f"prompts {source!r} are named twice; give them one weight")
        weights[source] = weight
    return weights


Sources = Annotated[
    dict[str, float], _words("SOURCE[=WEIGHT] [SOURCE[=WEIGHT] ...]", _sources_from_flags, dict, _told_weights)
]
"""Sources of prompts (see `prompts.read_prompts`) and their weights: a source, or a mapping, in a recipe."""


def _counts_from_flags(flags: list[str]) -> int | tuple[int, ...]:
    try:
        counts = tuple(int(part) for flag in flags for part in flag.split(",") if part)
    except ValueError:
        raise InputError(f"--generator-steps takes whole numbers, such as 1 or 1,2,4, not {' '.join(flags)}") from None
    return counts[0] if len(counts) == 1 else counts


def _told_counts(value: int | tuple[int, ...]) -> list[str]:
    return [str(count) for count in ((value,) if isinstance(value, int) else value)]


Counts = Annotated[int | tuple[int, ...], _words("N[,N ...]", _counts_from_flags, int | tuple, _told_counts)]
"""One number, or several to draw from: a number or a list in a recipe, separated by commas or spaces as flags."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. One step is one optimiser update."""

    steps: int = 1000
    """Optimiser updates."""
    batch_size: int = 16
    """Samples per update, over all processes and accumulation rounds."""
    accumulation: int = 1
    """Rounds the batch is split into to save memory; must divide batch_size."""
    lr: float = 1e-3
    """Learning rate after warm-up; constant unless decay is set."""
    warmup: int = 20
    """Updates over which the learning rate rises from 0."""
    decay: bool = False
    """Lower the learning rate to 0 over the run."""
    decay_shape: Literal["cosine", "linear"] = "cosine"
    """How it falls: along a half cosine, or a line."""
    optimizer: Literal["adamw", "sgd", "adamw8bit"] = "adamw"
    """sgd has momentum 0.9, as published for SD-Turbo and SANA-Sprint; adamw8bit needs bitsandbytes and a GPU."""
    weight_decay: float = 0.0
    ema: float = 0.0
    """Share of the past in a running average of what trains, such as 0.99, which is then what the run ends with;
    0: none."""
    clip: float = 1.0
    """Greatest norm of the gradient."""
    sample_clip: float = 0.0
    """Greatest norm of one sample's reward gradient at its improved noise; 0: any. For rewards whose
    gradients are huge here and there. The objective is then no longer the paper's, but climbed in its direction."""
    kl_weight: float = 1.0
    """Multiplies ½‖f‖², summed over the noise's dimensions: the α of p*(x) ∝ p(x)·exp(r/α)."""
    kl_term: Literal["l2", "exact"] = "l2"
    """l2: ½‖f‖², as published. exact: the whole KL, from each sample's whole Jacobian: a backward pass per dimension,
    for noise of up to 256. A spectral noise network's is exact either way."""
    noise: Literal["fresh", "batch", "fixed"] = "fresh"
    """A noise of its own for every sample, one for all samples of an update, or draws from a fixed set."""
    fixed_noises: int = 64
    """Noises in the fixed set."""
    generator_steps: Counts = 1
    """Denoiser calls per picture in training; of several numbers each update draws one."""
    gradient_steps: int = 0
    """Of those calls the last so many pass the gradient on; earlier ones are taken as constant. 0: all."""
    embeddings: Literal["memory", "disk", "off"] = "memory"
    """Where encoded prompts are kept: the last GiB of them, or all on disk before the first update (the text
    encoders are then set aside), or nowhere."""
    embeddings_folder: str = ""
    """Of embeddings on disk; empty: in the run's output. Runs with one text encoder may share it."""
    checkpoint_every: int = 100
    """Updates between checkpoints."""
    checkpoint_minutes: float = 0.0
    """A checkpoint is also written when the last one is older than this; 0: never."""
    keep: int = 2
    """Checkpoints that are kept, the newest ones."""
    best_by: str = ""
    """A column such as watched_reward: the checkpoint is kept as well before which its mean was highest."""
    skip_limit: int = 5
    """Updates out of the last hundred that may be skipped because reward or gradient was not finite."""
    kl_limit: float = 0.5
    """The run stops when ½‖f‖² is over this many nats per dimension of the noise; at 0.5 the residual is as long as
    the noise. Noises of fewer than 64 dimensions count as 64. 0: never."""
    saturation_limit: float = 0.5
    """The run stops when the share of pixel values that are exactly 0 or 1 has risen by this much; 0: never."""
    samples_every: int = 0
    """Updates between grids of pictures from fixed prompts and noises; 0: none."""
    trackers: Names = ()
    """tensorboard, trackio, wandb: where metrics go besides metrics.jsonl."""
    watched_every: int = 10
    """Updates between readings of the watched reward, if there is one."""
    patience: int = 0
    """Readings in a stretch: training ends when over a stretch the watched reward has fallen from its best while
    the trained one has not. 0: never."""
    seed: int = 0
    mixed_precision: MixedPrecision = "auto"
    """Of the frozen weights and of autocast; what trains is always fp32. auto: bf16 where the device has units for it,
    else no, which is fp32."""
    watch: Names = ()
    """lipschitz, kl: measured on a few noises of their own every watch_every updates, into metrics.jsonl."""
    watch_every: int = 50
    lipschitz: Literal["free", "penalty", "clamp"] = "free"
    """Keeps the residual's Lipschitz constant near (penalty) or under (clamp) lipschitz_bound."""
    lipschitz_bound: float = 0.5
    """Below 1 the KL term can be trusted."""
    lipschitz_weight: float = 100.0
    """Of the penalty, on the squared excess over the bound."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "checkpoint_every", "keep", "fixed_noises")
        at_least_one(self, *counts, "watched_every", "watch_every")
        if not self.step_counts or min(self.step_counts) < 1:
            raise InputError(f"generator_steps must be at least 1, not {self.generator_steps}")
        if not 0 <= self.gradient_steps <= min(self.step_counts):
            raise InputError(
                f"gradient_steps must be from 0 (all) to the fewest generator_steps, {min(self.step_counts)}, "
                f"not {self.gradient_steps}"
            )
        for kind, names, known in (("watch", self.watch, WATCHES), ("tracker", self.trackers, TRACKERS)):
            for name in names:
                if name not in known:
                    raise unknown(kind, name, known)
        if not 0 <= self.ema < 1:
            raise InputError(f"ema must be from 0 (none) to below 1, such as 0.99, not {self.ema}")
        for name in ("lr", "clip", "lipschitz_bound"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{name} must be a positive number, not {getattr(self, name)}")
        for name in (
            *(
                "kl_weight",
                "sample_clip",
                "warmup",
                "weight_decay",
                "lipschitz_weight",
                "checkpoint_minutes",
                "skip_limit",
            ),
            *("kl_limit", "saturation_limit", "samples_every"),
        ):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.patience != 0 and self.patience < 3:
            raise InputError(f"patience must be 0 (never stop early) or at least 3 readings, not {self.patience}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be from 0 to 2**63 - 1, not {self.seed}")
        if self.batch_size % self.accumulation:
            raise InputError(
                f"accumulation {self.accumulation} must divide batch_size {self.batch_size}; "
                f"the next batch_size that fits is {math.ceil(self.batch_size / self.accumulation) * self.accumulation}"
            )

    @property
    def step_counts(self) -> tuple[int, ...]:
        """The numbers of denoiser calls that updates draw from."""
        return (self.generator_steps,) if isinstance(self.generator_steps, int) else self.generator_steps


FREE = {  # fields that change no number of the run: a resumed one may have others
    *("checkpoint_every", "checkpoint_minutes", "keep", "best_by", "watched_every", "patience", "watch", "watch_every"),
    *("skip_limit", "kl_limit", "saturation_limit", "samples_every", "trackers", "embeddings", "embeddings_folder"),
}
LATER = {  # fields that runs of before did not note: at their default they are as good as not there
    *("decay_shape", "ema", "noise", "fixed_noises", "gradient_steps", "sample_clip", "kl_term"),
}


def recognised(config: TrainConfig) -> dict[str, Any]:
    """What decides the numbers of a run, by which one that is found again is recognised; None stands for nothing."""
    values = {}
    for own in dataclasses.fields(TrainConfig):
        if own.name not in FREE:
            value = getattr(config, own.name)
            values[own.name] = None if own.name in LATER and value == own.default else value
    if isinstance(config, Recipe):  # where there was no warm start, its settings decide nothing
        warm = ("warm_rounds", "warm_samples", "warm_step")
        values |= {name: getattr(config, name) if config.warm_rounds else None for name in warm}
    return values


TOGETHER: dict[str, tuple[Any, ...]] = {
    "watch": ((),),
    "lipschitz": ("free",),
    "warm_rounds": (0,),
    "quantise": ("none",),
}
SHARDED: dict[str, dict[str, tuple[Any, ...]]] = {  # what fields may be where no process can draw alone
    "none": {},
    "denoiser": TOGETHER,
    "all": {**TOGETHER, "text_encoders": ("stay",), "embeddings": ("memory", "off")},
}

OF_A_NETWORK: dict[str, dict[str, tuple[Any, ...]]] = {  # what fields may be with a noise network
    "lora": {},
    "spectral": {"layers": ((),), "frequencies": (0,), "warm_rounds": (0,), "shard_base": ("none",)},
}


@dataclass(frozen=True)
class Recipe(TrainConfig, Loading):
    """A whole training run, as a YAML file holds it: every field here may stand there."""

    rewards: Weights = field(default_factory=lambda: {"redness": 1.0})
    """Names of rewards or ensembles, and their weights in the sum."""
    watched: Weights = field(default_factory=dict)
    """Rewards that are not trained on, only measured, to tell whether the trained ones are being hacked."""
    normalise_rewards: bool = False
    """Divide each reward by its running standard deviation, so that weights are in deviations."""
    long_prompts: Literal["truncate", "chunk-mean", "chunk-min"] = "truncate"
    """Prompts beyond a reward's text encoder: cut them (told once, counted), or score windows that fit and take
    the mean or the soft minimum."""
    reward_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of rewards that are networks; their scores are fp32."""
    reward_device: str = ""
    """Where rewards that are networks are; empty: with the pictures."""
    reward_checkpointing: bool = False
    """Compute the rewards' activations again for the gradient: less memory, more time."""
    shard_base: Literal["none", "denoiser", "all"] = "none"
    """Spread the frozen denoiser's weights, or those of the text encoders too, over the processes that a launcher
    starts (FSDP2): none holds them whole."""
    prompts: Sources = field(default_factory=lambda: {"scenes": 1.0})
    """Files (txt, jsonl, csv, parquet), hf:DATASET[:SPLIT[:COLUMN]], or "scenes" for the embedded world's training
    captions; of several, each gives prompts in proportion to its weight."""
    noise_network: Literal["lora", "spectral"] = "lora"
    """lora: the paper's, on every layer of the denoiser. spectral: a small network of its own on the noise's low
    frequencies, whose KL is exact."""
    spectral: Spectral = field(default_factory=Spectral)
    rank: int = 16
    alpha: float = 32.0
    """The LoRA's update is scaled by alpha / rank."""
    layers: Names = ()
    """Of the denoiser, that get a LoRA, the output layer among them; none: every Linear and Conv layer."""
    frequencies: int = 0
    """Of the residual, kept each way: 2 are its mean, its slopes and their product in each channel; 0: all."""
    warm_rounds: int = 0
    """Of the warm start, which sets the output layer in closed form before the first step; 0: none."""
    warm_samples: int = 4096
    """Pictures drawn in each of its rounds."""
    warm_step: float = 1.0
    """How far each of its rounds may move f: the greatest root mean square of ‖Δf‖."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        Loading.__post_init__(self)
        at_least_one(self, "rank", "warm_samples")
        if self.text_encoders == "drop" and self.embeddings == "disk":
            raise InputError(
                "text_encoders: drop keeps the prompts' embeddings in memory and embeddings: disk keeps them on disk, "
                "each without the encoders; take one of the two"
            )
        if self.frequencies < 0:
            raise InputError(f"frequencies must be 0 or more, not {self.frequencies}")
        if self.warm_rounds < 0:
            raise InputError(f"warm_rounds must be 0 or more, not {self.warm_rounds}")
        if not (self.warm_step > 0 and math.isfinite(self.warm_step)):
            raise InputError(f"warm_step must be a positive number, not {self.warm_step}")
        if self.warm_rounds and not self.kl_weight:
            raise InputError("a warm start needs a kl_weight above 0: without it the best step is infinitely long")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"alpha must be a positive number, not {self.alpha}")
        finite_weights(self.rewards)
        finite_weights(self.watched)
        for source, weight in self.prompts.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise InputError(f"the weight of prompts {source!r} must be a positive number, not {weight}")
        if not self.prompts:
            raise InputError('prompts is empty; for example prompts: "scenes", or prompts: {a.txt: 3, b.jsonl: 1}')
        if not self.rewards:
            raise InputError("rewards is empty; for example rewards: {redness: 1.0}")
        for option, fields in (("shard_base", SHARDED), ("noise_network", OF_A_NETWORK)):
            chosen = getattr(self, option)
            for name, needed in fields[chosen].items():
                if getattr(self, name) not in needed:
                    told = " or ".join("nothing" if value == () else str(value) for value in needed)
                    raise InputError(f"{option}: {chosen} needs {name}: {told}, not {getattr(self, name)}")
        if self.patience and not self.watched:
            raise InputError("patience needs a watched reward; for example watched: {pickscore: 1.0}")


def read_recipe(file: str | Path) -> Recipe:
    """A recipe from a YAML file. Raises InputError naming the line, the field, or the nearest field."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"recipe {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {file} is not UTF-8 text") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"recipe {file} is not valid YAML{place}: {problem}") from error
    if not isinstance(values, dict):
        raise InputError(f"recipe {file} must hold fields such as 'generator: scenes'")
    hints = typing.get_type_hints(Recipe)
    names = [f.name for f in dataclasses.fields(Recipe)]
    for name, value in values.items():
        if name in RENAMED:
            raise InputError("recipe {}: {} is {} now: {}".format(file, name, *RENAMED[name]))
        if name not in names:
            raise unknown(f"field in recipe {file}:", str(name), names)
        values[name] = _checked(name, value, hints[name], file)
    return Recipe(**values)


def _checked(name: str, value: Any, hint: Any, file: str | Path) -> Any:
    """The value as the field's type, or InputError. YAML reads 1e-3 as a word: numbers may be given so."""
    options = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
    if options is not None:
        value = "no" if value is False and "no" in options else value  # as YAML reads the word
        if value not in options:
            raise InputError(f"recipe {file}: {name} must be one of {', '.join(options)}, not {value!r}")
        return value
    if hint == int | tuple[int, ...]:
        counts = [value] if type(value) is int else value
        if not (isinstance(counts, list) and all(type(count) is int for count in counts)):
            raise InputError(f"recipe {file}: {name} must be a whole number or a list of them, not {value!r}")
        return counts[0] if len(counts) == 1 else tuple(counts)
    if typing.get_origin(hint) is tuple:
        names = value.split(",") if isinstance(value, str) else value
        if not (isinstance(names, list) and all(isinstance(part, str) for part in names)):
            raise InputError(f"recipe {file}: {name} must be a name or a list of names, not {value!r}")
        return tuple(part.strip() for part in names)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        fields = typing.get_type_hints(hint)
        if not isinstance(value, dict):
            raise InputError(f"recipe {file}: {name} must be a mapping with {', '.join(fields)}, not {value!r}")
        for own in value:
            if own not in fields:
                raise unknown(f"field of {name} in recipe {file}:", str(own), fields)
        return hint(**{own: _checked(f"{name}.{own}", part, fields[own], file) for own, part in value.items()})
    if typing.get_origin(hint) is dict:
        if isinstance(value, str):
            return {value: 1.0}
        if not isinstance(value, dict):
            raise InputError(f"recipe {file}: {name} must be a name or map names to numbers, not {value!r}")
        return {str(key): _checked(f"{name}.{key}", weight, float, file) for key, weight in value.items()}
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise InputError(f"recipe {file}: {name} must be {hint.__name__}, not {value!r}")
