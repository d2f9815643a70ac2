"""`hypernoise evaluate scenes`: the scenes benchmark, plain and with noise networks."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hypernoise.commands.drawing import check_methods
from hypernoise.commands.generator import WithGenerator
from hypernoise.errors import InputError, at_least_one
from hypernoise.training.config import Weights

SHOWN = 2  # pictures per category on the grid
REPORTED = 10  # in the report
BATCH = 32  # pictures drawn at once, as always in this benchmark: a stochastic scheduler's noise depends on it


@dataclass(frozen=True)
class EvaluateScenes(WithGenerator):
    """Judge the fixed evaluation prompts, each from the same noises, plain and with noise networks.

    Several adapters are taken as training runs of one recipe: their mean is reported, and the intervals are
    over prompts and runs. Writes summary.json, grid.png and every picture to --output, and goes on from those there.
    """

    adapter: tuple[str, ...] = ()
    """Adapter directories, one per training run; none: the plain generator alone."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Denoiser calls per picture."""
    rewards: Weights = field(default_factory=lambda: {"scenes": 1.0})
    """What the pictures are scored by, beside the judge."""
    judged: int = 50
    """Prompts per category; 50 are the benchmark."""
    noises: int = 4
    """Pictures per prompt; 4 are the benchmark."""
    report: bool = False
    """Write report.html too: tables, curves, and pictures side by side to filter, in one file that needs no other."""
    shard: str = ""
    """k/n: this process makes every n-th batch from the k-th on; all write to the same --output. Empty: as torchrun
    or accelerate launch has it, else all."""
    output: Path = Path("runs/evaluate-scenes")

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return cls.parse_as("evaluate scenes", arguments)

    def run(self) -> int:
        from hypernoise.commands.common import shard_of

        at_least_one(self, "judged", "noises", flags=True)
        if not self.steps or min(self.steps) < 1:
            raise InputError(f"--steps takes numbers from 1, such as 1 2 4 8, not {list(self.steps)}")
        for flag, given in (("--steps", self.steps), ("--adapter", self.adapter)):
            if len(set(given)) < len(given):
                raise InputError(f"{flag} takes each once, not {' '.join(map(str, given))}")
        shard = shard_of(self.shard)
        import numpy as np
        from tqdm import tqdm

        from hypernoise.commands.common import left_to_others, write_report, write_summary
        from hypernoise.commands.compare import scenes_prompts
        from hypernoise.evaluation.engine import compare
        from hypernoise.evaluation.result_rows import pooled_row
        from hypernoise.files import output_folder
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.plain import Plain
        from hypernoise.rewards.ensemble import WeightedSum
        from hypernoise.scenes.prompts import evaluation_requests

        reward = WeightedSum(self.rewards)
        generator = self.load()
        runs = [HyperNoise(folder, name=f"hypernoise-{number}") for number, folder in enumerate(self.adapter, 1)]
        check_methods(generator, runs, self.steps)
        output_folder(self.output)
        self.tell_precision()
        asked, requests = scenes_prompts(self.judged), evaluation_requests(self.judged)
        generator.encode_ahead(asked.prompts)
        total = (1 + len(runs)) * len(self.steps) * len(requests) * self.noises
        with tqdm(total=-(-total // shard[1]), desc="judging", unit="picture") as bar:
            found = compare(
                generator,
                [Plain(), *runs],
                asked.prompts,
                reward,
                steps=self.steps,
                noises=self.noises,
                batch_size=BATCH,
                judge=asked.judge,
                categories=asked.categories,
                output=self.output,
                shard=shard,
                progress=bar.update,
            )
        if found.missing:
            return left_to_others(found.missing, "batches")
        by_name = dict(zip(found.records, found.rows, strict=True))
        base, ours = {steps: by_name[steps, "plain"] for steps in self.steps}, {}
        if runs:
            groups = np.array(asked.categories)
            for steps in self.steps:
                records = [found.records[steps, run.name] for run in runs]
                ours[steps] = pooled_row("hypernoise", steps, records, found.records[steps, "plain"], groups)
        rows = [kind[steps] for steps in self.steps for kind in (base, ours) if kind]
        write_summary(self.output, "evaluate scenes", self, generator.device, rows, prompts=asked.about)
        print(table(rows))
        pictures = [
            {steps: seen(found.records[steps, name], row, requests) for steps, row in kind.items()}
            for name, kind in (("plain", base), ("hypernoise-1", ours))
        ]
        sheet = self.output / "grid.png"
        grid(requests, 1, *pictures).save(sheet)
        print(f"pictures: {sheet}", file=sys.stderr)
        if self.report:
            shown = examples(requests, *pictures)
            write_report(self, "evaluate scenes", rows, shown, judge="the scenes judge", prompts=str(len(requests)))
        return 0


def seen(records: Any, row: dict[str, Any], requests: Any) -> Any:
    """An `Evaluation` of the pictures from the first noise alone, with the row of them all."""
    import dataclasses

    import numpy as np
    import torch
    from PIL import Image

    from hypernoise.scenes.benchmark import Evaluation
    from hypernoise.scenes.judge import judge

    right = records.values["right"]
    first = records.files[:: right.shape[1]]
    pictures = [np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in first]
    verdicts = [
        dataclasses.replace(judge(picture, request), correct=bool(was[0]))  # as it was before it had 8 bits
        for picture, request, was in zip(pictures, requests, right, strict=True)
    ]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return Evaluation(pixels, verdicts, row, right.mean(1), np.array([request.category for request in requests]))


def examples(requests: Any, base: dict[int, Any], ours: dict[int, Any]) -> list[Any]:
    """The first prompts of each category from their first noise, plain and by the first run's network."""
    from PIL import Image

    from hypernoise.evaluation.page import Example, Shown, first_of_each, name_of

    found = [evaluation for steps in base for evaluation in (base[steps], ours.get(steps)) if evaluation is not None]

    def shown(evaluation: Any, place: int) -> Shown:
        levels = (evaluation.pixels[place].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        verdict = evaluation.verdicts[place]
        return Shown(name_of(evaluation.row), Image.fromarray(levels), verdict.correct, verdict.reason)

    return [
        Example(requests[i].caption, requests[i].category, [shown(evaluation, i) for evaluation in found])
        for i in first_of_each([request.category for request in requests], REPORTED)
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Two tables: the score and what it costs, then the score's categories."""
    head = (
        f"{'steps':>5} {'':<11}{'judge':>6}  {'95 %':<15}{'gain':>7}  {'95 %':<17}{'artefacts':>9}{'reward':>9}"
        f"{'KL':>7}{'diversity':>11}{'calls':>7}{'ms/image':>10}"
    )
    lines = [head]
    for row in rows:
        gained = row.get("gain") is not None
        gain = f"{row['gain']:>+7.3f}  {_between(row['gain_ci95'], '+'):<17}" if gained else " " * 26
        diversity = "" if row["diversity"] is None else f"{row['diversity']:.3f}"
        lines.append(
            f"{row['steps']:>5} {row['method']:<11}{row['score']:>6.3f}  {_between(row['score_ci95']):<15}{gain}"
            f"{row['artefacts']:>9.3f}{row['reward']:>9.3f}{row['kl']:>7.2f}{diversity:>11}"
            f"{row['denoiser_forwards']:>7g}{1000 * row['seconds_per_image']:>10.1f}"
        )
    names = list(rows[0]["categories"])
    lines += ["", f"{'steps':>5} {'':<11}" + "".join(f"{name:>15}" for name in names)]
    for row in rows:
        values = "".join(f"{row['categories'][name]:>15.3f}" for name in names)
        lines.append(f"{row['steps']:>5} {row['method']:<11}{values}")
    return "\n".join(lines)


def _between(interval: list[float] | None, sign: str = "") -> str:
    if interval is None:  # one prompt a category: nobody knows its spread
        return ""
    low, high = interval
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def grid(requests: Any, noises: int, base: dict[int, Any], ours: dict[int, Any]) -> Any:
    """The first prompts of each category from their first noise: none is picked by its looks or its verdict."""
    from hypernoise.evaluation.picture_sheet import before_after

    categories = [request.category for request in requests]
    firsts = [i for i, name in enumerate(categories) if categories[:i].count(name) < SHOWN]
    columns = [noises * i for i in firsts]
    rows = [
        (
            f"{name}\n{steps} step{'s' * (steps > 1)}\njudge {found[steps].row['score']:.2f}",
            found[steps].pixels[columns],
            [found[steps].verdicts[i].correct for i in columns],
        )
        for steps in base
        for name, found in (("base", base), ("hypernoise", ours))
        if found
    ]
    title = "Same prompts, same noise. Green frame: the judge finds what was asked; red: not."
    return before_after([requests[i].caption for i in firsts], rows, title)
