"""`hypernoise evaluate`: compares methods on the same prompts and noises by judge, reward and calls."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from hypernoise.commands.common import WithGenerator, write_report
from hypernoise.errors import InputError, shown
from hypernoise.settings import AtOnce, Natural, Seed, launched, whole_number


@dataclass(frozen=True)
class Evaluate(WithGenerator):
    """Compare methods on the same prompts and noises: score, reward, artefacts, diversity, KL, calls and time.

    plain always comes first; gains are paired with it by prompt, with 95 % bootstrap intervals. Writes summary.json,
    report.html, before_after.png and every picture to --output-dir. Existing results there are reused: an added method,
    or a restart after an interruption, draws only what is missing.
    """

    ESSENTIAL: ClassVar = ("methods", "adapter", "prompts", "count", "num_inference_steps", "rewards", "output_dir")
    methods: tuple[str, ...] = ("plain",)
    """plain, best-of-N, search-ROUNDSxNEIGHBOURS, reno[-ITERATIONS], hypernoise[@STRENGTH], finetune,
    prompt-search[-N]."""
    adapter: tuple[str, ...] = ()
    """Adapter directories, one per training run, for hypernoise (which they add to --methods). Several form one row:
    the runs' mean, with intervals over prompts and runs."""
    finetuned: tuple[str, ...] = ()
    """Directories of fine-tuned LoRAs, for finetune (which they add to --methods)."""
    prompts: str = "scenes"
    """scenes (the embedded world's held-out captions, with their judge), geneval (the official 553) or geneval:FILE
    (metadata of that format), questions:FILE (dpg_bench.csv, geneval2_data.jsonl, UniGenBench++'s
    test_prompts_en.csv), or a file with a prompt per line, which has no judge."""
    count: Natural = 0
    """First prompts of each category to use; 0: all (50 for scenes)."""
    num_images_per_prompt: AtOnce = 4
    num_inference_steps: tuple[int, ...] = (1,)
    """Denoiser calls per picture; each number gets its own rows."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Rewards that methods search by and the report shows; default for --prompts scenes: the scenes reward."""
    validation_rewards: dict[str, float] = field(default_factory=dict)
    """Rewards that are reported but no method uses."""
    judge: str = ""
    """The judging model, from the Hub (downloaded on first use) or a folder: a Mask2Former for geneval, for
    questions vqascore or one of its siblings. Empty: the default one; none: draw only."""
    colors: str = ""
    """For geneval: a CLIP that classifies colours; empty: the default one."""
    batch_size: AtOnce = 16
    seed: Seed = 0
    shard: str = ""
    """k/n: this process draws every n-th batch from the k-th on; all write to the same --output-dir. Empty: the rank
    under torchrun or accelerate launch, otherwise all batches."""
    output_dir: Path = Path("runs/evaluate")

    def run(self) -> int:
        return self.evaluate("evaluate", self)

    def evaluate(self, command: str, arguments: Any) -> int:
        """Runs as a command with these arguments, which summary.json records."""
        shard = self._checked()
        import numpy as np
        from tqdm import tqdm

        from hypernoise.evaluation.benchmarks import load_benchmark
        from hypernoise.evaluation.engine import compare
        from hypernoise.evaluation.page import charts_of, result_tables
        from hypernoise.evaluation.picture_sheet import before_and_after, examples_of
        from hypernoise.evaluation.result_rows import name_of, result_row
        from hypernoise.evaluation.summary import write_summary
        from hypernoise.files import output_folder
        from hypernoise.methods.best_of_n import Plain
        from hypernoise.methods.finetune import FineTune
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.registry import make_methods
        from hypernoise.rewards.ensemble import WeightedSum

        benchmark = load_benchmark(self.prompts, self.count, self.judge, self.colors)
        implied = [name for name, folders in (("hypernoise", self.adapter), ("finetune", self.finetuned)) if folders]
        names = list(dict.fromkeys(["plain", *self.methods, *implied]))
        runs = make_methods(names, adapters=self.adapter, finetuned=self.finetuned, rewriter=benchmark.rewriter)
        methods = [method for own in runs for method in own]
        searching = [method.name for method in methods if not isinstance(method, Plain | HyperNoise | FineTune)]
        weights = self.rewards or benchmark.rewards
        if searching and not weights:
            raise InputError(f"{searching[0]} searches by a reward: name one, such as --rewards pickscore")
        generator = self.load()
        for steps in self.num_inference_steps:
            generator.check_steps(steps)
        for method in methods:
            if isinstance(method, HyperNoise | FineTune):
                method.adapter.on(generator)
        generator.check_prompts(benchmark.prompts)
        reward = WeightedSum(weights) if weights else None
        validation = WeightedSum(self.validation_rewards) if self.validation_rewards else None
        judge = benchmark.load_judge(generator.device) if benchmark.load_judge else None
        output_folder(self.output_dir)
        self.log_precision(generator.device)
        total = len(methods) * len(self.num_inference_steps) * len(benchmark.prompts) * self.num_images_per_prompt
        with tqdm(total=total if shard[1] == 1 else None, unit="picture") as bar:  # a shard's share is whole batches
            found = compare(
                generator,
                methods,
                benchmark.prompts,
                reward,
                num_inference_steps=self.num_inference_steps,
                num_images_per_prompt=self.num_images_per_prompt,
                seed=self.seed,
                batch_size=self.batch_size,
                validation_reward=validation,
                judge=judge,
                categories=benchmark.categories,
                output=self.output_dir,
                shard=shard,
                progress=bar.update,
            )
        if found.missing:
            print(f"batches left to other shards: {found.missing}; the last prints the table", file=sys.stderr)
            return 0

        for records in found.records.values():
            benchmark.write(self.output_dir, records)
        categories = np.array(benchmark.categories or ["all"] * len(benchmark.prompts))
        rows, drawn = [], []  # of several training runs, the first one's pictures
        for steps, own in product(self.num_inference_steps, runs):
            records = [found.records[steps, method.name] for method in own]
            name = own[0].name.removesuffix("-1") if len(own) > 1 else own[0].name
            rows.append(result_row(name, steps, records, found.records[steps, "plain"], categories))
            drawn.append(records[0])
        write_summary(self.output_dir, command, arguments, generator.device, rows, prompts=benchmark.about)
        before_and_after(benchmark, rows, drawn).save(self.output_dir / "before_after.png")
        facts = {"generator": self.generator, "prompts": self.prompts, **benchmark.about}
        named = {name_of(row): records for row, records in zip(rows, drawn, strict=True)}
        examples = examples_of(benchmark, named, each=10, most=60)
        write_report(self.output_dir, command, facts, result_tables(rows), charts_of(rows), examples)
        return 0

    def _checked(self) -> tuple[int, int]:
        """The shard. Raises InputError for numbers out of range."""
        if not self.num_inference_steps:
            raise InputError("--num-inference-steps takes numbers from 1, such as 1 2 4")
        for steps in self.num_inference_steps:
            whole_number(steps, "--num-inference-steps")
        for flag, given in (("num-inference-steps", self.num_inference_steps), ("adapter", self.adapter)):
            if len(set(given)) < len(given):
                raise InputError(f"--{flag} takes each once, not {' '.join(map(str, given))}")
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard)
        if self.shard and (found is None or int(found[1]) >= int(found[2])):
            raise InputError(f"--shard takes k/n with k below n, such as 0/4, not {shown(self.shard)}")
        return (int(found[1]), int(found[2])) if found else launched()
