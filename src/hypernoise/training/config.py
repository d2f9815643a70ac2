"""What a training run is: the loop's settings, and a recipe that adds what it trains. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from hypernoise.errors import InputError, at_least_one, finite_weights, unknown


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


Weights = Annotated[
    dict[str, float],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=WEIGHT [NAME=WEIGHT ...]",
        instance_from_str=_weights_from_flags,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda weights: [f"{name}={weight:g}" for name, weight in weights.items()],
    ),
]
"""Names and weights: a mapping or one name in a recipe, NAME=WEIGHT words on the command line; no weight is 1."""

WATCHES = ("lipschitz", "kl")


def _names_from_flags(flags: list[str]) -> tuple[str, ...]:
    return tuple(name for flag in flags for name in flag.split(",") if name)


Watch = Annotated[
    tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME[,NAME ...]",
        instance_from_str=_names_from_flags,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=list,
    ),
]
"""Names out of `WATCHES`: a name or a list in a recipe, separated by commas or spaces on the command line."""


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
    """Lower the learning rate to 0 along a half cosine."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum 0.9, as published for SD-Turbo and SANA-Sprint."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Greatest norm of the gradient."""
    sample_clip: float | None = None
    """Greatest norm of one sample's reward gradient at its improved noise; none if left out. For rewards whose
    gradients are huge here and there. The objective is then no longer the paper's, but climbed in its direction."""
    kl_weight: float = 1.0
    """Multiplies ½‖f‖², summed over the noise's dimensions: the α of p*(x) ∝ p(x)·exp(r/α)."""
    generator_steps: int = 1
    """Denoiser calls per picture in training; the gradient goes through all of them."""
    checkpoint_every: int = 100
    """Updates between checkpoints; the last two are kept."""
    watched_every: int = 10
    """Updates between readings of the watched reward, if there is one."""
    patience: int = 0
    """Readings in a stretch: training ends when over a stretch the watched reward has fallen from its best while
    the trained one has not. 0: never."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights and the autocast; what trains is always fp32."""
    watch: Watch = ()
    """lipschitz, kl: measured on a few noises of their own every watch_every updates, into metrics.jsonl."""
    watch_every: int = 50
    lipschitz: Literal["free", "penalty", "clamp"] = "free"
    """Keeps the residual's Lipschitz constant near (penalty) or under (clamp) lipschitz_bound."""
    lipschitz_bound: float = 0.5
    """Below 1 the KL term can be trusted."""
    lipschitz_weight: float = 100.0
    """Of the penalty, on the squared excess over the bound."""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "generator_steps", "checkpoint_every")
        at_least_one(self, *counts, "watched_every", "watch_every")
        for name in self.watch:
            if name not in WATCHES:
                raise unknown("watch", name, WATCHES)
        for name in ("lr", "clip", "sample_clip", "lipschitz_bound"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be a positive number, not {getattr(self, name)}")
        for name in ("kl_weight", "warmup", "weight_decay", "lipschitz_weight"):
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


@dataclass(frozen=True)
class Recipe(TrainConfig):
    """A whole training run, as a YAML file holds it: every field here may stand there."""

    generator: str = "scenes"
    """A registered name or a pipeline directory."""
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
    revision: str = ""
    """Of the generator's repository; empty: its newest."""
    height: int = 0
    """Of the pictures, in pixels; 0: the generator's own."""
    width: int = 0
    """As height, if 0."""
    few_step_lora: str = ""
    """An LCM, Hyper-SD or Lightning LoRA that is fused into the generator first: a safetensors file, or
    owner/name/file on the Hub."""
    scheduler: Literal["", "lcm", "tcd", "euler-trailing", "ddim-trailing"] = ""
    """As the few-step LoRA's card asks for; empty: the generator's own."""
    checkpointing: bool = False
    """Compute the denoiser's and the decoder's activations again for the gradient: less memory, more time."""
    decode_slice: int = 0
    """Pictures decoded at once; 0: all of them."""
    text_encoders: Literal["stay", "offload", "drop"] = "stay"
    """offload: on the CPU between encodings; drop: the prompts are encoded ahead and the encoders let go."""
    tiny_decoder: str = ""
    """A small decoder of the TAESD family in place of the generator's: a directory or a Hub repository."""
    quantise: Literal["none", "int8", "nf4"] = "none"
    """Of the frozen denoiser's weights, with bitsandbytes; what trains stays fp32."""
    prompts: str = "scenes"
    """A text file with a prompt a line, or "scenes" for the embedded world's training captions."""
    rank: int = 16
    alpha: float = 32.0
    """The LoRA's update is scaled by alpha / rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "rank")
        for name in ("height", "width", "decode_slice"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"alpha must be a positive number, not {self.alpha}")
        finite_weights(self.rewards)
        finite_weights(self.watched)
        if not self.rewards:
            raise InputError("rewards is empty; for example rewards: {redness: 1.0}")
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
        if name not in names:
            raise unknown(f"field in recipe {file}:", str(name), names)
        values[name] = _checked(name, value, hints[name], file)
    return Recipe(**values)


def _checked(name: str, value: Any, hint: Any, file: str | Path) -> Any:
    """The value as the field's type, or InputError. YAML reads 1e-3 as a word: numbers may be given so."""
    options = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
    if options is not None:
        if value not in options:
            raise InputError(f"recipe {file}: {name} must be one of {', '.join(options)}, not {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        names = value.split(",") if isinstance(value, str) else value
        if not (isinstance(names, list) and all(isinstance(part, str) for part in names)):
            raise InputError(f"recipe {file}: {name} must be a name or a list of names, not {value!r}")
        return tuple(part.strip() for part in names)
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
