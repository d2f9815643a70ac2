"""`hypernoise evaluate WHAT`: one table of the things that can be measured."""

from __future__ import annotations

from typing import Any

from hypernoise.commands.common import parse_within

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
        return parse_within("evaluate", EVALUATIONS, arguments, kind="evaluation", ask="say what to evaluate")
