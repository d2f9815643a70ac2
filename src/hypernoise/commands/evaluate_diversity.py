"""`hypernoise evaluate diversity`: how varied the pictures of a prompt are, and how far they are from the base's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import tyro

from hypernoise.commands.common import tell_broken, write_summary, write_tables
from hypernoise.errors import InputError, at_least_one

MEASURES = [  # heading and field, format
    ("similarity", "similarity", ".4f"), ("vendi", "vendi", ".3f"), ("lpips", "lpips", ".4f"),
    ("frechet", "frechet", ".4g"), ("kernel", "kernel", ".4g"),
]  # fmt: skip
GAINS = [("mean", "mean", ".4f"), ("gain", "gain", "+.4f"), ("95 %", "gain_ci95", "+.4f")]


@dataclass(frozen=True)
class EvaluateDiversity:
    """Measure folders of pictures as evaluate geneval lays them out: variety over seeds, and drift from the first.

    similarity: mean cosine between pictures of one prompt (higher: more alike). vendi: how many different pictures
    those of a prompt amount to. frechet, kernel: distances between each folder's pictures and the first folder's
    (FID's and KID's formulas, in these features: with --features inception they are FID and KID). lpips: mean LPIPS
    between pictures of one prompt. With --rewards, their means and paired gains over the first.
    """

    pictures: tuple[str, ...]
    """Folders in the layout 00000/samples/00000.png; the first is the base. A picture's place names its noise."""
    features: str = "facebook/dinov2-base"
    """A DINOv2 on the Hub (downloaded when first used) or in a folder; inception, FID's network (likewise), or the
    file of its weights; pixels: the picture itself at 16 x 16."""
    lpips: Literal["", "alex", "vgg"] = ""
    """LPIPS over this network; its two files are downloaded when first used."""
    lpips_weights: Path | None = None
    """A folder with those files under their published names, instead of a download."""
    rewards: tuple[str, ...] = ()
    """Drift of rewards that nobody trained for, such as clip aesthetic-v2."""
    report: bool = False
    """Write report.html too: the tables in one file that needs no other."""
    batch_size: int = 16
    output: Path = Path("runs/diversity")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise evaluate diversity")

    def run(self) -> int:
        at_least_one(self, "batch_size", flags=True)
        if not self.pictures:
            raise InputError("name one or more folders: --pictures BASE OTHER ...")
        if self.lpips_weights is not None and not self.lpips:
            raise InputError("--lpips-weights are of a network: name it with --lpips alex or --lpips vgg")
        from hypernoise.evaluation import lpips
        from hypernoise.evaluation.drift import measured, row
        from hypernoise.evaluation.features import load
        from hypernoise.evaluation.geneval.picture_folder import read_album
        from hypernoise.evaluation.inception import Inception
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import pick_device
        from hypernoise.rewards.ensemble import WeightedSum

        device = pick_device(self.device)
        albums = [read_album(Path(folder)) for folder in self.pictures]
        self._check(albums)
        features = load(self.features, device)
        perceptual = lpips.load(self.lpips, self.lpips_weights, device) if self.lpips else None
        reward = WeightedSum(dict.fromkeys(self.rewards, 1.0)) if self.rewards else None
        output_folder(self.output)
        broken, rows, base = [], [], None
        for folder, (samples, half) in zip(self.pictures, albums, strict=True):
            found = measured(samples, features, reward, perceptual, batch_size=self.batch_size, device=device)
            base = base or found
            rows.append({"pictures": folder, **row(found, base)})
            if rows[-1]["similarity"] is None:
                told = "no prompt has two pictures to compare, so similarity, vendi and lpips are empty"
                print(f"{folder}: {told}", file=sys.stderr)
            broken += [{"name": f"{folder}/{one.name}", "why": one.why} for one in [*half, *found.broken]]
        tell_broken(broken)
        write_summary(self.output, "evaluate diversity", self, device, rows, broken=broken)
        fid = "; frechet is FID and kernel is KID" if isinstance(features, Inception) else ""
        print(f"in the features of {self.features}{fid}")
        print(table(rows))
        if self.report:
            write_tables(
                self.output,
                "evaluate diversity",
                shown(rows),
                features=f"{self.features}{fid}",
                broken=str(len(broken)),
            )
        return 0

    def _check(self, albums: list[Any]) -> None:
        """Raises InputError for a folder without pictures, and for rewards of other prompts than the base's."""
        for folder, (samples, half) in zip(self.pictures, albums, strict=True):
            if not samples:
                raise InputError(f"{folder} has no picture that counts; the first: {half[0].name}: {half[0].why}")
        base = {sample.name: sample.request.prompt for sample in albums[0][0]}
        for folder, (samples, _) in zip(self.pictures, albums, strict=True):
            for sample in samples if self.rewards else []:
                here, there = sample.request.prompt, base.get(sample.name, sample.request.prompt)
                if here != there:
                    raise InputError(
                        f"{folder}/{sample.name} shows {here!r} and {self.pictures[0]}'s {there!r}: the gain of "
                        "--rewards is between pictures of one prompt"
                    )


def shown(rows: list[dict[str, Any]]) -> list[Any]:
    """The tables of the report: variety and drift, and one per reward."""
    from hypernoise.evaluation.page import Table

    columns = [("pictures", "images", "d"), ("prompts", "prompts", "d"), *MEASURES]
    named = {row["pictures"]: row for row in rows}
    rewards = {name: {folder: row["rewards"][name] for folder, row in named.items()} for name in rows[0]["rewards"]}
    first = Table("Variety, and distance from the first folder", columns, named)
    return [first, *(Table(f"Reward {name}", GAINS, told) for name, told in rewards.items())]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'pictures':>8}{'similarity':>12}{'vendi':>9}{'lpips':>9}{'frechet':>12}{'kernel':>12}  folder"]
    for row in rows:
        cells = "".join(
            f"{'' if row[name] is None else format(row[name], spec):>{width}}"
            for name, width, spec in (
                ("similarity", 12, ".4f"), ("vendi", 9, ".3f"), ("lpips", 9, ".4f"),
                ("frechet", 12, ".4g"), ("kernel", 12, ".4g"),
            )
        )  # fmt: skip
        lines.append(f"{row['images']:>8}{cells}  {row['pictures']}")
    for name in rows[0]["rewards"]:
        lines += ["", f"{name:<18}{'mean':>10}{'gain':>10}  95 %"]
        for row in rows:
            told = row["rewards"][name]
            gain, span = told["gain"], told["gain_ci95"]
            between = "" if span is None else f"[{span[0]:+.4f}, {span[1]:+.4f}]"
            lines.append(f"{'':<18}{told['mean']:>10.4f}{'' if gain is None else f'{gain:+.4f}':>10}  {between}")
    return "\n".join(lines)
