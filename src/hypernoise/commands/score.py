"""`hypernoise score DIR`: measures existing pictures: rewards, GenEval, diversity."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hypernoise.errors import InputError
from hypernoise.settings import AtOnce


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
    geneval: bool = False
    """Judge pictures in GenEval's layout, or of its prompts, by its rules; detector and CLIP are downloaded on first
    use."""
    judge: str = ""
    """GenEval's detector: a Mask2Former from the Hub or a folder; empty: the Swin-S trained on COCO."""
    colors: str = ""
    """The CLIP, from the Hub or a folder, that classifies the colours of detected objects; empty: ViT-L/14."""
    batch_size: AtOnce = 16
    output_dir: Path = Path("runs/score")
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU) or a torch device."""

    def run(self) -> int:
        if not self.folders:
            raise InputError("name one or more folders of pictures: hypernoise score DIR [DIR ...]")
        if (self.judge or self.colors) and not self.geneval:
            raise InputError("--judge and --colors need --geneval")
        from tqdm import tqdm

        from hypernoise.commands.common import write_report
        from hypernoise.evaluation.geneval.benchmark import GenEvalJudge, by_prompt, read_folder
        from hypernoise.evaluation.geneval.official import official_requests
        from hypernoise.evaluation.measures import TOTAL, measured, measured_row, write_scores
        from hypernoise.evaluation.page import score_tables
        from hypernoise.evaluation.summary import write_summary
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import pick_device
        from hypernoise.rewards.ensemble import WeightedSum

        device = pick_device(self.device)
        official = {one.prompt: one for one in official_requests()} if self.geneval else None
        contents = {folder: read_folder(Path(folder), self.prompts, official) for folder in self.folders}
        for folder, (pictures, broken) in contents.items():
            if not pictures:
                raise InputError(f"{folder} has no usable picture; the first: {': '.join(next(iter(broken.items())))}")
        every = [one for pictures, _ in contents.values() for one in pictures]
        reward = WeightedSum(self.rewards) if self.rewards else None
        judge = None
        if self.geneval:
            judge = GenEvalJudge(
                by_prompt([one.request for one in every if one.request]), self.judge, self.colors, device
            )
        about = {"judge": judge.name} if judge else {}
        names = [*reward.weights, TOTAL] if reward else []
        output_folder(self.output_dir)
        found, rows, unusable = {}, [], []
        with tqdm(total=len(every), desc="scoring", unit="picture") as bar:
            work = {"batch_size": self.batch_size, "device": device, "progress": bar.update}
            for folder, (pictures, broken) in contents.items():
                found[folder], unreadable = measured(pictures, reward, judge, **work)
                bad = broken | unreadable
                unusable += [{"name": f"{folder}/{name}", "why": why} for name, why in bad.items()]
                rows.append({**measured_row(folder, found[folder], names), "broken": len(bad)})
        if unusable:
            first = f"; the first: {unusable[0]['name']}: {unusable[0]['why']}"
            print(f"{len(unusable)} could not be used; the results cover the rest{first}", file=sys.stderr)
        if reward or judge:
            write_scores(self.output_dir / "scores.csv", found, names)
        write_summary(self.output_dir, "score", self, device, rows, broken=unusable, **about)
        write_report(self.output_dir, "score", {**about, "broken": len(unusable)}, score_tables(rows))
        return 0
