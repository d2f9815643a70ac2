"""A training step against its bare compute, and against the published procedure: images per second and memory.

    python benchmarks/train_step.py --size tiny --rounds 2 --output runs/benchmark-train-step   # seconds
    python benchmarks/train_step.py --size small --rewards clip                                 # minutes on a CPU
    python benchmarks/train_step.py --full sd-turbo    # what a spectral network adds to a call at full size

Random weights, so nothing is downloaded. `ours` is `hypernoise.train` itself; `ours, saving` uses checkpointing and
decodes pictures one by one, `ours, bf16` keeps the frozen weights and products in bfloat16. `bare` makes the same
network calls in a minimal loop: noise network forward and backward, generator, decoder, reward, one optimiser step.
`published` follows the released procedure: prompts encoded every step, for the generator and for the reward,
adapters toggled through PEFT's layers, two passes for the gradient norm, a scan of every gradient for non-finite
values, metrics read back one by one. `attach / plain` compares an attached pipeline's call with a plain one's.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hypernoise.waiting import wait_passively

wait_passively()

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    EulerDiscreteScheduler,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model

from dev.scenes.networks import build_tokenizer
from hypernoise.commands.flags import parse
from hypernoise.files import write_json
from hypernoise.generators.diffusion import DiffusionGenerator, quiet, replaced
from hypernoise.generators.memory import NO_SAVING, Memory
from hypernoise.generators.registry import load_generator
from hypernoise.noise.draws import keyed_noise
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import spectral_noise
from hypernoise.objective import l2_kl, noise_objective
from hypernoise.pipeline import attach, disabled
from hypernoise.plan.smoke import random_generator
from hypernoise.prompts import prompts_of_step
from hypernoise.rewards.clip import ClipReward
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import train

PROMPTS = [
    f"{count} {color} {shape}" for count in ("a", "two") for color in ("red", "blue") for shape in ("ring", "cross")
]
SEEN = 3  # pictures after which steps are timed: by then every prompt is encoded
SAVING = Memory(gradient_checkpointing=True, decode_slice=1)
REWARD = {"redness": 20.0, "clip": 1.0}  # weights


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
    full: str = ""
    """Print what attaching a spectral noise network adds to a call of one picture instead: of a published generator,
    such as sd-turbo, at full size, with random weights and without its text encoders."""
    output: Path | None = None
    """Folder for summary.json."""


@dataclass(frozen=True)
class Way:
    run: Callable[[Benchmark, DiffusionGenerator, LoRANoise, WeightedSum], None]
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
        made = {name: build(config.size, Path(folder), way) for name, way in ways.items()}
        reward = reward_of(config, Path(folder))
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
        plain, attached = (build(config.size, Path(folder), Way(ours)) for _ in range(2))
        attach(attached.pipeline, LoRANoise(attached, rank=config.rank))
        for steps in (1, 4):
            seconds: dict[str, list[float]] = {"plain": [], "attached": []}
            for turn in range(config.rounds + 1):
                for name, generator in (("plain", plain), ("attached", attached)):
                    began = time.process_time()
                    draw: Any = generator.pipeline
                    size = {"height": generator.size[0], "width": generator.size[1], "output_type": "pt"}
                    draw(PROMPTS[: config.batch_size], **size, **generator.call(steps))
                    seconds[name] += [time.process_time() - began] if turn else []  # the first warms up the kernels
            ratios[steps] = statistics.median(seconds["attached"]) / statistics.median(seconds["plain"])
    return ratios


def full(config: Benchmark) -> None:
    """Calls of the real networks, and what attach adds to calls whose networks answer at once with what they said."""
    generator = random_generator(config.full, torch.device("cpu"), dtype=torch.float32)
    pipeline, denoiser, vae = generator.pipeline, generator.denoiser, generator.pipeline.vae
    given = generator.family.arguments(generator.encode(PROMPTS[:1]).tensors)
    given |= {**generator.call(generator.least_steps), "height": generator.size[0], "width": generator.size[1]}
    attach(pipeline, spectral_noise(generator, Spectral()))
    answers: dict[Any, Any] = {}
    seconds: dict[Any, float] = {}

    def keeping(method: Any) -> Any:
        def kept(*arguments: Any, **keywords: Any) -> Any:
            began = time.process_time()
            answers[method] = method(*arguments, **keywords)
            seconds[method] = time.process_time() - began
            return answers[method]

        return kept

    def call(attached: bool) -> float:
        began = time.process_time()
        with nullcontext() if attached else disabled(pipeline), quiet(pipeline):
            pipeline(**given, output_type="pt")
        return time.process_time() - began

    forward, decode = denoiser.forward, vae.decode
    with replaced(denoiser, {"forward": keeping(forward)}), replaced(vae, {"decode": keeping(decode)}):
        plain, attached = call(False), call(True)
    again = {method: lambda *_, method=method, **__: answers[method] for method in (forward, decode)}
    with replaced(denoiser, {"forward": again[forward]}), replaced(vae, {"decode": again[decode]}):
        call(True)
        pairs = [(call(False), call(True)) for _ in range(10 * config.rounds)]
    added = statistics.median(after - before for before, after in pairs)
    print(f"{config.full}, {generator.size[0]} px, one step: plain {plain:.2f} s, attached {attached:.2f} s")
    print(f"denoiser {seconds[forward]:.2f} s, decoder {seconds[decode]:.2f} s")
    print(f"attach adds {1000 * added:.1f} ms, {added / plain:.3%} of the plain call")


def parts(config: Benchmark) -> None:
    with tempfile.TemporaryDirectory() as folder:
        generator, reward = build(config.size, Path(folder), Way(ours)), reward_of(config, Path(folder))
        network = LoRANoise(generator, rank=config.rank)
        parameters = network.trainable_parameters()
        texts, noise = batch(config, generator, 0)
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
        way.run(config, generator, network, reward)
    steps = [after - before for before, after in zip(times[SEEN - 1 :], times[SEEN:], strict=False)]
    return steps, torch.cat([p.detach().flatten() for p in network.trainable_parameters()]) - start


def alone(config: Benchmark, way: Way) -> tuple[float, float]:
    """Peak resident size in MiB of a process that runs this variant, and the rise after building the networks."""
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            generator, reward = build(config.size, Path(folder), way), reward_of(config, Path(folder))
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


def steps_of(config: Benchmark) -> int:
    return config.steps + SEEN


def settings_of(config: Benchmark, dtype: torch.dtype) -> TrainConfig:
    mixed: Any = "bf16" if dtype == torch.bfloat16 else "no"
    return TrainConfig(
        max_train_steps=steps_of(config),
        train_batch_size=config.batch_size,
        lr_warmup_steps=0,
        mixed_precision=mixed,
        kl_limit=0,
        clipping_limit=0,
    )


def ours(config: Benchmark, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum) -> None:
    train(generator, network, reward, PROMPTS, settings_of(config, generator.dtype), progress=False)


def bare(config: Benchmark, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum) -> None:
    parameters = network.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    known = {prompt: generator.encode([prompt]) for prompt in PROMPTS}
    for step in range(steps_of(config)):
        texts, noise = batch(config, generator, step)
        condition = joined([known[text] for text in texts])
        residual = network(noise, condition)
        rewards = reward(generator.sample(noise + residual, condition), texts)
        noise_objective(l2_kl(residual), rewards, 1.0).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def published(config: Benchmark, generator: DiffusionGenerator, network: LoRANoise, reward: WeightedSum) -> None:
    parameters = network.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    with in_peft(network) as toggle:
        for step in range(steps_of(config)):
            texts, noise = batch(config, generator, step)
            forget(reward)
            condition = generator.encode(texts)
            toggle(True)
            residual = generator.denoise_first(noise, condition)
            toggle(False)
            rewards = reward(generator.sample(noise + residual, condition), texts)
            loss = noise_objective(l2_kl(residual), rewards, 1.0).mean()
            toggle(True)
            loss.backward()
            toggle(False)
            scan(parameters)
            _ = norms(parameters), loss.item(), rewards.mean().item(), residual.square().mean().item()
            optimizer.step()
            optimizer.zero_grad()


def scan(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        assert parameter.grad is not None
        if not torch.isfinite(parameter.grad).all():
            raise RuntimeError("not finite")


def norms(parameters: list[torch.nn.Parameter]) -> float:
    """The norm of all gradients, once to report and once to clip."""
    told = sum(p.grad.norm().item() ** 2 for p in parameters if p.grad is not None) ** 0.5
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    return told


def forget(reward: WeightedSum) -> None:
    """The reward's cache of prompts."""
    for member in reward.members.values():
        if isinstance(member, ClipReward):
            member.texts.clear()


@contextmanager
def in_peft(network: LoRANoise) -> Iterator[Callable[[bool], None]]:
    """The same weights in PEFT's layers, and the function that toggles them: PEFT's call on each, which also sets
    requires_grad."""
    denoiser: Any = network.generator.denoiser
    bare: dict[str, Any] = {name: denoiser.get_submodule(name) for name in network.layers}
    grouped = [(layer, layer.groups) for layer in bare.values() if getattr(layer, "groups", 1) > 1]
    for layer, _ in grouped:
        layer.groups = 1  # PEFT refuses a rank not divisible by the groups
    rank, alpha = network.settings["rank"], network.settings["alpha"]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(bare)), denoiser, "f")
    for layer, groups in grouped:
        layer.groups = groups
    layers: list[Any] = [denoiser.get_submodule(name) for name in bare]
    for layer, update in zip(layers, network.layers.values(), strict=True):
        layer.lora_A["f"].weight, layer.lora_B["f"].weight = update.lora_A.weight, update.lora_B.weight
    on = [True]
    hook = bare[network.output_layer].register_forward_hook(
        lambda module, inputs, output: torch.zeros_like(output) if on[0] else output
    )

    def toggle(active: bool) -> None:
        on[0] = active
        for layer in layers:
            layer.enable_adapters(active)
        for parameter in network.trainable_parameters():
            parameter.requires_grad_(True)

    yield toggle
    hook.remove()
    for name, layer in bare.items():
        parent, _, attribute = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), attribute, layer)
    del denoiser.peft_config


def batch(config: Benchmark, generator: DiffusionGenerator, step: int) -> tuple[list[str], torch.Tensor]:
    texts = prompts_of_step(PROMPTS, step, config.batch_size, 0)
    return texts, keyed_noise(generator.noise_shape, seed=0, step=step, samples=range(config.batch_size))


def joined(rows: list[Any]) -> Any:
    return type(rows[0])({name: torch.cat([row.tensors[name] for row in rows]) for name in rows[0].tensors})


def reward_of(config: Benchmark, folder: Path) -> WeightedSum:
    weights = {config.rewards: REWARD[config.rewards]}
    if config.rewards == "redness":
        return WeightedSum(weights)
    tokenizer = build_tokenizer(folder / "reward")
    torch.manual_seed(1)
    size = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**size, **marks, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    shape: dict[str, Any] = {"text_config": text, "vision_config": {**size, "patch_size": 32, "image_size": 224}}
    return WeightedSum(weights, {"clip": ClipReward("clip", CLIPModel(CLIPConfig(**shape)), tokenizer)})


def build(size: str, folder: Path, way: Way) -> DiffusionGenerator:
    """A frozen generator, the same for every variant except memory options and precision."""
    if size == "scenes":
        return load_generator("scenes", device="cpu", memory=way.memory, dtype=way.dtype)
    torch.manual_seed(0)
    pipeline, call = {"tiny": stable_diffusion, "small": sana}[size](folder)
    pipeline.set_progress_bar_config(disable=True)
    if way.dtype != torch.float32:
        pipeline.to(way.dtype)
    return DiffusionGenerator(pipeline, name=size, memory=way.memory, call=call)


def sana(folder: Path) -> tuple[Any, dict[str, Any]]:
    """SANA-Sprint's layout at 256 px. The text encoder relates to the transformer like Gemma-2-2B to the 0.6 B one, and
    the prompt's tokens to the picture's like 300 to 1024."""
    tokenizer = build_tokenizer(folder / "tokenizer")
    tokenizer.model_max_length = 600
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    gemma = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=128,
    )
    stages = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    vae = AutoencoderDC(
        latent_channels=32,
        attention_head_dim=16,
        encoder_block_types=stages,
        decoder_block_types=stages,
        encoder_block_out_channels=(16, 32, 64, 64, 128, 128),
        decoder_block_out_channels=(16, 32, 64, 64, 128, 128),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_layers=6,
        num_attention_heads=8,
        attention_head_dim=32,
        num_cross_attention_heads=8,
        cross_attention_head_dim=32,
        cross_attention_dim=256,
        caption_channels=512,
        patch_size=1,
        sample_size=8,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
        timestep_scale=1000.0,
    )
    pipeline = SanaSprintPipeline(
        tokenizer=tokenizer, text_encoder=Gemma2Model(gemma), vae=vae, transformer=transformer, scheduler=SCMScheduler()
    )
    return pipeline, {"max_sequence_length": 20}


def stable_diffusion(folder: Path) -> tuple[Any, dict[str, Any]]:
    """SD-Turbo's layout at 16 px."""
    tokenizer = build_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing", steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    return pipeline, {}


if __name__ == "__main__":
    asked = parse(Benchmark)
    (full if asked.full else parts if asked.parts else main)(asked)
