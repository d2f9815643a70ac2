"""`hypernoise watch DIR`: where a training run is, and its curves as a page."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import tyro

from hypernoise.errors import InputError
from hypernoise.files import write_text


@dataclass(frozen=True)
class Watch:
    """Print where a run is, and write DIR/report.html with its curves and its newest sample grids."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """What the run was given as --output."""
    every: float = 0.0
    """Do it again every so many seconds, until the run has ended, however it did; 0: once."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise watch")

    def run(self) -> int:
        from hypernoise.training.metrics import METRICS, rows_of
        from hypernoise.training.report import page, state_line
        from hypernoise.training.run_status import end_of

        if not self.every >= 0:
            raise InputError(f"--every must be 0 or more seconds, not {self.every}")
        if not (self.run_folder / METRICS).is_file():
            raise InputError(f"{self.run_folder} has no {METRICS}: name the --output of a training run")
        report = self.run_folder / "report.html"
        while True:
            ended = end_of(self.run_folder)
            rows = rows_of(self.run_folder)
            if not rows and ended:
                raise InputError(f"the run in {self.run_folder} ended before its first row: {ended}")
            if not rows and not self.every:
                raise InputError(f"{self.run_folder / METRICS} has no row yet; --every 10 waits for them")
            if rows:
                done = bool(ended) if ended is not None else not rows[-1].get("eta_seconds", 0)
                print(state_line(rows, ended or ""), flush=True)
                write_text(report, page(self.run_folder, 0 if done else int(self.every)))
                if done or not self.every:
                    print(report)
                    return 0
            time.sleep(self.every)
