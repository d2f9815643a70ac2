"""`hypernoise compare`: ways to spend compute, on the same prompts and noises."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from hypernoise.commands.drawing import check_methods, fitting, named
from hypernoise.commands.generator import WithGenerator
from hypernoise.errors import InputError, at_least_one
from hypernoise.training.config import Weights

SHOWN = 12  # prompts on the contact sheet
REPORTED = 60  # in the report


@dataclass(frozen=True)
class Compare(WithGenerator):
    """Compare methods on the same prompts and noises: score, reward, artefacts, diversity, calls and time.

    plain comes first whether named or not: gains are over it, with paired 95 % intervals over prompts. Writes
    summary.json, pareto.svg, contact_sheet.png and every picture to --output, and finds what is there already:
    a further method, or the same command after it was stopped, costs only what is missing.
    """

    methods: tuple[str, ...] = ("plain", "best-of-8", "reno-50")
    """plain, best-of-N, search-ROUNDSxNEIGHBOURS, reno[-ITERATIONS][-xSTARTS], white-reno..., hypernoise,
    hypernoise-reno..., finetune, prompt-search[-N]."""
    adapter: tuple[str, ...] = ()
    """Adapter directories, one per training run, for hypernoise (which is then drawn too) and hypernoise-reno."""
    finetuned: tuple[str, ...] = ()
    """Directories of fine-tuned LoRAs, for finetune (which is then drawn too)."""
    prompts: str = "scenes"
    """A text file with a prompt a line, or "scenes" for the embedded world's held-out captions, which are judged."""
    judged: int = 50
    """Held-out captions per category; 50 are the benchmark."""
    noises: int = 4
    """Pictures per prompt."""
    steps: tuple[int, ...] = (1,)
    """Denoiser calls per picture."""
    rewards: Weights = field(default_factory=dict)
    """What the methods search by, and what is reported; scenes for that world's captions if none is named."""
    watched: Weights = field(default_factory=dict)
    """Rewards that no method sees, reported beside."""
    rewriter: str = ""
    """For prompt-search: the address of an OpenAI-compatible endpoint (its key is read from OPENAI_API_KEY), or the
    directory of a transformers model; without one, scenes captions are reworded offline."""
    rewriter_model: str = ""
    """The model's name at the endpoint."""
    report: bool = False
    """Write report.html too: tables, curves, and pictures side by side to filter, in one file that needs no other."""
    long_prompts: Literal["refuse", "cut"] = "refuse"
    """Prompts beyond the generator's text encoder: refuse them, or draw (and reward) the words that fit."""
    batch_size: int = 16
    seed: int = 0
    shard: str = ""
    """k/n: this process makes every n-th batch from the k-th on; all write to the same --output. Empty: as torchrun
    or accelerate launch has it, else all."""
    output: Path = Path("runs/compare")

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return cls.parse_as("compare", arguments)

    def run(self) -> int:
        shard = self._checked()
        from tqdm import tqdm

        from hypernoise.commands.common import left_to_others, write_report, write_summary
        from hypernoise.evaluation.engine import compare
        from hypernoise.evaluation.report import contact_sheet, pareto_svg
        from hypernoise.files import output_folder, write_text
        from hypernoise.methods.registry import Given, make_methods
        from hypernoise.rewards.ensemble import WeightedSum

        if not self.rewards and self.prompts != "scenes":
            raise InputError("name what the methods search by and are compared in, such as --rewards pickscore")
        reward = WeightedSum(self.rewards or {"scenes": 1.0})
        watched = WeightedSum(self.watched) if self.watched else None
        asked = asked_for(self.prompts, self.judged)
        given = Given(self.adapter, self.finetuned, self._rewriter(asked.prompts))
        methods = make_methods(named(self), given)
        generator = self.load()
        check_methods(generator, methods, self.steps)
        prompts, cut = fitting(generator, asked.prompts, self.long_prompts)
        generator.encode_ahead(prompts)
        output_folder(self.output)
        self.tell_precision()
        total = len(methods) * len(self.steps) * len(asked.prompts) * self.noises
        with tqdm(total=-(-total // shard[1]), unit="picture") as bar:
            found = compare(
                generator,
                methods,
                prompts,
                reward,
                steps=self.steps,
                noises=self.noises,
                seed=self.seed,
                batch_size=self.batch_size,
                watched=watched,
                judge=asked.judge,
                categories=asked.categories,
                output=self.output,
                shard=shard,
                progress=bar.update,
            )
        if found.missing:
            return left_to_others(found.missing, "batches")
        write_summary(self.output, "compare", self, generator.device, found.rows, prompts=asked.about, cut_prompts=cut)
        print(found)
        write_text(self.output / "pareto.svg", pareto_svg(found.rows))
        firsts = asked.shown(SHOWN)
        columns = [
            (name if len(self.steps) == 1 else f"{name}, {steps}", [records.files[i * self.noises] for i in firsts])
            for (steps, name), records in found.records.items()
        ]
        title = "Same prompts, same noises."
        contact_sheet([asked.prompts[i] for i in firsts], columns, title).save(self.output / "contact_sheet.png")
        print(f"pictures: {self.output / 'contact_sheet.png'}", file=sys.stderr)
        if self.report:
            write_report(self, "compare", found.rows, self._examples(asked, found), prompts=self.prompts)
        return 0

    def _examples(self, asked: Asked, found: Any) -> list[Any]:
        """The first prompts of each category with each method's picture from the first noise."""
        from hypernoise.evaluation.page import Example, Shown, name_of

        columns = list(zip([name_of(row) for row in found.rows], found.records.values(), strict=True))

        def shown(name: str, records: Any, i: int) -> Shown:
            right = records.values["right"]
            return Shown(name, records.files[i * self.noises], None if right is None else bool(right[i, 0]))

        names = asked.categories or ["all"] * len(asked.prompts)
        return [
            Example(asked.prompts[i], names[i], [shown(name, records, i) for name, records in columns])
            for i in asked.shown(REPORTED)
        ]

    def _checked(self) -> tuple[int, int]:
        """The shard; raises InputError for impossible numbers."""
        from hypernoise.commands.common import shard_of

        at_least_one(self, "judged", "noises", "batch_size", flags=True)
        if not self.steps or min(self.steps) < 1:
            raise InputError(f"--steps takes numbers from 1, such as 1 2 4, not {list(self.steps)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be from 0 to 2**63 - 1, not {self.seed}")
        return shard_of(self.shard)

    def _rewriter(self, prompts: list[str]) -> Any:
        if self.rewriter.startswith(("http://", "https://")):
            from hypernoise.methods.rewriters import EndpointRewriter

            if not self.rewriter_model:
                raise InputError("--rewriter-model names the model at the endpoint")
            return EndpointRewriter(self.rewriter, self.rewriter_model)
        if self.rewriter:
            from hypernoise.methods.rewriters import LocalRewriter

            return LocalRewriter(self.rewriter)
        from hypernoise.scenes.rewriter import ScenesRewriter

        offline = ScenesRewriter()
        return offline if all(prompt in offline.requests for prompt in prompts) else None


@dataclass(frozen=True)
class Asked:
    """The prompts of a comparison, what judges them, and what the summary says of them."""

    prompts: list[str]
    categories: list[str] | None
    judge: Any
    about: dict[str, Any]

    def shown(self, number: int) -> list[int]:
        """Indices of the prompts on the sheet: the first of each category in turn, none picked by its looks."""
        names = self.categories or ["all"] * len(self.prompts)
        turn = {i: names[:i].count(name) for i, name in enumerate(names)}
        return sorted(sorted(turn, key=lambda i: (turn[i], i))[:number])


def asked_for(prompts: str, judged: int) -> Asked:
    """The prompts of a file, or "scenes" for the scenes benchmark's."""
    if prompts == "scenes":
        return scenes_prompts(judged)
    from hypernoise.prompts import read_prompts

    found = read_prompts(prompts)
    return Asked(found, None, None, {"file": prompts, "count": len(found)})


def scenes_prompts(judged: int) -> Asked:
    """The scenes benchmark's prompts, `judged` per category, and its judge."""
    from hypernoise.evaluation.records import Judgement
    from hypernoise.scenes.judge import judge
    from hypernoise.scenes.prompts import EVALUATION_VERSION, digest, evaluation_requests

    requests = evaluation_requests(judged)
    by_caption = {request.caption: request for request in requests}

    def judged_by(picture: Any, prompt: str) -> Judgement:
        verdict = judge(picture, by_caption[prompt])
        return Judgement(verdict.correct, verdict.artefacts)

    about = {"version": EVALUATION_VERSION, "count": len(requests), "sha256": digest(requests)}
    categories = [request.category for request in requests]
    return Asked([request.caption for request in requests], categories, judged_by, about)
