"""`hypernoise plan RECIPE`: what a recipe will take, before anything is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from hypernoise.commands.train import Train


@dataclass(frozen=True)
class Plan(Train):
    """Parameters, peak memory and arithmetic of a recipe, counted by running its step without data.

    Takes a recipe and train's flags; nothing is downloaded.
    """

    output: Path = Path("runs/plan")

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return cls.parse_as("plan", arguments)

    def run(self) -> int:
        from hypernoise.commands.common import write_summary
        from hypernoise.files import output_folder
        from hypernoise.plan import plan, table

        output_folder(self.output)
        found = plan(self)
        print(table(found))
        step = found.training
        rows = [{"peak_bytes": step.peak, "bytes": step.parts, "kept_bytes": step.kept, "flops": step.flops}]
        parameters = {"frozen": found.frozen, "trained": found.trained, "rewards": found.rewards}
        more = {"parameters": parameters, "overhead": found.overhead, "revision": found.revision}
        write_summary(self.output, "plan", self, "meta", rows, **more)
        return 0
