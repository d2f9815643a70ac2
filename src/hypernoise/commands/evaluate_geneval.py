"""`hypernoise evaluate geneval`: pictures of GenEval's prompts, drawn or given, judged by its rules."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hypernoise.commands.common import TOLD, left_to_others, shard_of, tell_broken, write_report, write_summary
from hypernoise.commands.drawing import Drawing, check_numbers, draw, fitting, made
from hypernoise.errors import InputError

MASK2FORMER, CLIP = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"
NOT_DRAWN = ("prompts", "pictures", "detections", "detector", "colors", "score", "report", "shard", "output", "device")
SHOWN = 10  # prompts per category in the report


@dataclass(frozen=True)
class EvaluateGeneval(Drawing):
    """GenEval: draw its prompts by any methods, find the objects, and judge them by the benchmark's rules.

    The default is the embedded world, whose judge is its detector. The benchmark itself is --prompts geneval
    --generator sd-turbo, say: its detector and CLIP are downloaded when first used, and since the detector's weights
    are not those of the official build, results are labelled geneval-hf. Pictures lie in the official layout.
    """

    prompts: str = "scenes"
    """geneval (the official 553), the path of a metadata file with a JSON object a line, or scenes."""
    count: int = 0
    """Prompts per category, from the first; 0: all (scenes: 50)."""
    noises: int = 4
    """Pictures per prompt; 4 are the benchmark."""
    pictures: Path | None = None
    """Judge this folder in the official layout instead of drawing."""
    detections: Path | None = None
    """With --pictures: take the objects from this file, a JSON object per picture, and run no model."""
    detector: str = ""
    """A Mask2Former on the Hub or in a folder; empty: the Swin-S trained on COCO, for scenes prompts their judge."""
    colors: str = CLIP
    """A CLIP on the Hub or in a folder, which names the colours of what Mask2Former finds."""
    score: bool = True
    """--no-score: draw and lay out only, for the official scorer."""
    output: Path = Path("runs/geneval")

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return cls.parse_as("evaluate geneval", arguments)

    def run(self) -> int:
        shard = self._checked()
        if self.pictures is not None:
            return self._judge_given(self.pictures, shard)
        return self._judge_drawn(shard)

    def _checked(self) -> tuple[int, int]:
        check_numbers(self)
        if self.pictures is not None:
            self._refuse_ignored()
        if self.detections is not None and self.pictures is None:
            raise InputError("--detections are of given pictures: name their folder with --pictures")
        detectors = [name for name in _given(self) if name in ("detector", "colors", "shard")]
        if self.detections is not None and detectors:
            raise InputError(f"--detections are taken as they are, by one process: leave out --{detectors[0]}")
        if not self.score and self.pictures is not None:
            raise InputError("--pictures are there to be judged; leave out --no-score")
        return shard_of(self.shard)

    def _refuse_ignored(self) -> None:
        """Raises InputError for flags of drawing beside pictures that are there."""
        given = [name for name in _given(self) if name not in NOT_DRAWN]
        given = ["recipe"] if "recipe" in given else given  # the others may be its fields
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise InputError(f"--pictures are judged as they are, and nothing is drawn: leave out {flags}")

    def _requests(self) -> list[Any]:
        if self.prompts == "scenes":
            from hypernoise.commands.geneval_scenes import requests

            return requests(self.count or 50)
        from hypernoise.evaluation.geneval.official import metadata
        from hypernoise.evaluation.geneval.requests import parse_lines, read_requests

        official = self.prompts == "geneval"
        found = parse_lines(metadata(), "geneval") if official else read_requests(Path(self.prompts))
        seen: dict[str, int] = {}
        chosen = []
        for request in found:
            seen[request.tag] = seen.get(request.tag, 0) + 1
            if not self.count or seen[request.tag] <= self.count:
                chosen.append(request)
        return chosen

    def _detector(self, device: Any) -> Any:
        if self.detections is not None and self.pictures is not None:
            from hypernoise.evaluation.geneval.files import FileDetector

            return FileDetector(self.detections, self.pictures)
        if self.detector == "scenes" or (not self.detector and self.prompts == "scenes"):
            from hypernoise.commands.geneval_scenes import ScenesDetector

            return ScenesDetector()
        from hypernoise.evaluation.geneval.detectors import load

        return load(self.detector or MASK2FORMER, self.colors, device)

    def _judge_given(self, folder: Path, shard: tuple[int, int]) -> int:
        from hypernoise.evaluation.geneval.picture_folder import read_album
        from hypernoise.evaluation.geneval.scoring import score_row
        from hypernoise.evaluation.result_rows import empty_row
        from hypernoise.files import output_folder
        from hypernoise.generators.registry import pick_device

        device = pick_device(self.device)
        samples, half = read_album(folder)
        detector = self._detector(device)
        requests, more = [sample.request for sample in samples], {}
        if self.detections is None:
            self._check_classes(detector, requests)
        else:
            more["absent_classes"] = tell_absent(detector, requests)
        output_folder(self.output)
        judged = self._judged(samples, detector, shard, half)
        if judged.missing:
            return left_to_others(judged.missing, "pictures")
        self._write("pictures", judged)
        row = empty_row("pictures")
        row.update(score_row(judged), benchmark=detector.label, pictures=str(folder))
        return self._finish([row], device, detector, {"pictures": judged}, **more)

    def _check_classes(self, detector: Any, requests: list[Any]) -> None:
        from hypernoise.evaluation.geneval.detectors import check_classes

        try:
            check_classes(detector, requests)
        except InputError as error:
            if self.detector or self.prompts != "scenes":
                raise
            hint = "pass --prompts geneval for the benchmark's own detector, or name one with --detector"
            raise InputError(f"{error}; {hint}") from error

    def _judge_drawn(self, shard: tuple[int, int]) -> int:
        from hypernoise.evaluation.geneval.detectors import check_classes
        from hypernoise.evaluation.geneval.picture_folder import write_album
        from hypernoise.evaluation.geneval.scoring import gain_over, score_row
        from hypernoise.evaluation.page import name_of

        requests = self._requests()
        generator, methods, reward = made(self)
        prompts, cut = fitting(generator, [request.prompt for request in requests], self.long_prompts)
        detector = self._detector(generator.device) if self.score else None
        if detector is not None:
            check_classes(detector, requests)
        drawn = draw(self, generator, methods, prompts, reward, shard)
        if drawn.missing:
            return left_to_others(drawn.missing, "batches of pictures")
        albums = {}
        for key, records in drawn.records.items():
            folder, drawn_in = self.output / "pictures" / f"{key[1]}-{key[0]}", records.files[0].parent
            files = [records.files[i : i + self.noises] for i in range(0, len(records.files), self.noises)]
            albums[key] = (folder, write_album(folder, requests, files, drawn_in.name))
        if detector is None:
            for (steps, name), (folder, _) in albums.items():
                print(f"{name}, {steps} steps: {folder}")
            return 0
        judged = {key: self._judged(samples, detector, shard, []) for key, (_, samples) in albums.items()}
        missing = sum(one.missing for one in judged.values())
        if missing:
            return left_to_others(missing, "pictures to judge")
        rows = []
        for row, (key, found) in zip(drawn.rows, judged.items(), strict=True):
            steps, name = key
            self._write(f"{name}-{steps}", found)
            row = {**row, **score_row(found), "benchmark": detector.label, "pictures": str(albums[key][0])}
            if name != "plain":
                row.update(gain_over(found, judged[steps, "plain"]))
            rows.append(row)
        named = {name_of(row): found for row, found in zip(rows, judged.values(), strict=True)}
        return self._finish(rows, generator.device, detector, named, cut_prompts=cut)

    def _judged(self, samples: Sequence[Any], detector: Any, shard: tuple[int, int], half: list[Any]) -> Any:
        from tqdm import tqdm

        from hypernoise.evaluation.geneval.scoring import judge_album

        kept_in = None if self.detections is not None else self.output / "detections"
        shard = (0, 1) if kept_in is None else shard
        with tqdm(total=-(-len(samples) // shard[1]), desc="judging", unit="picture") as bar:
            judged = judge_album(samples, detector, kept_in, shard=shard, progress=bar.update)
        return dataclasses.replace(judged, broken=[*half, *judged.broken])

    def _write(self, name: str, judged: Any) -> None:
        """The official results.jsonl, and what was found, which --detections reads again."""
        from hypernoise.evaluation.geneval.files import write_detections, write_results

        write_results(self.output / f"results-{name}.jsonl", judged.found)
        write_detections(self.output / f"detections-{name}.jsonl", [found[:2] for found in judged.found])

    def _finish(
        self, rows: list[dict[str, Any]], device: Any, detector: Any, judged: dict[str, Any], **more: Any
    ) -> int:
        broken = [{"name": one.name, "why": one.why} for found in judged.values() for one in found.broken]
        tell_broken(broken)
        if broken:
            print(f"{len(broken)} could not be judged; the score is of the others", file=sys.stderr)
        about = {"detector": detector.name, "label": detector.label, "broken": broken, **more}
        write_summary(self.output, "evaluate geneval", self, device, rows, **about)
        print(f"{detector.label}, by {detector.name}")
        print(table(rows))
        if self.report:
            given = {} if self.pictures is None else {"generator": f"none: {self.pictures} was given"}
            told = {**given, "benchmark": detector.label, "detector": detector.name, "broken": str(len(broken))}
            write_report(self, "evaluate geneval", rows, examples(judged), **told)
        return 0


def _given(settings: Any) -> list[str]:
    """Names of the fields that are not what they are by default."""
    default = type(settings)()
    names = [field.name for field in dataclasses.fields(settings)]
    return [name for name in names if getattr(settings, name) != getattr(default, name)]


def tell_absent(detector: Any, requests: list[Any]) -> list[str]:
    """Which classes that are asked for occur nowhere among the file's detections; the first are said on stderr."""
    from hypernoise.evaluation.geneval.detectors import lacking_classes

    absent = lacking_classes(detector, requests)
    if absent:
        some = ", ".join(absent[:TOLD]) + (", ..." if len(absent) > TOLD else "")
        told = f"{len(absent)} of the classes that the prompts ask for never occur in {detector.name}"
        print(f"{told}, and count as not found: {some}", file=sys.stderr)
    return absent


def examples(judged: dict[str, Any]) -> list[Any]:
    """The first prompts of each category with the first picture of each, by name of their row."""
    from hypernoise.evaluation.page import Example, Shown, first_of_each

    first: dict[int, dict[str, Any]] = {}
    for column, found in judged.items():
        for sample, _, verdict in found.found:
            first.setdefault(sample.number, {}).setdefault(column, (sample, verdict))
    numbers = sorted(first)
    requests = [next(iter(first[number].values()))[0].request for number in numbers]
    chosen = first_of_each([request.tag for request in requests], SHOWN)
    return [
        Example(
            requests[i].prompt,
            requests[i].tag,
            [
                Shown(column, sample.file, verdict.correct, "; ".join(verdict.reasons))
                for column, (sample, verdict) in first[numbers[i]].items()
            ],
        )
        for i in chosen
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison's table and, below it, the score's categories."""
    from hypernoise.evaluation.report import table as compared

    names = list(dict.fromkeys(name for row in rows for name in row["categories"]))
    wide = max([6, *(len(row["method"]) for row in rows)])
    lines = [compared(rows), "", f"{'steps':>5} {'':<{wide}}" + "".join(f"{name:>15}" for name in names)]
    for row in rows:
        cells = "".join(f"{row['categories'][n]:>15.3f}" if n in row["categories"] else f"{'':>15}" for n in names)
        lines.append(f"{row['steps'] or '':>5} {row['method']:<{wide}}{cells}")
    return "\n".join(lines)
