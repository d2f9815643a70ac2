"""`hypernoise experiment WHICH`: one table of the experiments, each one command, each resumable."""

from __future__ import annotations

from typing import Any

from hypernoise.commands.common import parse_within

EXPERIMENTS = {
    "redness": ("experiment_redness", "Redness"),
    "amortisation": ("experiment_amortisation", "Amortisation"),
    "steps": ("experiment_steps", "Steps"),
    "ablations": ("experiment_ablations", "Ablations"),
}


class ExperimentCommand:
    """Hands the flags to the experiment that is named first."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Any:
        return parse_within("experiment", EXPERIMENTS, arguments, kind="experiment", ask="say which experiment")
