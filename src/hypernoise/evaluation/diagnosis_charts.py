"""The page of a diagnosis: its verdict and plots."""

from __future__ import annotations

from PIL import Image

from hypernoise.diagnostics.diagnosis import Diagnosis
from hypernoise.evaluation.charts import Line, line_chart, page


def charts(found: Diagnosis, verdict: str) -> Image.Image:
    """The verdict and its plots on one page."""
    ranked = sorted(found.norms, reverse=True)
    numbers = range(1, len(ranked) + 1)
    drawn = [
        line_chart(
            [
                Line("‖J‖ at each noise", list(zip(numbers, ranked, strict=True)), dots=True),
                _level("1", 1.0, len(ranked)),
            ],
            title="Stretch of the residual, noises ranked",
        )
    ]
    if found.bands is not None:
        middles = [(band.low + band.high) / 2 for band in found.bands]
        powers = list(zip(middles, [band.power for band in found.bands], strict=True))
        drawn.append(line_chart([Line("mean square of f", powers)], title="Spectrum of f", across="frequency"))
        white = [check for check in found.checks if check.name.startswith("power")]
        after = list(zip(middles, [check.found for check in white], strict=True))
        drawn.append(
            line_chart(
                [Line("x + f", after), Line("N(0, I)", [(middles[0], 1.0), (middles[-1], 1.0)])],
                title="Spectrum of the improved noise",
                across="frequency",
            )
        )
    scores = [(i + 1, check.z) for i, check in enumerate(found.checks)]
    drawn.append(
        line_chart(
            [Line("z-score", scores, dots=True), _level("±3", 3.0, len(scores)), _level("", -3.0, len(scores))],
            title="x + f against N(0, I): " + f"{len(scores)} statistics",
        )
    )
    return page(verdict, drawn)


def _level(name: str, height: float, last: int) -> Line:
    return Line(name, [(1, height), (last, height)])
