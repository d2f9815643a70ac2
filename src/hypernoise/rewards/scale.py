"""The deviation of a reward's scores over training, by which an ensemble may divide them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

KEPT = 0.99  # share of the past that each batch leaves: the scale follows some hundred batches


@dataclass(frozen=True)
class RunningScale:
    """Standard deviation of the scores seen, older batches fading; 1 until two scores differ.

    Scores that are not finite are ignored.
    """

    count: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def after(self, scores: Tensor) -> RunningScale:
        """The scale once these scores are seen too."""
        values = scores.detach().double()
        values = values[values.isfinite()]
        return RunningScale(
            KEPT * self.count + len(values),
            KEPT * self.total + values.sum().item(),
            KEPT * self.squares + values.square().sum().item(),
        )

    @property
    def value(self) -> float:
        if self.count == 0:
            return 1.0
        mean = self.total / self.count
        variance = self.squares / self.count - mean**2
        return math.sqrt(variance) if variance > 1e-12 * mean**2 else 1.0
