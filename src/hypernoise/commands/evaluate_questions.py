"""`hypernoise evaluate questions`: DPG-Bench, GenEval 2 and T2I-CompBench, scored by a model that answers questions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from hypernoise.commands.common import left_to_others, shard_of, write_report, write_summary
from hypernoise.commands.drawing import Drawing, check_numbers, draw, fitting, made

SHOWN = 60  # prompts in the report


@dataclass(frozen=True)
class EvaluateQuestions(Drawing):
    """Draw a benchmark's prompts by any methods, and ask a vision-language model its questions of every picture.

    The benchmark's file is named by --prompts: dpg_bench.csv, geneval2_data.jsonl, or a T2I-CompBench *_val.txt.
    Every answer is kept in questions-METHOD-STEPS.jsonl. The models are not those of the published scores (DPG-Bench's
    is mPLUG, say), so compare with runs of this command alone.
    """

    benchmark: Literal["dpg", "geneval2", "t2i-compbench", "t2i-compbench-spacy"] = "geneval2"
    """t2i-compbench finds noun phrases by rules, t2i-compbench-spacy by spaCy (an extra), as the official script."""
    prompts: Path = Path("geneval2_data.jsonl")
    """The benchmark's own file."""
    asker: str = ""
    """vqascore, vqascore-small (see docs/rewards.md), blip, or a BLIP-VQA on the Hub or in a folder; downloaded when
    first used. Empty: blip for T2I-CompBench, else vqascore."""
    output: Path = Path("runs/questions")

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return cls.parse_as("evaluate questions", arguments)

    def run(self) -> int:
        from hypernoise.evaluation.questions import read_items
        from hypernoise.evaluation.report import table
        from hypernoise.evaluation.vqa_models import load
        from hypernoise.files import write_text

        check_numbers(self)
        shard = shard_of(self.shard)
        items = read_items(self.benchmark, self.prompts)
        items = items[: self.count] if self.count else items
        generator, methods, reward = made(self)
        prompts, cut = fitting(generator, [item.prompt for item in items], self.long_prompts)
        asker = load(
            self.asker or ("blip" if self.benchmark.startswith("t2i-compbench") else "vqascore"), generator.device
        )
        drawn = draw(self, generator, methods, prompts, reward, shard)
        if drawn.missing:
            return left_to_others(drawn.missing, "batches of pictures")
        asked = {key: self._asked(asker, items, records.files, shard) for key, records in drawn.records.items()}
        missing = sum(lines.count(None) for lines in asked.values())
        if missing:
            return left_to_others(missing, "pictures to ask about")
        found = {key: [line for line in lines if line is not None] for key, lines in asked.items()}
        rows = []
        for row, ((steps, method), lines) in zip(drawn.rows, found.items(), strict=True):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_text(self.output / f"questions-{method}-{steps}.jsonl", text)
            base = found[steps, "plain"]
            rows.append({**row, **scored(lines), **gain(lines, base), "benchmark": f"{self.benchmark}, {asker.name}"})
        write_summary(
            self.output, "evaluate questions", self, generator.device, rows, asker=asker.name, cut_prompts=cut
        )
        print(f"{self.benchmark}, asked of {asker.name}")
        print(table(rows))
        if self.report:
            shown = self._examples(items, rows, found, drawn.records)
            write_report(self, "evaluate questions", rows, shown, benchmark=self.benchmark, asker=asker.name)
        return 0

    def _examples(self, items: list[Any], rows: list[Any], found: dict[Any, Any], drawn: dict[Any, Any]) -> list[Any]:
        """The first prompts with each method's picture from the first noise, its score, and what it is not."""
        from hypernoise.evaluation.page import Example, Shown, name_of

        names = [name_of(row) for row in rows]

        def shown(place: int) -> list[Shown]:
            return [
                Shown(name, drawn[key].files[place], None, told(found[key][place]))
                for name, key in zip(names, found, strict=True)
            ]

        return [Example(item.prompt, self.benchmark, shown(i * self.noises)) for i, item in enumerate(items[:SHOWN])]

    def _asked(
        self, asker: Any, items: list[Any], files: list[Path], shard: tuple[int, int]
    ) -> list[dict[str, Any] | None]:
        """A line per picture, None if it is another shard's; answers are kept by a hash of picture and questions."""
        from tqdm import tqdm

        from hypernoise.evaluation.questions import BENCHMARKS
        from hypernoise.evaluation.rewards import read_picture
        from hypernoise.files import output_folder, write_json

        benchmark, kept_in = BENCHMARKS[self.benchmark], output_folder(self.output / "answers")
        lines: list[dict[str, Any] | None] = []
        for place, file in enumerate(tqdm(files, desc="asking", unit="picture")):
            item = items[place // self.noises]
            asked = [[question.text, question.answer] for question in item.questions]
            known = json.dumps([self.benchmark, asker.name, benchmark.sentence, asked])
            digest = hashlib.sha256(known.encode() + file.read_bytes()).hexdigest()
            kept = kept_in / f"{digest[:24]}.json"
            sure = answers(kept, len(asked))
            if sure is None and place % shard[1] == shard[0]:
                sure = asker(read_picture(file), item.questions, benchmark.sentence)
                write_json(kept, sure)
            if sure is None:
                lines.append(None)
                continue
            score, counted = benchmark.score(item, sure)
            questions = [
                {"question": q.text, "answer": q.answer, "category": q.category, "probability": p, "counted": c}
                for q, p, c in zip(item.questions, sure, counted, strict=True)
            ]
            line = {"file": file.name, "prompt": item.prompt, "score": score, "questions": questions}
            lines.append({"item": place // self.noises, **line})
        return lines


def answers(kept: Path, number: int) -> list[float] | None:
    """The probabilities in a file; None if it is not there, or is damaged."""
    from hypernoise.files import read_json

    found = read_json(kept)
    whole = isinstance(found, list) and len(found) == number and all(isinstance(one, float) for one in found)
    return found if whole else None


def told(line: dict[str, Any]) -> str:
    """A picture's score, and the questions whose right answer is not the likelier one."""
    wrong = [question["question"] for question in line["questions"] if question["probability"] <= 0.5]
    return "; ".join([f"{line['score']:.3f}", *wrong])


def scored(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean over pictures with its interval over prompts; `categories` are means over their questions."""
    import numpy as np

    from hypernoise.evaluation.bootstrap import interval

    values = by_item(lines)
    categories: dict[str, list[float]] = {}
    for line in lines:
        for question in line["questions"]:
            categories.setdefault(question["category"], []).append(question["counted"])
    means = {name: float(np.mean(found)) for name, found in categories.items()}
    arithmetic = [np.mean([question["probability"] for question in line["questions"]]) for line in lines]
    return {
        "score": float(values.mean()),
        "score_ci95": interval(values, np.zeros(len(values))),
        "mean_probability": float(np.mean(arithmetic)),
        "categories": means,
    }


def gain(lines: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np

    from hypernoise.evaluation.bootstrap import interval

    if lines is base:
        return {"gain": None, "gain_ci95": None}
    risen = by_item(lines) - by_item(base)
    return {"gain": float(risen.mean()), "gain_ci95": interval(risen, np.zeros(len(risen)))}


def by_item(lines: list[dict[str, Any]]) -> Any:
    """[prompts], each prompt's mean score over its pictures."""
    import numpy as np

    items: dict[int, list[float]] = {}
    for line in lines:
        items.setdefault(line["item"], []).append(line["score"])
    return np.array([np.mean(scores) for scores in items.values()])
