"""A third-party generator: painted eyes, a noise network for the requested colour, and the alternatives' cost.

    pip install omniart-eye-generator==0.1 omniart-eye-classifier==0.1.3
    python -m experiments.eyes --output-dir runs/eyes

Generator and classifier are third-party (`eye_networks`). The reward is the classifier's log P(colour) at the
generator's native 128 pixels; the judge is the same classifier at its native 224, on held-out noises.
Everything is kept in the output directory, from which the same command resumes.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from tqdm import tqdm

import hypernoise as hn
from experiments.base import main, same_run, table
from experiments.eye_networks import (
    CLASSES,
    COLOURS,
    SIZE,
    EyeClassifier,
    EyeGenerator,
    filled,
    one_hot_colours,
    weight_file,
)
from hypernoise.diagnostics.kl import KLReport
from hypernoise.evaluation.pictures import read_picture
from hypernoise.evaluation.records import Records, mean_distance
from hypernoise.evaluation.result_rows import result_row
from hypernoise.evaluation.summary import write_summary
from hypernoise.files import atomic_file, output_folder
from hypernoise.generators.base import Condition, Generator, Seed
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.draws import EVALUATION_STEP, keyed_noise
from hypernoise.settings import Count
from hypernoise.training.config import recognised

JUDGED = 224  # px, the classifier's training size
BATCH = 16  # pictures, in training and in drawing
SHOWN = ("blue", "green", "gray", "red")  # on the sheet, three noises each
TILE, GAP, LABEL, HEAD = 88, 4, 104, 24  # px, of the sheet


@dataclass(frozen=True)
class Eyes:
    """Draws painted eyes of eight colours with every method, and judges them."""

    output_dir: Path = Path("runs/eyes")
    updates: Count = 600
    """Optimiser updates per training run, of 16 pictures."""
    runs: Count = 3
    """Training runs per noise network, with seeds `seed`, `seed` + 1 and so on."""
    pictures: int = 16
    """Judged pictures per colour, each from its own noise."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pictures < 3:
            raise hn.InputError(f"--pictures must be at least 3, not {self.pictures}")

    def run(self) -> int:
        bench = Bench.load(self)
        rows, shown = rows_of(bench)
        write_summary(self.output_dir, "python -m experiments.eyes", self, "cpu", rows)
        sheet(bench, shown).save(self.output_dir / "sheet.png", optimize=True)
        print(table(rows, COLUMNS))
        agreement = rows[0]["agreement"]
        print(f"\nThe classifier names {agreement:.2f} of the plain pictures alike at 128 and {JUDGED} pixels.")
        return 0

    def noise_config(self, seed: int) -> hn.TrainConfig:
        """For the noise networks: the paper's objective, with settings chosen on other noises than the judged ones."""
        own = {
            "learning_rate": 3e-3,
            "lr_scheduler": "cosine",
            "kl_weight": 0.1,
            "mixed_precision": "no",
            "seed": seed,
        }
        return hn.TrainConfig(max_train_steps=self.updates, train_batch_size=BATCH, **own)

    def tuning_config(self) -> hn.TrainConfig:
        """For the generator's weights: as many pictures, no KL term, a constant rate, so it can be judged midway."""
        own = {"learning_rate": 1e-4, "kl_weight": 0.0, "mixed_precision": "no", "seed": self.seed}
        own["checkpoints_total_limit"] = 1
        return hn.TrainConfig(max_train_steps=self.updates, train_batch_size=BATCH, **own)

    @property
    def looks(self) -> list[int]:
        """Updates of fine-tuning after which it is judged."""
        return sorted({max(1, self.updates // 10), max(1, self.updates // 4), self.updates})


def perceptron(seed: int) -> hn.ResidualNoise:
    """An MLP trained with ½‖f‖² as its KL."""
    return hn.ResidualNoise((SIZE,), condition_size=len(COLOURS), width=256, depth=2, seed=seed)


def invertible(seed: int) -> hn.SpectralNoise:
    """An invertible map of all the noise with an exact KL and default settings."""
    return hn.SpectralNoise(SIZE, len(COLOURS), k=1, seed=seed)


NETWORKS = {"hypernoise": perceptron, "hypernoise, exact KL": invertible}


class Named:
    """The classifier's log P(requested colour) [B], at the pictures' size."""

    name = "log P(colour)"

    def __init__(self, classifier: nn.Module):
        self.classifier = classifier

    def __call__(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        asked = torch.tensor([CLASSES.index(prompt) for prompt in prompts])
        return self.classifier(pixels).log_softmax(1)[torch.arange(len(asked)), asked]


class Tuned(NoiseNetwork):
    """The generator's own weights as the trained network of the training loop; the noise is unchanged."""

    kind: ClassVar[str] = "weights"

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.settings: dict[str, Any] = {}

    def forward(self, noise: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(noise)

    def trainable_state(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}


class Changing(Generator):
    """A generator for the training loop whose weights are trained, so checkpoints do not compare them."""

    def __init__(self, inner: hn.ModuleGenerator):
        self.inner, self.name, self.noise_shape = inner, inner.name, inner.noise_shape

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def encode(self, prompts: list[str]) -> Condition:
        return self.inner.encode(prompts)

    def sample(self, noise: Tensor, condition: Condition, *, num_inference_steps: int = 1, seed: Seed = None) -> Tensor:
        return self.inner.sample(noise, condition)


@dataclass(frozen=True)
class Bench:
    """The networks, loaded once, and the paths of everything kept."""

    settings: Eyes
    module: nn.Module
    generator: hn.ModuleGenerator
    classifier: nn.Module
    reward: Named

    @classmethod
    def load(cls, settings: Eyes) -> Bench:
        """Raises InputError for a missing wheel, or a file with other contents."""
        module = filled(EyeGenerator(), weight_file("omniart-eye-generator"))
        classifier = filled(EyeClassifier(), weight_file("omniart-eye-classifier"))
        output_folder(settings.output_dir)
        return cls(settings, module, as_generator(module, "eyes"), classifier, Named(classifier))

    @property
    def asked(self) -> list[str]:
        """The requested colour of every judged picture."""
        return [colour for colour in COLOURS for _ in range(self.settings.pictures)]

    def trained(self, kind: str, seed: int) -> Path:
        """The adapter directory of one of NETWORKS, trained if missing."""
        config = self.settings.noise_config(seed)
        folder = self.settings.output_dir / "training" / f"{NETWORKS[kind].__name__}-seed{seed}"
        same_run(folder, recognised(config))
        place = folder / "adapter"
        if not (place / "hypernoise.json").exists():
            network = NETWORKS[kind](seed)
            self.climb(self.generator, network, config, folder)
            hn.save_adapter(network, place, generator=self.generator)
        return place

    def tuned_to(self, updates: int) -> hn.ModuleGenerator:
        """The generator fine-tuned so far; continues from the previous look."""
        config = self.settings.tuning_config()
        folder = self.settings.output_dir / "training" / f"finetune-seed{config.seed}"
        same_run(folder, recognised(config))
        module, file = copy.deepcopy(self.module), folder / f"weights-{updates:06d}.safetensors"
        generator = as_generator(module, "eyes, fine-tuned")
        network = Tuned(module)
        if file.exists():
            network.load_trainable_state(load_file(file))
        else:
            module.requires_grad_(True)  # disabled when the generator was created
            self.climb(Changing(generator), network, dataclasses.replace(config, max_train_steps=updates), folder)
            with atomic_file(file) as temporary:
                save_file({name: values.contiguous() for name, values in network.trainable_state().items()}, temporary)
        module.requires_grad_(False)
        return generator

    def climb(self, generator: Generator, network: Any, config: hn.TrainConfig, folder: Path) -> None:
        print(f"{folder.name}: to {config.max_train_steps} updates of {config.train_batch_size}", file=sys.stderr)
        result = hn.train(generator, network, self.reward, COLOURS, config, output_dir=folder)
        if result.signal:
            raise KeyboardInterrupt

    def drawn(self, generator: hn.ModuleGenerator, methods: Sequence[Any]) -> dict[str, Found]:
        """Draws every judged picture with each method, and judges it."""
        asked, total = self.asked, len(methods) * len(self.asked)
        with tqdm(total=total, desc=f"drawing: {', '.join(method.name for method in methods)}", unit="picture") as bar:
            comparison = hn.compare(
                generator, methods, asked, self.reward, num_images_per_prompt=1, seed=self.settings.seed,
                batch_size=BATCH, output=self.settings.output_dir, progress=bar.update,
            )  # fmt: skip
        return {name: self.judged(records) for (_, name), records in comparison.records.items()}

    @torch.no_grad()
    def judged(self, records: Records) -> Found:
        """Judges the pictures as stored in files, at the judge's native size."""
        pixels = torch.stack([read_picture(file) for file in records.files])
        own = torch.cat([self.classifier(part).argmax(1) for part in pixels.split(BATCH)]).numpy()
        resized = [interpolate(part, (JUDGED, JUDGED), mode="bilinear") for part in pixels.split(BATCH)]
        named = torch.cat([self.classifier(part).argmax(1) for part in resized]).numpy()
        right = named == [CLASSES.index(colour) for colour in self.asked]
        alarms = {name: named == CLASSES.index(name) for name in ("negative", "irisless")}
        artefacts = alarms["negative"] | alarms["irisless"]
        judged = {"right": right[:, None].astype(float), "artefacts": artefacts[:, None].astype(float)}
        each = self.settings.pictures
        groups = [records.files[start : start + each] for start in range(0, len(records.files), each)]
        diversity = float(np.mean([mean_distance(group) for group in groups]))
        return Found(
            dataclasses.replace(records, values={**records.values, **judged}, diversity=diversity),
            {name: float(flagged.mean()) for name, flagged in alarms.items()},
            float((own == named).mean()),
        )

    def kl(self, adapter: Path) -> KLReport:
        """A noise network's KL at the judged noises, from each whole Jacobian."""
        asked = self.asked
        noise = keyed_noise((SIZE,), seed=self.settings.seed, step=EVALUATION_STEP, samples=range(len(asked)))
        network = hn.load_adapter(self.generator, adapter)
        return hn.estimate_kl(network, noise, self.generator.encode(asked), method="exact", batch=SIZE)


@dataclass(frozen=True)
class Found:
    """One method's judged records, its shares of alarms, and its share of pictures that the classifier names
    alike at both sizes."""

    records: Records
    alarms: dict[str, float]
    agreement: float


def as_generator(module: nn.Module, name: str) -> hn.ModuleGenerator:
    return hn.ModuleGenerator(
        module, noise_shape=(SIZE,), to_pixels=lambda output: (output + 1) / 2, embed=one_hot_colours, name=name
    )


def rows_of(bench: Bench) -> tuple[list[dict[str, Any]], dict[str, Found]]:
    """The table's rows, in summary.json's fields and a few more, and the pictures for the sheet."""
    settings, groups = bench.settings, np.array(bench.asked)
    seeds = [settings.seed + i for i in range(settings.runs)]
    adapters = {kind: [bench.trained(kind, seed) for seed in seeds] for kind in NETWORKS}
    ours = [
        hn.HyperNoise(adapter, name=f"{NETWORKS[kind].__name__}-{i}")
        for kind, those in adapters.items()
        for i, adapter in enumerate(those)
    ]
    found = bench.drawn(bench.generator, [hn.Plain(), *ours, hn.BestOfN(2), hn.BestOfN(8), hn.ReNO(50)])
    plain = found["plain"].records
    exact = {"plain": 0.0, **{f"best-of-{n}": float(np.log(n) - (n - 1) / n) for n in (2, 8)}}

    def more(row: dict[str, Any], those: Sequence[Found], **what: Any) -> dict[str, Any]:
        alarms = {name: float(np.mean([one.alarms[name] for one in those])) for name in those[0].alarms}
        agreement = float(np.mean([one.agreement for one in those]))
        return {**row, **alarms, "agreement": agreement, "kl_exact": None, "trained_pictures": 0, **what}

    def single(name: str) -> dict[str, Any]:
        row = result_row(name, 1, [found[name].records], plain, groups)
        return more(row, [found[name]], kl_exact=exact.get(name))

    def trained(kind: str) -> dict[str, Any]:
        runs = [found[f"{NETWORKS[kind].__name__}-{i}"] for i in range(settings.runs)]
        reports = [bench.kl(adapter) for adapter in adapters[kind]]
        kl = {"kl_exact": float(np.mean([report.kl.value for report in reports]))}
        kl |= {"kl_runs": [dataclasses.asdict(report) for report in reports]}
        row = result_row(kind, 1, [one.records for one in runs], plain, groups)
        return more(row, runs, trained_pictures=settings.updates * BATCH, **kl)

    rows = [single("plain"), *map(trained, NETWORKS), single("best-of-2"), single("best-of-8"), single("reno-50")]
    for look in settings.looks:
        name = f"fine-tuned, {look} updates"
        found[name] = bench.drawn(bench.tuned_to(look), [hn.Plain()])["plain"]
        rows.append(single(name) | {"kl": None, "trained_pictures": look * BATCH})  # the noise is unchanged
    return rows, {
        "plain": found["plain"],
        "hypernoise": found["invertible-0"],
        "fine-tuned": found[rows[-1]["method"]],
    }


COLUMNS = {
    "named right [95 %]": ("score", ".3f"),
    "gain [95 %]": ("gain", "+.3f"),
    "reward": ("reward", ".2f"),
    "negative": ("negative", ".3f"),
    "irisless": ("irisless", ".3f"),
    "distance": ("diversity", ".3f"),
    "KL, as trained": ("kl", ".2f"),
    "KL, measured": ("kl_exact", ".2f"),
    "forwards": ("denoiser_forwards", ".0f"),
    "backwards": ("denoiser_backwards", ".0f"),
    "rewards": ("reward_calls", ".0f"),
    "s/picture": ("seconds_per_image", ".3f"),
    "trained on": ("trained_pictures", ",d"),
}


def sheet(bench: Bench, shown: dict[str, Found]) -> Image.Image:
    """The first three noises of a few colours, drawn with every method; green: the judge recognises the colour."""
    columns = [COLOURS.index(colour) * bench.settings.pictures + i for colour in SHOWN for i in range(3)]
    width, height = LABEL + len(columns) * TILE + len(SHOWN) * GAP * 2, HEAD + len(shown) * (TILE + GAP)
    page = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for row, (name, found) in enumerate(shown.items()):
        top = HEAD + row * (TILE + GAP)
        pen.text((4, top + TILE // 2), name, "black", font, anchor="lm")
        right = found.records.values["right"]
        assert right is not None
        for place, index in enumerate(columns):
            left = LABEL + place * TILE + place // 3 * GAP * 2
            with Image.open(found.records.files[index]) as picture:
                page.paste(picture.resize((TILE - 4, TILE - 4), Image.Resampling.LANCZOS), (left + 2, top + 2))
            frame = (30, 140, 60) if right[index, 0] else (200, 50, 40)
            pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=frame, width=2)
            if row == 0 and place % 3 == 1:
                pen.text((left + TILE // 2, HEAD // 2), SHOWN[place // 3], "black", font, anchor="mm")
    return page.quantize(256)  # a third of the size, without visible difference


if __name__ == "__main__":
    sys.exit(main(Eyes))
