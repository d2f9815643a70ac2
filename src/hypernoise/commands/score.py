"""`hypernoise score DIR`: measures existing pictures: rewards, GenEval, diversity."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from hypernoise.errors import InputError
from hypernoise.settings import MOST_AT_ONCE, whole

NAMED = 10  # broken pictures named on stderr; summary.json has all


@dataclass(frozen=True)
class Score:
    """Measure folders of pictures: rewards, GenEval, and diversity over seeds.

    Takes the output of hypernoise generate, a folder under methods/ of hypernoise evaluate's output, GenEval's layout
    (00000/metadata.jsonl, 00000/samples/00000.png), or any folder with --prompts. Writes summary.json, report.html and
    scores.csv to --output-dir.
    """

    POSITIONAL: ClassVar = "folders"

    folders: tuple[str, ...] = ()
    """Folders of pictures."""
    prompts: str = ""
    """For folders without prompts: a text file with a prompt per picture, in the order of the pictures' names."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Rewards or ensembles, and their weights in the total; their networks are downloaded on first use."""
    features: str = "pixels"
    """Features in which pictures of one prompt are compared: the picture itself at 16 x 16, or a DINOv2 such as
    facebook/dinov2-base, from the Hub (downloaded on first use) or a folder."""
    geneval: bool = False
    """Judge pictures in GenEval's layout, or of its prompts, by its rules; detector and CLIP are downloaded on first
    use."""
    judge: str = ""
    """GenEval's detector: a Mask2Former from the Hub or a folder; empty: the Swin-S trained on COCO."""
    colors: str = ""
    """The CLIP, from the Hub or a folder, that classifies the colours of detected objects; empty: ViT-L/14."""
    long_prompts: Literal["truncate", "chunk-mean", "chunk-min"] = "truncate"
    """Prompts too long for a reward's text encoder: truncate them (the number is reported), or score windows."""
    batch_size: int = 16
    output_dir: Path = Path("runs/score")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    def run(self) -> int:
        whole(self, "batch_size", most=MOST_AT_ONCE, flags=True)
        if not self.folders:
            raise InputError("name one or more folders of pictures: hypernoise score DIR [DIR ...]")
        if (self.judge or self.colors) and not self.geneval:
            raise InputError("--judge and --colors need --geneval")
        from tqdm import tqdm

        from hypernoise.commands.common import warn_truncated_prompts, write_report
        from hypernoise.evaluation.measures import load_features, measured, measured_row, write_scores
        from hypernoise.evaluation.summary import write_summary
        from hypernoise.evaluation.tables import score_tables
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import pick_device
        from hypernoise.rewards.base import RewardSettings
        from hypernoise.rewards.ensemble import WeightedSum

        device = pick_device(self.device)
        contents, requests = self._contents()
        settings = RewardSettings(self.long_prompts)
        reward = WeightedSum(self.rewards, settings=settings) if self.rewards else None
        seen = load_features(self.features, device)
        judge = self._judge(requests, device) if self.geneval else None
        about = {"judge": judge.name} if judge else {}
        output_folder(self.output_dir)
        with tqdm(total=sum(len(pictures) for pictures, _ in contents), desc="scoring", unit="picture") as bar:
            work = {"batch_size": self.batch_size, "device": device, "progress": bar.update}
            found = [measured(pictures, seen, reward, judge, **work) for pictures, _ in contents]
        rows, broken = [], []
        for folder, (_, half), one in zip(self.folders, contents, found, strict=True):
            unusable = half | one.broken
            broken += [{"name": f"{folder}/{name}", "why": why} for name, why in unusable.items()]
            rows.append({**measured_row(folder, one), "broken": len(unusable)})
            if rows[-1]["similarity"] is None:
                print(f"{folder}: diversity is not measured, as no prompt has two pictures", file=sys.stderr)
        for bad in broken[:NAMED]:
            print(f"{bad['name']}: {bad['why']}", file=sys.stderr)
        if broken:
            print(f"{len(broken)} could not be used; the results cover the rest", file=sys.stderr)
        cut = warn_truncated_prompts(reward) if reward else {}
        if reward or judge:
            write_scores(self.output_dir / "scores.csv", list(zip(self.folders, found, strict=True)))
        write_summary(self.output_dir, "score", self, device, rows, broken=broken, truncated_prompts=cut, **about)
        facts = {"features": self.features, **about, "broken": len(broken)}
        write_report(self.output_dir, "score", facts, score_tables(rows))
        return 0

    def _contents(self) -> tuple[list[tuple[Sequence[Any], dict[str, str]]], list[Any]]:
        """Each folder's pictures and what cannot be used, and the GenEval requests of all."""
        from hypernoise.evaluation.geneval.benchmark import read_folder
        from hypernoise.evaluation.geneval.official import official_requests

        official = {one.prompt: one for one in official_requests()} if self.geneval else None
        read = [read_folder(Path(folder), self.prompts, official) for folder in self.folders]
        for folder, (pictures, _, broken) in zip(self.folders, read, strict=True):
            if not pictures:
                raise InputError(f"{folder} has no usable picture; the first: {': '.join(next(iter(broken.items())))}")
        return [(pictures, broken) for pictures, _, broken in read], [one for _, own, _ in read for one in own]

    def _judge(self, requests: list[Any], device: Any) -> Any:
        """Raises InputError for a class that the detector does not know, or a prompt with two meanings."""
        from hypernoise.evaluation.geneval.benchmark import GenEvalJudge, by_prompt

        return GenEvalJudge.load(by_prompt(requests), self.judge, self.colors, device)
