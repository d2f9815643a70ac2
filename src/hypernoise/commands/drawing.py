"""Pictures for a benchmark: any methods on its prompts, drawn, kept, shared and resumed by `compare`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hypernoise.commands.generator import WithGenerator
from hypernoise.errors import InputError, TooLongError
from hypernoise.training.config import Weights


@dataclass(frozen=True)
class Drawing(WithGenerator):
    """The flags of every command that draws a benchmark's prompts."""

    count: int = 0
    """How many of the prompts, from the first; 0: all."""
    methods: tuple[str, ...] = ("plain",)
    """As in hypernoise compare; plain comes first whether named or not."""
    adapter: tuple[str, ...] = ()
    """Adapter directories, one per training run, for hypernoise (which is then drawn too) and hypernoise-reno."""
    finetuned: tuple[str, ...] = ()
    """Directories of fine-tuned LoRAs, for finetune (which is then drawn too)."""
    noises: int = 4
    """Pictures per prompt."""
    steps: tuple[int, ...] = (1,)
    """Denoiser calls per picture."""
    rewards: Weights = field(default_factory=dict)
    """What methods that search do so by, and what is reported beside the score."""
    report: bool = False
    """Write report.html too: tables, curves, and pictures side by side to filter, in one file that needs no other."""
    long_prompts: Literal["refuse", "cut"] = "refuse"
    """Prompts beyond the generator's text encoder: refuse them, or draw (and reward) the words that fit."""
    batch_size: int = 16
    seed: int = 0
    shard: str = ""
    """k/n: this process does every n-th part of the work from the k-th on; all write to the same --output. Empty: as
    torchrun or accelerate launch has it, else all."""
    output: Path = Path("runs/drawn")


def made(arguments: Drawing) -> tuple[Any, list[Any], Any]:
    """Generator, methods (plain first) and reward, None if none is named.

    Raises:
        InputError: what does not fit together, before anything is drawn.
    """
    from hypernoise.methods.finetune import FineTune
    from hypernoise.methods.hypernoise import HyperNoise
    from hypernoise.methods.plain import Plain
    from hypernoise.methods.registry import Given, make_methods
    from hypernoise.rewards.ensemble import WeightedSum

    methods = make_methods(named(arguments), Given(arguments.adapter, arguments.finetuned))
    searching = [method.name for method in methods if not isinstance(method, Plain | HyperNoise | FineTune)]
    if searching and not arguments.rewards:
        raise InputError(f"{searching[0]} searches by a reward: name one, such as --rewards pickscore")
    reward = WeightedSum(arguments.rewards) if arguments.rewards else None
    generator = arguments.load()
    check_methods(generator, methods, arguments.steps)
    return generator, methods, reward


def named(arguments: Any) -> list[str]:
    """Names of the methods, plain first; those that --adapter and --finetuned are for, whether named or not."""
    more = [name for name, folders in (("hypernoise", arguments.adapter), ("finetune", arguments.finetuned)) if folders]
    return list(dict.fromkeys(["plain", *arguments.methods, *more]))


def check_methods(generator: Any, methods: list[Any], steps: tuple[int, ...]) -> None:
    """Looks at all that is to be drawn before the first takes minutes.

    Raises:
        InputError: the generator does not draw in so many steps, or an adapter is not its own.
    """
    for number in steps:
        generator.check_steps(number)
    for method in methods:
        adapter = getattr(getattr(method, "start", None) or method, "adapter", None)
        if adapter is not None:
            adapter.on(generator)


def fitting(generator: Any, prompts: list[str], long_prompts: str) -> tuple[list[str], int]:
    """The prompts as they can be drawn, and how many had to be cut for it, which is also said on stderr.

    Raises:
        InputError: one is too long and is not to be cut, or is empty.
    """
    fit = generator.cut_prompts(prompts) if long_prompts == "cut" else prompts
    try:
        generator.check_prompts(fit)
    except TooLongError as error:
        hint = "" if long_prompts == "cut" else ", or have such prompts cut with --long-prompts cut"
        raise InputError(f"{error}{hint}") from error
    number = sum(before != after for before, after in zip(prompts, fit, strict=True))
    if number:
        of = f"{number} of {len(prompts)} prompts are longer than the generator's text encoder"
        print(f"{of}: only their first words are drawn", file=sys.stderr)
    return fit, number


def draw(
    arguments: Drawing, generator: Any, methods: list[Any], prompts: list[str], reward: Any, shard: tuple[int, int]
) -> Any:
    """The `Comparison` of the methods; where nothing is rewarded, its rows have no reward."""
    from tqdm import tqdm

    from hypernoise.evaluation.engine import compare
    from hypernoise.files import output_folder

    output_folder(arguments.output)
    arguments.tell_precision()
    generator.encode_ahead(prompts)
    total = len(methods) * len(arguments.steps) * len(prompts) * arguments.noises
    with tqdm(total=-(-total // shard[1]), desc="drawing", unit="picture") as bar:
        drawn = compare(
            generator,
            methods,
            prompts,
            reward or no_reward,
            steps=arguments.steps,
            noises=arguments.noises,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            output=arguments.output,
            shard=shard,
            progress=bar.update,
        )
    if reward is None:
        for row in drawn.rows:
            row.update(reward=None, reward_gain=None, reward_gain_ci95=None)
    return drawn


def no_reward(pixels: Any, prompts: list[str]) -> Any:
    """Nothing is rewarded."""
    return pixels.new_zeros(len(pixels))


def check_numbers(arguments: Drawing) -> None:
    """Raises InputError for numbers that no drawing can have, told as flags."""
    from hypernoise.errors import at_least_one

    at_least_one(arguments, "noises", "batch_size", flags=True)
    if arguments.count < 0:
        raise InputError(f"--count must be 0 (all) or more, not {arguments.count}")
    if not arguments.steps or min(arguments.steps) < 1:
        raise InputError(f"--steps takes numbers from 1, such as 1 2 4, not {list(arguments.steps)}")
    if not 0 <= arguments.seed < 2**63:
        raise InputError(f"--seed must be from 0 to 2**63 - 1, not {arguments.seed}")
