"""A training step against its bare compute, and against the published procedure: images per second and memory.

    python -m benchmarks.train_step --size tiny --rounds 2 --output runs/benchmark-train-step   # seconds
    python -m benchmarks.train_step --size small --rewards clip                                 # minutes on a CPU

Random weights, so nothing is downloaded. `ours` is `hypernoise.train` itself; `ours, saving` uses checkpointing and
decodes pictures one by one, `ours, bf16` keeps the frozen weights and products in bfloat16. `bare` and `published` are
in `benchmarks.steps`. `attach / plain` compares an attached pipeline's call with a plain one's.

Steps are timed after the first epoch, when every prompt was seen. Memory is
the peak resident size of a process that does nothing else, and the part allocated after the networks were built.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hypernoise.quiet import wait_passively

wait_passively()

import torch

from benchmarks.networks import PROMPTS, build, reward_of
from benchmarks.steps import bare, batch, forget, in_peft, norms, published, scan
from hypernoise.commands.flags import parse
from hypernoise.files import write_json
from hypernoise.generators.diffusion import DiffusionGenerator, replaced
from hypernoise.generators.memory import NO_SAVING, Memory
from hypernoise.noise.lora import LoRANoise
from hypernoise.pipeline import attach
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import train

SEEN = 3  # pictures after which steps are timed: by then every prompt is encoded
SAVING = Memory(gradient_checkpointing=True, decode_slice=1)


@dataclass(frozen=True)
class Benchmark:
    size: Literal["tiny", "small", "scenes"] = "tiny"
    """tiny: Stable Diffusion's classes; small: SANA-Sprint's, of 7 M parameters and 256 px; both with random weights.
    scenes: the embedded generator."""
    rewards: Literal["redness", "clip"] = "redness"
    """clip: a CLIP with random weights, ViT-B/32's layout at a third of its width."""
    batch_size: int = 4
    rank: int = 16
    steps: int = 4
    """Timed steps per turn."""
    rounds: int = 5
    """Turns of each variant, alternating."""
    parts: bool = False
    """Print the parts of a step instead: seconds of each part alone, of `ours` and of what `published` adds."""
    output: Path | None = None
    """Folder for summary.json."""


@dataclass(frozen=True)
class Way:
    """A variant: `run` takes the number of steps and the batch size."""

    run: Callable[[int, int, DiffusionGenerator, LoRANoise, WeightedSum], None]
    memory: Memory = NO_SAVING
    dtype: torch.dtype = torch.float32


def main(config: Benchmark) -> None:
    ways = {
        "ours": Way(ours),
        "bare": Way(bare),
        "published": Way(published),
        "ours, saving": Way(ours, SAVING),
        "ours, bf16": Way(ours, dtype=torch.bfloat16),
    }
    peaks = {name: alone(config, way) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    moved: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {name: build(config.size, Path(folder), way.memory, way.dtype) for name, way in ways.items()}
        reward = reward_of(config.rewards, Path(folder))
        for _ in range(config.rounds):
            for name, way in ways.items():
                spent, moved[name] = turn(config, way, made[name], reward)
                seconds[name] += spent
    for name in set(ways) - {"ours, bf16"}:
        assert torch.dist(moved[name], moved["ours"]) < 0.01 * moved["ours"].norm(), f"{name} trains to other weights"
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    denoiser, size = made["ours"].denoiser, made["ours"].size[0]
    parameters = sum(p.numel() for p in denoiser.parameters())
    print(
        f"{config.size}, {parameters / 1e6:.2f} M parameters, {size} px, batch {config.batch_size}, "
        f"rank {config.rank}, {config.rewards}, {torch.get_num_threads()} thread(s)"
    )
    drawn = attached_over_plain(config)
    print("attach / plain: " + ", ".join(f"{ratio:.3f} at {steps} step(s)" for steps, ratio in drawn.items()))
    print(f"{'way':<14}{'s per step':>12}{'images/s':>11}{'ours / it':>11}{'peak MiB':>11}{'of training':>13}")
    rows = []
    for name, median in medians.items():
        ratio, (peak, training) = medians["ours"] / median, peaks[name]
        rows.append({"way": name, "seconds_per_step": median, "images_per_second": config.batch_size / median})
        rows[-1] |= {"ours_over_it": ratio, "peak_mib": peak, "training_mib": training, "all_seconds": seconds[name]}
        print(
            f"{name:<14}{median:>12.4f}{config.batch_size / median:>11.2f}{ratio:>11.3f}{peak:>11.0f}{training:>13.0f}"
        )
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in dataclasses.asdict(config).items()}
        write_json(
            config.output / "summary.json",
            {**settings, "parameters": parameters, "attached_over_plain": drawn, "results": rows},
        )


def attached_over_plain(config: Benchmark) -> dict[int, float]:
    """By inference steps, how much longer an attached pipeline's call takes than the plain one's, alternating."""
    ratios: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain, attached = (build(config.size, Path(folder), NO_SAVING, torch.float32) for _ in range(2))
        attach(attached.pipeline, LoRANoise(attached, rank=config.rank))
        for steps in (1, 4):
            seconds: dict[str, list[float]] = {"plain": [], "attached": []}
            for turn in range(config.rounds + 1):
                for name, generator in (("plain", plain), ("attached", attached)):
                    began = time.process_time()
                    draw: Any = generator.pipeline
                    draw(PROMPTS[: config.batch_size], output_type="pt", **generator.call(steps))
                    seconds[name] += [time.process_time() - began] if turn else []  # the first warms up the kernels
            ratios[steps] = statistics.median(seconds["attached"]) / statistics.median(seconds["plain"])
    return ratios


def parts(config: Benchmark) -> None:
    with tempfile.TemporaryDirectory() as folder:
        generator = build(config.size, Path(folder), NO_SAVING, torch.float32)
        reward = reward_of(config.rewards, Path(folder))
        network = LoRANoise(generator, rank=config.rank)
        parameters = network.trainable_parameters()
        texts, noise = batch(config.batch_size, generator, 0)
        condition = generator.encode(texts)
        pixels = torch.rand(config.batch_size, 3, *generator.size)

        def back(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> Callable[[], object]:
            """Forward, and backward to the input."""
            return lambda: function(values.clone().requires_grad_()).sum().backward()

        def rewarded(seen: torch.Tensor) -> torch.Tensor:
            return reward(seen, texts)

        def with_text(seen: torch.Tensor) -> torch.Tensor:
            forget(reward)
            return reward(seen, texts)

        measured: dict[str, Callable[[], object]] = {
            "noise network": lambda: network(noise, condition).square().sum().backward(),
            "generator to its latents": back(lambda z: generator.latents(z, condition), noise),
            "the same with the decoder": back(lambda z: generator.sample(z, condition), noise),
            "reward": back(rewarded, pixels),
            "the same with its text": back(with_text, pixels),
            "prompts encoded": lambda: generator.encode(texts),
            "gradients' norm, once": lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0),
            "two norms and a scan": lambda: (norms(parameters), scan(parameters)),
            "adapters toggled by PEFT": lambda: [toggle(on) for on in (True, False, True, False)],
        }
        for name, part in measured.items():
            with in_peft(network) if name.startswith("adapters") else nullcontext() as toggle:
                part()
                began = time.process_time()
                for _ in range(config.rounds):
                    part()
            print(f"{name:<28}{(time.process_time() - began) / config.rounds:>9.4f}")


def turn(
    config: Benchmark, way: Way, generator: DiffusionGenerator, reward: WeightedSum
) -> tuple[list[float], torch.Tensor]:
    """A short run: seconds of each timed step, and the change of the weights."""
    network = LoRANoise(generator, rank=config.rank)
    start = torch.cat([p.detach().flatten().clone() for p in network.trainable_parameters()])
    times: list[float] = []  # CPU seconds, so that other processes count less
    sample = generator.sample

    def timed(*arguments: Any, **keywords: Any) -> torch.Tensor:
        times.append(time.process_time())
        return sample(*arguments, **keywords)

    with replaced(generator, {"sample": timed}):
        way.run(config.steps + SEEN, config.batch_size, generator, network, reward)
    steps = [after - before for before, after in zip(times[SEEN - 1 :], times[SEEN:], strict=False)]
    return steps, torch.cat([p.detach().flatten() for p in network.trainable_parameters()]) - start


def alone(config: Benchmark, way: Way) -> tuple[float, float]:
    """Peak resident size in MiB of a process that runs this variant, and the rise after building the networks."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            generator = build(config.size, Path(folder), way.memory, way.dtype)
            reward = reward_of(config.rewards, Path(folder))
            built = float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
            turn(dataclasses.replace(config, steps=1), way, generator, reward)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        send.send((peak, peak - built))

    process = fork.Process(target=run)
    process.start()
    send.close()
    found = receive.recv()
    process.join()
    return found


def ours(steps: int, batch_size: int, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum) -> None:
    config = TrainConfig(
        max_train_steps=steps,
        train_batch_size=batch_size,
        lr_warmup_steps=0,
        mixed_precision="bf16" if generator.dtype == torch.bfloat16 else "no",
        kl_limit=0,
        clipping_limit=0,
    )
    train(generator, network, reward, PROMPTS, config, progress=False)


if __name__ == "__main__":
    asked = parse(Benchmark)
    (parts if asked.parts else main)(asked)
