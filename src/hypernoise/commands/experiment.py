"""`hypernoise experiment WHICH`: one table of the experiments, each one command, each resumable."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hypernoise.commands.common import listing
from hypernoise.errors import InputError, unknown

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
        if not arguments:
            raise InputError(f"say which experiment: {', '.join(EXPERIMENTS)}")
        if arguments[0] in ("-h", "--help"):
            print(listing("experiment", EXPERIMENTS))
            raise SystemExit(0)
        if arguments[0] not in EXPERIMENTS:
            raise unknown("experiment", arguments[0], EXPERIMENTS)
        module, name = EXPERIMENTS[arguments[0]]
        return getattr(import_module(f"hypernoise.commands.{module}"), name).parse(arguments[1:])
