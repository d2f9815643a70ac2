"""The human-preference ensemble against its members run one after the other, each separately: time and memory.

    python -m benchmarks.rewards --size small --output runs/benchmark-rewards     # a CPU, a minute
    python -m benchmarks.rewards --size full --dtype bfloat16                     # a GPU with 12 GB free

Weights are random, so nothing is downloaded; sizes, layers and pictures are the released ones at `full`, and a
fraction at `small`. One after the other, every member encodes the prompts at every call, like separate packages. Both
must give the same scores and the same gradient.
"""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hypernoise.quiet import wait_passively

wait_passively()

import torch
from transformers import CLIPConfig, CLIPModel

from dev.scenes.networks import build_tokenizer
from hypernoise.commands.flags import parse
from hypernoise.files import write_json
from hypernoise.generators.registry import pick_device
from hypernoise.rewards import image_reward
from hypernoise.rewards.base import RewardSettings
from hypernoise.rewards.clip import CLIPS, H14, ClipReward
from hypernoise.rewards.ensemble import ENSEMBLES, WeightedSum
from hypernoise.rewards.image_reward import ImageReward, ImageRewardNetwork
from hypernoise.rewards.network import prepared

WEIGHTS = ENSEMBLES["human-preference"]
PROMPTS = ["a red ring left of a blue square", "three green crosses", "a black diamond and a yellow circle", "a ring"]


@dataclass(frozen=True)
class Benchmark:
    size: Literal["small", "full"] = "small"
    """small: a fifth of the widths and a quarter of the layers."""
    batch_size: int = 4
    picture: int = 512
    """Height and width of the pictures."""
    rounds: int = 5
    """Timed calls of each, alternating."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    output: Path | None = None
    """Folder for summary.json."""


def main(config: Benchmark) -> None:
    device = pick_device(config.device)
    members = build(config, RewardSettings(dtype=config.dtype), device)
    ensemble = WeightedSum(WEIGHTS, members)
    kept = {name: checkpointed(member) for name, member in members.items()}
    saving = WeightedSum(WEIGHTS, kept)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(config.batch_size)]
    draw = torch.Generator().manual_seed(0)
    pictures = torch.rand(config.batch_size, 3, config.picture, config.picture, generator=draw).to(device)

    ways: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "one after the other": lambda pixels: one_after_the_other(members, pixels, prompts),
        "ensemble": lambda pixels: at_once(ensemble, pixels, prompts),
        "ensemble, recomputing": lambda pixels: at_once(saving, pixels, prompts),
    }
    expected = None
    for name, way in ways.items():  # once to warm up, and to compare
        pixels = pictures.clone().requires_grad_()
        found = way(pixels), pixels.grad
        expected = expected or found
        for ours, theirs in zip(found, expected, strict=True):
            close = 1e-4 if config.dtype == "float32" else 3e-2
            assert (ours - theirs).norm() <= close * theirs.norm(), f"{name} gives other numbers"  # type: ignore[union-attr]

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config.rounds):
        for name, way in ways.items():  # alternating, so that all see the same load
            seconds[name].append(timed(way, pictures, device))
    kept_bytes = {
        "one after the other": max(activations(member, pictures, prompts) for member in members.values()),
        "ensemble": activations(ensemble, pictures, prompts),
        "ensemble, recomputing": activations(saving, pictures, prompts),
    }
    rows = [
        {
            "way": name,
            "median_seconds": statistics.median(seconds[name]),
            "fastest_seconds": min(seconds[name]),
            "activations_mib": kept_bytes[name] / 2**20,
        }
        for name in ways
    ]
    hits = 1e3 * min(hit(members, prompts) for _ in range(20))
    print(f"{config.batch_size} pictures of {config.picture} px, {config.size}, {config.dtype}, {machine(device)}")
    print(f"{'forward + backward':<24}{'median s':>10}{'fastest s':>11}{'times faster':>14}{'activations':>14}")
    for row in rows:
        faster = rows[0]["fastest_seconds"] / row["fastest_seconds"]
        print(
            f"{row['way']:<24}{row['median_seconds']:>10.3f}{row['fastest_seconds']:>11.3f}{faster:>14.2f}"
            f"{row['activations_mib']:>10.0f} MiB"
        )
    print(f"text features of {config.batch_size} prompts from the cache, all members: {hits:.3f} ms")
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(asdict(config), default=str))
        summary = {**settings, "machine": machine(device), "cache_hit_ms": hits, "results": rows}
        write_json(config.output / "summary.json", summary)


def build(config: Benchmark, settings: RewardSettings, device: torch.device) -> dict[str, Any]:
    """The four members with random weights, on `device`."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = build_tokenizer(Path(folder))
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    clip, vision, text = H14, image_reward.VISION, image_reward.TEXT
    if config.size == "small":
        clip = {
            "projection_dim": 1024 // 4,
            "text_config": {**H14["text_config"], **shrunk(1024 // 4, 6), "projection_dim": 256},
            "vision_config": {**H14["vision_config"], **shrunk(1280 // 5, 8), "projection_dim": 256},
        }
        vision, text = {**vision, **shrunk(256, 6)}, {**text, **shrunk(192, 3), "encoder_hidden_size": 256}
    clip = {**clip, "text_config": {**clip["text_config"], **marks}}
    members: dict[str, Any] = {}
    for seed, name in enumerate(WEIGHTS):
        torch.manual_seed(seed)
        with device:
            if name == "imagereward":
                members[name] = ImageReward(name, ImageRewardNetwork(vision, text), tokenizer, settings)
            else:
                row = CLIPS[name]
                model = CLIPModel(CLIPConfig(**clip))
                members[name] = ClipReward(name, model, tokenizer, settings, fit=row.fit, scale=row.scale)
    return members


def shrunk(width: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
    }


def checkpointed(member: Any) -> Any:
    """The same weights, with activations recomputed for the gradient."""
    ours = copy.copy(member)
    ours.network = copy.deepcopy(member.network)
    prepared(ours.network, RewardSettings(dtype=member.settings.dtype, checkpointing=True))
    return ours


def one_after_the_other(members: dict[str, Any], pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    total = torch.zeros(len(prompts), device=pixels.device)
    for name, member in members.items():
        member.texts.clear()
        scores = WEIGHTS[name] * member(pixels, prompts)
        scores.sum().backward()
        total += scores.detach()
    return total


def at_once(ensemble: WeightedSum, pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    scores = ensemble(pixels, prompts)
    scores.sum().backward()
    return scores.detach()


def hit(members: dict[str, Any], prompts: list[str]) -> float:
    began = time.perf_counter()
    for member in members.values():
        member.texts(prompts)
    return time.perf_counter() - began


def timed(way: Callable[[torch.Tensor], object], pictures: torch.Tensor, device: torch.device) -> float:
    """Seconds; on a CPU those of this process, so that other processes do not count."""
    pixels = pictures.clone().requires_grad_()
    if device.type != "cuda":
        began = time.process_time()
        way(pixels)
        return time.process_time() - began
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    way(pixels)
    torch.cuda.synchronize(device)
    return time.perf_counter() - began


def activations(reward: Any, pictures: torch.Tensor, prompts: list[str]) -> int:
    """Bytes that a forward pass keeps for the backward, without weights."""
    networks = [m.network for m in getattr(reward, "members", {"": reward}).values()]
    weights = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage  # kept alive, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score = reward(pictures.clone().requires_grad_(), prompts)
    del score
    return sum(storage.nbytes() for storage in held.values())


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} thread(s) of this CPU"


if __name__ == "__main__":
    main(parse(Benchmark))
