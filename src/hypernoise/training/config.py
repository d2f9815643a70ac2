"""What a training run is: the loop's settings, and a recipe that adds what it trains. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
import yaml

from hypernoise.errors import InputError, at_least_one, finite_weights, unknown
from hypernoise.generators.loading import Loading
from hypernoise.noise.settings import Spectral
from hypernoise.precision import MixedPrecision

if TYPE_CHECKING:
    from hypernoise.rewards.base import RewardSettings


def _weights_from_words(words: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = None
        if not name or weight is None:  # no weight; a path may hold a = of its own
            name, weight = word, 1.0
        if name in weights:
            raise InputError(f"{name!r} is named twice; give it one weight")
        weights[name] = weight
    return weights


Weights = Annotated[
    dict[str, float],
    tyro.constructors.PrimitiveConstructorSpec[dict[str, float]](
        nargs="*",
        metavar="NAME[=WEIGHT] ...",
        instance_from_str=_weights_from_words,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda weights: [f"{name}={weight:g}" for name, weight in weights.items()],
    ),
]
"""Names and weights: a mapping or one name in a recipe, NAME=WEIGHT words on the command line; no weight means 1."""

DIAGNOSTICS = ("lipschitz", "kl")
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Lipschitz:
    """Whether the Lipschitz constant of the residual is held down, so that ½‖f‖² stands for the whole KL."""

    mode: Literal["free", "penalty", "clamp"] = "free"
    """penalty keeps it near the bound, clamp under it."""
    bound: float = 0.5
    """Below 1 the KL term can be trusted."""
    weight: float = 100.0
    """Of the penalty, on the squared excess over the bound."""

    def __post_init__(self) -> None:
        positive(self, "bound", prefix="lipschitz.")
        not_negative(self, "weight", prefix="lipschitz.")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. One step is one optimiser update."""

    learning_rate: float = 1e-3
    """After warm-up."""
    max_train_steps: int = 1000
    """Updates."""
    train_batch_size: int = 16
    """Samples per update, over all processes and accumulation rounds."""
    gradient_accumulation_steps: int = 1
    """Rounds that a batch is split into to save memory; must divide train_batch_size."""
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    """cosine and linear fall to 0 over the run."""
    lr_warmup_steps: int = 20
    """Updates over which the learning rate rises from 0."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has momentum 0.9, as published for SD-Turbo and SANA-Sprint."""
    max_grad_norm: float = 1.0
    sample_clip: float = 0.0
    """Greatest norm of one sample's reward gradient at its improved noise, for rewards with a few huge gradients; 0:
    unlimited. The objective is then no longer the paper's, but followed in its direction."""
    ema: float = 0.0
    """Share of the past in a running average of what trains, such as 0.99, which the run ends with; 0: none."""
    kl_weight: float = 1.0
    """Multiplies ½‖f‖², summed over the noise's dimensions: the α of p*(x) ∝ p(x)·exp(r/α)."""
    kl_term: Literal["l2", "exact"] = "l2"
    """l2: ½‖f‖², as published. exact: the whole KL, from each sample's whole Jacobian: a backward pass per dimension,
    for noise of up to 256. A spectral noise network's is exact either way."""
    kl_limit: float = 0.5
    """The run stops when ½‖f‖² is over this many nats per dimension of the noise; at 0.5 the residual is as long as
    the noise. Noises of fewer than 64 dimensions count as 64. 0: never."""
    clipping_limit: float = 0.5
    """The run stops when the share of pixel values that are exactly 0 or 1 has risen by this much; 0: never."""
    num_inference_steps: int | tuple[int, ...] = 1
    """Denoiser calls per training picture; of several numbers each update draws one."""
    checkpointing_steps: int = 100
    """Updates between checkpoints."""
    checkpoints_total_limit: int = 2
    """Checkpoints kept, the newest ones."""
    validation_steps: int = 10
    """Updates between readings of the validation reward, and between pictures of validation_prompts."""
    validation_prompts: tuple[str, ...] = ()
    """Drawn every validation_steps from the same noises, plain above, improved below."""
    patience: int = 0
    """Readings in a stretch: training stops early when over a stretch the validation reward has fallen from its best
    while the trained one has not. 0: never."""
    diagnostics: tuple[str, ...] = ()
    """lipschitz, kl: measured at a few fixed noises every diagnostics_steps, into metrics.jsonl."""
    diagnostics_steps: int = 50
    report_to: tuple[str, ...] = ()
    """tensorboard, trackio, wandb: where metrics go besides metrics.jsonl."""
    seed: int = 0
    mixed_precision: MixedPrecision = "auto"
    """Of the frozen weights and of autocast; what trains is always fp32. auto: bf16 where the device has units for it,
    else no, which is fp32."""
    lipschitz: Lipschitz = field(default_factory=Lipschitz)

    def __post_init__(self) -> None:
        at_least_one(self, "max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps")
        at_least_one(self, "checkpoints_total_limit", "validation_steps", "diagnostics_steps")
        positive(self, "learning_rate", "max_grad_norm")
        not_negative(self, "kl_weight", "sample_clip", "lr_warmup_steps", "kl_limit", "clipping_limit")
        if not self.inference_steps or min(self.inference_steps) < 1:
            raise InputError(f"num_inference_steps must be at least 1, not {self.num_inference_steps}")
        for kind, names, known in (
            ("diagnostic", self.diagnostics, DIAGNOSTICS),
            ("tracker", self.report_to, TRACKERS),
        ):
            for name in names:
                if name not in known:
                    raise unknown(kind, name, known)
        if not 0 <= self.ema < 1:
            raise InputError(f"ema must be from 0 (none) to below 1, such as 0.99, not {self.ema}")
        if self.patience != 0 and self.patience < 3:
            raise InputError(f"patience must be 0 (never stop early) or at least 3 readings, not {self.patience}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be from 0 to 2**63 - 1, not {self.seed}")
        parts, size = self.gradient_accumulation_steps, self.train_batch_size
        if size % parts:
            raise InputError(
                f"gradient_accumulation_steps {parts} must divide train_batch_size {size}; "
                f"the next train_batch_size that fits is {math.ceil(size / parts) * parts}"
            )

    @property
    def inference_steps(self) -> tuple[int, ...]:
        """The numbers of denoiser calls that updates draw from."""
        steps = self.num_inference_steps
        return (steps,) if isinstance(steps, int) else tuple(steps)


FREE = {  # fields that change no number of the run: a resumed one may have others
    *("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "validation_prompts", "patience"),
    *("diagnostics", "diagnostics_steps", "report_to", "kl_limit", "clipping_limit"),
}


def recognised(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide a run's numbers."""
    values = {own.name: getattr(config, own.name) for own in dataclasses.fields(TrainConfig) if own.name not in FREE}
    return {name: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for name, v in values.items()}  # type: ignore[arg-type]


@dataclass(frozen=True)
class LoRA:
    """The noise network: a LoRA on the denoiser."""

    rank: Annotated[int, tyro.conf.arg(aliases=["--rank"])] = 16
    alpha: Annotated[float, tyro.conf.arg(aliases=["--lora-alpha"])] = 32.0
    """The update is scaled by alpha / rank."""
    layers: tuple[str, ...] = ()
    """Of the denoiser, that get a LoRA, the output layer among them; none: every Linear and Conv layer."""
    frequencies: int = 0
    """Of the residual, kept each way: 2 are its mean, its slopes and their product in each channel; 0: all."""

    def __post_init__(self) -> None:
        at_least_one(self, "rank")
        positive(self, "alpha", prefix="lora.")
        not_negative(self, "frequencies", prefix="lora.")


TOGETHER: dict[str, tuple[Any, ...]] = {
    "diagnostics": ((),),
    "lipschitz.mode": ("free",),
    "memory.quantise": ("none",),
}
SHARDED: dict[str, dict[str, tuple[Any, ...]]] = {  # what fields may be where no process can draw alone
    "none": {},
    "denoiser": TOGETHER,
    "all": {**TOGETHER, "memory.text_encoders": ("stay",)},
}

OF_A_NETWORK: dict[str, dict[str, tuple[Any, ...]]] = {  # what fields may be with a noise network
    "lora": {},
    "spectral": {"lora.layers": ((),), "lora.frequencies": (0,), "shard_base": ("none",)},
}


@dataclass(frozen=True)
class Recipe(TrainConfig, Loading):
    """A whole training run, as a YAML file holds it: every field here may stand there."""

    prompts: Weights = field(default_factory=lambda: {"scenes": 1.0})
    """Files (txt, jsonl, csv, parquet), hf:DATASET[:SPLIT[:COLUMN]], or "scenes" for the embedded world's training
    captions; of several, each gives prompts in proportion to its weight."""
    rewards: Weights = field(default_factory=lambda: {"redness": 1.0})
    """Names of rewards or ensembles, and their weights in the sum."""
    validation_reward: Weights = field(default_factory=dict)
    """Rewards that are not trained on, only measured, to see whether the trained ones are being hacked."""
    normalise_rewards: bool = False
    """Divide each reward by its running standard deviation, so that weights are in deviations."""
    long_prompts: Literal["truncate", "chunk-mean", "chunk-min"] = "truncate"
    """Prompts beyond a reward's text encoder: cut them (and say how many), or score windows that fit and take the mean
    or the soft minimum."""
    reward_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of rewards that are networks; their scores are fp32."""
    reward_device: str = ""
    """Where rewards that are networks run; empty: with the pictures."""
    reward_checkpointing: bool = False
    """Recompute the rewards' activations for the gradient: less memory, more time."""
    shard_base: Literal["none", "denoiser", "all"] = "none"
    """Spread the frozen denoiser's weights, or those of the text encoders too, over the processes that a launcher
    starts (FSDP2), so that none holds them all."""
    noise_network: Literal["lora", "spectral"] = "lora"
    """lora: the paper's, on every layer of the denoiser. spectral: a small network of its own on the noise's low
    frequencies, whose KL is exact."""
    spectral: Spectral = field(default_factory=Spectral)
    lora: LoRA = field(default_factory=LoRA)
    push_to_hub: bool = False
    """Upload the adapter at the end, with a model card of what was measured."""
    hub_model_id: str = ""
    """Where to: owner/name."""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        Loading.__post_init__(self)
        finite_weights(self.rewards)
        finite_weights(self.validation_reward)
        for source, weight in self.prompts.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise InputError(f"the weight of prompts {source!r} must be a positive number, not {weight}")
        if not self.prompts:
            raise InputError('prompts is empty; for example prompts: "scenes", or prompts: {a.txt: 3, b.jsonl: 1}')
        if not self.rewards:
            raise InputError("rewards is empty; for example rewards: {redness: 1.0}")
        for option, fields in (("shard_base", SHARDED), ("noise_network", OF_A_NETWORK)):
            chosen = getattr(self, option)
            for name, allowed in fields[chosen].items():
                value: Any = self
                for part in name.split("."):
                    value = getattr(value, part)
                if value not in allowed:
                    options = " or ".join("nothing" if own == () else str(own) for own in allowed)
                    raise InputError(f"{option}: {chosen} needs {name}: {options}, not {value}")
        if self.patience and not self.validation_reward:
            raise InputError("patience needs a validation reward; for example validation_reward: {pickscore: 1.0}")

    def reward_settings(self) -> RewardSettings:
        """How the rewards run."""
        from hypernoise.rewards.base import RewardSettings

        return RewardSettings(
            self.long_prompts, self.reward_dtype, self.reward_device, checkpointing=self.reward_checkpointing
        )


def positive(settings: object, *names: str, prefix: str = "") -> None:
    """Raises InputError for the first of these attributes that is not a finite number above 0."""
    for name in names:
        if not (getattr(settings, name) > 0 and math.isfinite(getattr(settings, name))):
            raise InputError(f"{prefix}{name} must be a positive number, not {getattr(settings, name)}")


def not_negative(settings: object, *names: str, prefix: str = "") -> None:
    """Raises InputError for the first of these attributes that is not a finite number from 0."""
    for name in names:
        if not (getattr(settings, name) >= 0 and math.isfinite(getattr(settings, name))):
            raise InputError(f"{prefix}{name} must be 0 or more, not {getattr(settings, name)}")


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
    return _group(Recipe, values, f"recipe {file}")


def _group(cls: type, values: Mapping[Any, Any], where: str, prefix: str = "") -> Any:
    """A dataclass from a mapping of its fields."""
    hints, read = typing.get_type_hints(cls), {}
    for name, value in values.items():
        if name not in hints:
            raise unknown(f"field in {where}:", f"{prefix}{name}", [f"{prefix}{own}" for own in _names(cls)])
        read[name] = _checked(f"{prefix}{name}", value, hints[name], where)
    return cls(**read)


def _names(cls: type) -> Iterator[str]:
    """The fields of a dataclass, and those of its groups with a dot."""
    for name, hint in typing.get_type_hints(cls).items():
        yield name
        if dataclasses.is_dataclass(hint):
            yield from (f"{name}.{own}" for own in _names(hint))  # type: ignore[arg-type]


def _checked(name: str, value: Any, hint: Any, where: str) -> Any:
    """The value as the field's type, or InputError. YAML reads 1e-3 as a word: numbers may be given so."""
    kind = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise InputError(f"{where}: {name} is a group of fields, such as {name}: {{...}}, not {value!r}")
        return _group(hint, value, where, f"{name}.")  # type: ignore[arg-type]
    if kind is Literal:
        options = typing.get_args(hint)
        value = "no" if value is False and "no" in options else value  # as YAML reads the word
        if value not in options:
            raise InputError(f"{where}: {name} must be one of {', '.join(options)}, not {value!r}")
        return value
    if hint == int | tuple[int, ...]:
        counts = [value] if type(value) is int else value
        if not (isinstance(counts, list) and all(type(count) is int for count in counts)):
            raise InputError(f"{where}: {name} must be a whole number or a list of them, not {value!r}")
        return counts[0] if len(counts) == 1 else tuple(counts)
    if kind is tuple:
        names = [value] if isinstance(value, str) else value
        if not (isinstance(names, list) and all(isinstance(part, str) for part in names)):
            raise InputError(f"{where}: {name} must be a text or a list of texts, not {value!r}")
        return tuple(names)
    if kind is dict:
        if isinstance(value, str):
            return {value: 1.0}
        if not isinstance(value, dict):
            raise InputError(f"{where}: {name} must be a name or map names to numbers, not {value!r}")
        return {str(key): _checked(f"{name}.{key}", weight, float, where) for key, weight in value.items()}
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise InputError(f"{where}: {name} must be {hint.__name__}, not {value!r}")
