"""`hypernoise evaluate WHAT`: one table of the things that can be measured."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hypernoise.commands.common import listing
from hypernoise.errors import InputError, unknown

EVALUATIONS = {
    "scenes": ("evaluate_scenes", "EvaluateScenes"),
    "rewards": ("evaluate_rewards", "EvaluateRewards"),
    "geneval": ("evaluate_geneval", "EvaluateGeneval"),
    "diversity": ("evaluate_diversity", "EvaluateDiversity"),
    "questions": ("evaluate_questions", "EvaluateQuestions"),
}


class Evaluate:
    """Hands the flags to the evaluation that is named first."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Any:
        if not arguments:
            raise InputError(f"say what to evaluate: {', '.join(EVALUATIONS)}")
        if arguments[0] in ("-h", "--help"):
            print(listing("evaluate", EVALUATIONS))
            raise SystemExit(0)
        if arguments[0] not in EVALUATIONS:
            raise unknown("evaluation", arguments[0], EVALUATIONS)
        module, name = EVALUATIONS[arguments[0]]
        return getattr(import_module(f"hypernoise.commands.{module}"), name).parse(arguments[1:])
