"""Settings of a training run: the loop's, and a recipe that adds what is trained. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml

from hypernoise.errors import InputError, first_line, shown
from hypernoise.files import read_text
from hypernoise.generators.loading import Loading
from hypernoise.noise.settings import Spectral
from hypernoise.precision import MixedPrecision
from hypernoise.settings import (
    MOST_STEPS,
    AtOnce,
    Count,
    Natural,
    NotNegative,
    Positive,
    Rank,
    Seed,
    check_names,
    finite_weights,
    group,
    typed,
    whole_number,
)

if TYPE_CHECKING:
    from hypernoise.generators.diffusion import DiffusionGenerator
    from hypernoise.noise.lora import LoRANoise
    from hypernoise.noise.spectral import SpectralNoise
    from hypernoise.rewards.base import RewardSettings


LONGEST = 2**18  # bytes of a recipe
MOST_DIMENSIONS = 256  # for which the whole Jacobian is built at every step


@dataclass(frozen=True)
class Lipschitz:
    """Limits the Lipschitz constant of the residual, so that ½‖f‖² approximates the whole KL."""

    mode: Literal["free", "penalty", "clamp"] = "free"
    """free: no limit; penalty: keeps the residual's Lipschitz constant near the bound; clamp: below it."""
    bound: Positive = 0.5
    """The limit of the Lipschitz constant; below 1 the KL term can be trusted."""
    weight: NotNegative = 100.0
    """Weight of the penalty on the squared excess over the bound."""

    def __post_init__(self) -> None:
        typed(self, Lipschitz, "lipschitz.")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. One step is one optimiser update."""

    learning_rate: Positive = 1e-3
    """Learning rate after warm-up."""
    max_train_steps: Count = 1000
    """Number of optimiser updates."""
    train_batch_size: AtOnce = 16
    """Samples per update, over all processes and accumulation steps."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches that a batch is split into to save memory; must divide train_batch_size."""
    lr_scheduler: Literal["constant", "cosine", "linear"] = "constant"
    """cosine and linear decay to 0 over the run."""
    lr_warmup_steps: Natural = 20
    """Updates over which the learning rate rises from 0."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd uses momentum 0.9, as published for SD-Turbo and SANA-Sprint."""
    adam_weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    sample_clip: NotNegative = 0.0
    """Clips the norm of each sample's reward gradient at its improved noise, for rewards with a few huge gradients; 0:
    no clipping. Clipping changes the paper's objective, but not the direction of a sample's gradient."""
    one_noise_per_step: bool = False
    """All samples of an update, in all processes, start from one noise, as in the paper authors' training."""
    kl_weight: NotNegative = 1.0
    """Weight of ½‖f‖², summed over the noise's dimensions: the α of p*(x) ∝ p(x)·exp(r/α)."""
    kl_term: Literal["l2", "exact"] = "l2"
    """l2: ½‖f‖², as published. exact: the whole KL from each sample's Jacobian, one backward pass per dimension, for
    noise of up to 256 dimensions. A spectral noise network's KL is always exact."""
    kl_limit: NotNegative = 0.5
    """The run stops when ½‖f‖² exceeds this many nats per noise dimension; at 0.5 the residual is as long as the
    noise. Noises of fewer than 64 dimensions count as 64. 0: never."""
    clipping_limit: NotNegative = 0.5
    """The run stops when the share of pixel values that are exactly 0 or 1 has risen by this much; 0: never."""
    num_inference_steps: int | tuple[int, ...] = 1
    """Denoiser calls per training picture; given several numbers, each update picks one."""
    checkpointing_steps: Count = 100
    """Updates between checkpoints."""
    checkpoints_total_limit: Count = 2
    """Number of newest checkpoints to keep."""
    validation_steps: Count = 10
    """Updates between measurements of the validation reward, and between pictures of validation_prompts."""
    validation_prompts: tuple[str, ...] = ()
    """Prompts drawn every validation_steps from the same noises, plain above improved."""
    patience: Natural = 0
    """Stop early when the validation reward's mean over this many readings has fallen from its best while the trained
    reward's has not. 0: never."""
    diagnostics: tuple[Literal["lipschitz", "kl"], ...] = ()
    """lipschitz, kl: measured at a few fixed noises every diagnostics_steps, written to metrics.jsonl."""
    diagnostics_steps: Count = 50
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """tensorboard, trackio, wandb: trackers that receive the metrics in addition to metrics.jsonl."""
    seed: Seed = 0
    mixed_precision: MixedPrecision = "auto"
    """Precision of the frozen weights and autocast; trained weights are always fp32. no: fp32. auto: bf16 if the device
    has native bf16 units, else fp32."""
    lipschitz: Lipschitz = field(default_factory=Lipschitz)

    def __new__(cls, *values: Any, **named: Any) -> Self:
        check_names(cls, named)  # the nearest field instead of a TypeError
        return super().__new__(cls)

    def __post_init__(self) -> None:
        typed(self, TrainConfig)
        if not 1 <= len(self.inference_steps) <= MOST_STEPS:
            raise InputError(f"num_inference_steps must be 1 to {MOST_STEPS} numbers, not {len(self.inference_steps)}")
        for steps in self.inference_steps:
            whole_number(steps, "num_inference_steps", most=MOST_STEPS)
        if self.patience in (1, 2):
            raise InputError(f"patience must be 0 (never stop early) or at least 3 readings, not {self.patience}")
        self.samples_per_round()

    def samples_per_round(self, processes: int = 1) -> int:
        """Samples per process and forward pass. Raises InputError naming the next valid train_batch_size."""
        size, rounds = self.train_batch_size, self.gradient_accumulation_steps
        parts = processes * rounds
        if size % parts:
            raise InputError(
                f"train_batch_size {size} must be a multiple of {parts} ({processes} processes x "
                f"gradient_accumulation_steps {rounds}); the next that fits is {size - size % parts + parts}"
            )
        return size // parts

    @property
    def inference_steps(self) -> tuple[int, ...]:
        """The numbers of denoiser calls that updates draw from."""
        steps = self.num_inference_steps
        return (steps,) if isinstance(steps, int) else tuple(steps)


FREE = {  # fields that do not affect a run's numbers: they may change on resume
    *("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "validation_prompts", "patience"),
    *("diagnostics", "diagnostics_steps", "report_to", "kl_limit", "clipping_limit"),
}


def recognised(config: TrainConfig) -> dict[str, Any]:
    """The settings that determine a run's numbers."""
    values = {own.name: getattr(config, own.name) for own in dataclasses.fields(TrainConfig) if own.name not in FREE}
    return {name: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for name, v in values.items()}  # type: ignore[arg-type]


@dataclass(frozen=True)
class LoRA:
    """The noise network: a LoRA on the denoiser."""

    rank: Rank = 16
    alpha: Positive = 32.0
    """The LoRA update is scaled by alpha / rank."""
    layers: tuple[str, ...] = ()
    """Layers of the denoiser that get a LoRA, including the output layer; without-depthwise: every Linear and Conv
    layer except depthwise convolutions; none named: every Linear and Conv layer."""
    init: Literal["kaiming", "gaussian"] = "kaiming"
    """Initialisation of the LoRA's A matrices. gaussian: N(0, 1/rank²), as in the paper authors' code."""

    def __post_init__(self) -> None:
        typed(self, LoRA, "lora.")


@dataclass(frozen=True)
class Recipe(TrainConfig, Loading):
    """A complete training run; a recipe file may set any of these fields."""

    prompts: dict[str, float] = field(default_factory=lambda: {"scenes": 1.0})
    """Prompt files (txt, json, jsonl, csv, tsv), or "scenes" for the embedded world's training captions; several are
    sampled in proportion to their weights."""
    rewards: dict[str, float] = field(default_factory=lambda: {"redness": 1.0})
    """Rewards or ensembles to train on, and their weights in the sum."""
    validation_reward: dict[str, float] = field(default_factory=dict)
    """Rewards that are measured but not trained on, to detect reward hacking."""
    reward_dtype: Literal["float32", "bfloat16"] = "float32"
    """Weight precision of reward networks; their scores are fp32."""
    reward_checkpointing: bool = False
    """Recompute the rewards' activations for the gradient: less memory, more time."""
    noise_network: Literal["lora", "spectral"] = "lora"
    """lora: the paper's, on every layer of the denoiser. spectral: a small separate network on the noise's low
    frequencies, with an exact KL."""
    spectral: Spectral = field(default_factory=Spectral)
    lora: LoRA = field(default_factory=LoRA)
    push_to_hub: bool = False
    """Upload the adapter at the end, with a model card of measured results."""
    hub_model_id: str = ""
    """Hub repository to upload to: owner/name."""

    def __post_init__(self) -> None:
        typed(self, Recipe)
        TrainConfig.__post_init__(self)
        Loading.__post_init__(self)
        finite_weights(self.rewards)
        finite_weights(self.validation_reward)
        for name in self.rewards:
            if name.startswith(("http://", "https://")):
                raise InputError(
                    f"reward {name!r} is an endpoint, which gives no gradient: name it in validation_reward"
                )
        for source, weight in self.prompts.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise InputError(f"the weight of prompts {source!r} must be a positive number, not {weight}")
        if not self.prompts:
            raise InputError('prompts is empty; for example prompts: "scenes", or prompts: {a.txt: 3, b.jsonl: 1}')
        if not self.rewards:
            raise InputError("rewards is empty; for example rewards: {redness: 1.0}")
        if self.patience and not self.validation_reward:
            raise InputError("patience needs a validation reward; for example validation_reward: {pickscore: 1.0}")

    def reward_settings(self) -> RewardSettings:
        """The settings that rewards run with."""
        from hypernoise.rewards.base import RewardSettings

        return RewardSettings(self.reward_dtype, self.reward_checkpointing)

    def build_network(self, generator: DiffusionGenerator) -> LoRANoise | SpectralNoise:
        """A new noise network on `generator`, with f = 0."""
        from hypernoise.noise.lora import LoRANoise
        from hypernoise.noise.spectral import spectral_noise

        if self.noise_network == "spectral":
            return spectral_noise(generator, self.spectral, seed=self.seed)
        settings = {**vars(self.lora), "layers": self.lora.layers or None}
        return LoRANoise(generator, seed=self.seed, **settings)


class _Reader(yaml.BaseLoader):
    """Reads scalars as text (`typed` converts them to numbers), and refuses duplicate keys."""

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        value.encode()  # a lone surrogate is a ValueError
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            ((twice, _),) = Counter(key.value for key, _ in node.value).most_common(1)
            raise yaml.MarkedYAMLError(problem=f"duplicate key {shown(twice)}", problem_mark=node.start_mark)
        return found


def read_recipe(file: str | Path) -> Recipe:
    """A recipe from a YAML file. Raises InputError naming the line, the field, or the nearest field."""
    text = read_text(file, f"recipe {file}", most=LONGEST)
    try:
        values = yaml.load(text, _Reader)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # too deep; no character
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"recipe {file} is not valid YAML{place}: {problem}") from error
    if not isinstance(values, dict):
        raise InputError(f"recipe {file} must hold fields such as 'generator: scenes'")
    try:
        return group(Recipe, values)
    except InputError as error:
        raise InputError(f"recipe {file}: {error}") from error
