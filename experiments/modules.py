"""A noise network on a user's module, with several settings: α, updates, learning rate, and the KL in the objective.

    python -m experiments.modules

The generator is a small variational autoencoder's decoder that the command itself trains on drawn pictures, discs and
squares in three colours; it only takes noise. The noise network knows the requested one of the six kinds, and the
reward is its log-probability by a classifier. Another classifier judges, on held-out noises.
If a generator draws class c with probability P(c), no noise network makes every picture right for less than
log 1/P(c) nats, a bound to compare the table with.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, cross_entropy
from tqdm import tqdm

import hypernoise as hn
from experiments.base import main, markdown
from hypernoise.evaluation.summary import write_summary
from hypernoise.files import output_folder
from hypernoise.noise.draws import EVALUATION_STEP, keyed_noise
from hypernoise.settings import Count

SIDE, SIZE = 16, 16  # px of a picture, dimensions of a noise
COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.1), "blue": (0.1, 0.2, 0.9)}
KINDS = [f"{colour} {shape}" for colour in COLOURS for shape in ("disc", "square")]
RATES = ((1e-3, "constant"), (3e-3, "cosine"))
JUDGED = 128  # batch size


@dataclass(frozen=True)
class Modules:
    """Trains a noise network on a small generator at several settings, and judges each."""

    weights: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Values of kl_weight, the α of the objective."""
    updates: tuple[int, ...] = (250, 1000)
    """Updates per training run, of 16 pictures."""
    lessons: Count = 800
    """Updates of the generator and of each classifier."""
    pictures: Count = 128
    """Judged pictures per kind."""
    seed: int = 0
    output_dir: Path = Path("runs/modules")

    def run(self) -> int:
        output_folder(self.output_dir)
        decoder, (classifier, judge) = taught_generator(self), [taught_classifier(self, 1), taught_classifier(self, 2)]
        generator = hn.ModuleGenerator(decoder, noise_shape=(SIZE,), embed=labels_of, name="shapes")
        plain = judged(self, generator, None, classifier, judge)
        runs = list(itertools.product(self.weights, self.updates, RATES, ("l2",)))
        runs += [(weight, min(self.updates), RATES[1], "exact") for weight in self.weights]
        rows = [{"kl_weight": None, "updates": 0, "learning_rate": None, "counted": "", "advice": "", **plain}]
        for weight, updates, (rate, scheduler), term in tqdm(runs, unit="run"):
            network = hn.ResidualNoise((SIZE,), width=128, depth=2, seed=self.seed)
            own: dict[str, Any] = {
                "lr_scheduler": scheduler,
                "kl_term": term,
                "mixed_precision": "no",
                "seed": self.seed,
            }
            config = hn.TrainConfig(max_train_steps=updates, learning_rate=rate, kl_weight=weight, **own)
            result = hn.train(generator, network, named_by(classifier), KINDS, config, progress=False)
            row = {"kl_weight": weight, "updates": updates, "learning_rate": f"{rate:g} {scheduler}", "counted": term}
            rows.append({**row, "advice": result.advice, **judged(self, generator, network, classifier, judge)})
        write_summary(self.output_dir, "python -m experiments.modules", self, "cpu", rows)
        print(table(rows))
        return 0


def drawn(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures [count, 3, SIDE, SIDE] of one shape each, on a light background, and their kinds [count]."""
    kinds = torch.randint(len(KINDS), (count,), generator=draw)
    middle, radius = (
        5 + 6 * torch.rand(count, 2, 1, 1, generator=draw),
        2.5 + 2 * torch.rand(count, 1, 1, generator=draw),
    )
    grid = torch.arange(SIDE) + 0.5
    across, down = (grid[None, None] - middle[:, 0]).abs(), (grid[None, :, None] - middle[:, 1]).abs()
    far = torch.where((kinds % 2 == 0)[:, None, None], (across**2 + down**2).sqrt(), torch.maximum(across, down))
    cover = (radius - far + 0.5).clamp(0, 1)[:, None]
    paint = torch.tensor(list(COLOURS.values()))[kinds // 2][..., None, None]
    return cover * paint + (1 - cover) * 0.92, kinds


def taught_generator(settings: Modules) -> nn.Module:
    """The decoder of an autoencoder: noise [B, SIZE] to pictures."""
    draw, size = torch.Generator().manual_seed(settings.seed), 3 * SIDE * SIDE
    torch.manual_seed(settings.seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, 256), nn.SiLU(), nn.Linear(256, 2 * SIZE))
    decoder = nn.Sequential(
        nn.Linear(SIZE, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, size), nn.Sigmoid(),
        nn.Unflatten(1, (3, SIDE, SIDE)),
    )  # fmt: skip

    def loss(pictures: Tensor, kinds: Tensor) -> Tensor:
        mean, spread = encoder(pictures).chunk(2, 1)
        noise = mean + spread.exp() * torch.randn(mean.shape, generator=draw)
        nats = (mean**2 + (2 * spread).exp() - 1 - 2 * spread).sum(1) / 2
        return binary_cross_entropy(decoder(noise), pictures, reduction="sum") / len(pictures) + nats.mean()

    teach([*encoder.parameters(), *decoder.parameters()], loss, settings.lessons, draw)
    return decoder


def taught_classifier(settings: Modules, number: int) -> nn.Module:
    """Classifiers from pictures to logits of their kinds; each has its own training pictures and initial weights."""
    draw = torch.Generator().manual_seed(settings.seed + number)
    torch.manual_seed(settings.seed + number)
    layers = (nn.Conv2d(3, 16, 3, 2), nn.SiLU(), nn.Conv2d(16, 32, 3, 2), nn.SiLU(), nn.Flatten(), nn.LazyLinear(6))
    network = nn.Sequential(*layers)
    network(torch.zeros(1, 3, SIDE, SIDE))

    def loss(pictures: Tensor, kinds: Tensor) -> Tensor:
        blurred = pictures + 0.1 * torch.randn(pictures.shape, generator=draw)
        return cross_entropy(network(blurred), kinds, label_smoothing=0.02)

    teach(list(network.parameters()), loss, settings.lessons, draw)
    return network.requires_grad_(False)


def teach(parameters: list[nn.Parameter], loss: Any, lessons: int, draw: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    for _ in range(lessons):
        optimizer.zero_grad()
        loss(*drawn(64, draw)).backward()
        optimizer.step()


def labels_of(prompts: list[str]) -> Tensor:
    """The condition of the noise network; the decoder only takes noise."""
    return torch.tensor([KINDS.index(prompt) for prompt in prompts])


def named_by(classifier: nn.Module) -> Any:
    """The reward: log P(requested kind) [B]."""

    def reward(pixels: Tensor, prompts: list[str]) -> Tensor:
        return classifier(pixels).log_softmax(1)[torch.arange(len(prompts)), labels_of(prompts)]

    return reward


def judged(
    settings: Modules, generator: hn.ModuleGenerator, network: Any, classifier: nn.Module, judge: nn.Module
) -> dict[str, Any]:
    """For pictures from held-out noises: the share judged right, the reward, and the KL."""
    asked = [kind for kind in KINDS for _ in range(settings.pictures)]
    noise = keyed_noise((SIZE,), seed=settings.seed, step=EVALUATION_STEP, samples=range(len(asked)))
    condition = generator.encode(asked)
    with torch.no_grad():
        better = noise if network is None else noise + network(noise, condition)
        pixels = generator.sample(better, condition)
        right = (judge(pixels).argmax(1) == labels_of(asked)).float().mean().item()
        row: dict[str, Any] = {"right": right, "reward": named_by(classifier)(pixels, asked).mean().item()}
    if network is None:
        shares = judge(pixels).argmax(1).bincount(minlength=len(KINDS)) / len(asked)
        return {**row, "l2": 0.0, "kl": 0.0, "least": -shares.log().mean().item()}
    report = hn.estimate_kl(network, noise, condition, method="exact", batch=JUDGED)
    return {**row, "l2": report.l2.value, "kl": report.kl.value, "least": None}


def table(rows: list[dict[str, Any]]) -> str:
    """The table in markdown, with the runs' advice below it."""
    heads = ("α", "updates", "learning rate", "KL term", "right", "reward", "½‖f‖²", "KL, nats")
    lines = [
        [
            "plain" if row["kl_weight"] is None else f"{row['kl_weight']:g}",
            f"{row['updates']}",
            row["learning_rate"] or "",
            row["counted"],
            f"{row['right']:.3f}",
            *(f"{row[name]:.2f}" for name in ("reward", "l2", "kl")),
        ]
        for row in rows
    ]
    advice = [f"α {row['kl_weight']:g}, {row['learning_rate']}, {row['counted']}: {row['advice']}" for row in rows[1:]]
    least = f"Drawing every kind as often as it is requested takes at least {rows[0]['least']:.2f} nats."
    return "\n".join([markdown(heads, lines), "", least, "", *advice])


if __name__ == "__main__":
    sys.exit(main(Modules))  # pyright: ignore[reportArgumentType]
