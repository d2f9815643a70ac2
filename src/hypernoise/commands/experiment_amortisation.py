"""The second experiment: how much of search's gain one call of f recovers, and for how much of its compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from hypernoise.commands.experiment_base import Experiment, pooled
from hypernoise.errors import InputError

PAPER = "0.57, 0.45 and 0.50 of ReNO-50's gain on SD-Turbo, SANA-Sprint and FLUX.1-schnell (its GenEval means)"


@dataclass(frozen=True)
class Amortisation(Experiment):
    """The share of each search's gain over plain that hypernoise has, and the share of its extra calls.

    Holds here if, against every search of --against, hypernoise recovers at least --target of the gain in score
    for at most --compute of the extra denoiser calls, forwards and backwards alike.
    """

    name: ClassVar[str] = "amortisation"
    adapter: tuple[str, ...] = ()
    """Adapter directories of finished training runs, to be used instead of training --seeds here."""
    searches: tuple[str, ...] = (
        *(f"best-of-{n}" for n in (2, 4, 8, 16, 50)),
        *(f"reno-{n}" for n in (5, 10, 25, 50)),
    )
    """Methods hypernoise is measured against: the whole curves."""
    against: tuple[str, ...] = ("reno-50",)
    target: float = 0.70
    compute: float = 0.02

    def run(self) -> int:
        if not self.against:
            raise InputError("--against takes at least one search, such as reno-50")
        import numpy as np

        from hypernoise.evaluation.report import network_calls, pareto_svg
        from hypernoise.files import write_text
        from hypernoise.methods.hypernoise import HyperNoise
        from hypernoise.methods.registry import Given, make_methods

        names = list(dict.fromkeys(["plain", *self.searches, *self.against]))
        searches = make_methods(names, Given(self.adapter))
        bench = self.bench()
        folders = list(self.adapter) or bench.trained()
        ours = [HyperNoise(folder, name=f"hypernoise-{number}") for number, folder in enumerate(folders)]
        found = bench.compare([*searches, *ours])
        plain = found.rows[0]
        row = pooled(found, "hypernoise", 1, [method.name for method in ours], bench.asked.categories)
        groups = np.array(bench.asked.categories)
        shares = {}
        for search in found.rows[1 : len(searches)]:
            extra, calls = (network_calls(one) - network_calls(plain) for one in (row, search))
            seconds = [one["seconds_per_image"] - plain["seconds_per_image"] for one in (row, search)]
            shares[search["method"]] = {
                "of_score_gain": _share(found, ours, search["method"], "right", groups),
                "of_reward_gain": _share(found, ours, search["method"], "reward", np.zeros(len(groups))),
                "of_extra_calls": extra / calls,
                "of_extra_seconds": seconds[0] / seconds[1] if seconds[1] > 0 else None,
            }
        rows = [plain, row, *found.rows[1 : len(searches)]]
        write_text(self.output / "pareto.svg", pareto_svg(rows))
        return bench.finish(rows, shares=shares, paper=PAPER, verdict=self._verdict(shares))

    def _verdict(self, shares: dict[str, Any]) -> str:
        for search in self.against:
            share, calls = shares[search]["of_score_gain"]["share"], shares[search]["of_extra_calls"]
            if share is None or share < self.target or calls > self.compute:
                return "does not hold"
        return "holds"


def _share(found: Any, ours: Any, search: str, measure: str, groups: Any) -> dict[str, Any]:
    """hypernoise's gain over a search's, each over plain, and its 95 % interval over prompts and runs, in pairs."""
    import numpy as np

    from hypernoise.evaluation.bootstrap import grouped_mean, resampled

    def by_prompt(name: str) -> Any:
        return found.records[1, name].values[measure].mean(1)

    base, sought = by_prompt("plain"), by_prompt(search)
    runs = np.stack([by_prompt(method.name) for method in ours])
    gain, best = grouped_mean(runs.mean(0) - base, groups), grouped_mean(sought - base, groups)
    if best <= 0:
        return {"share": None, "ci95": None}  # the search itself gained nothing
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample in which the search gained nothing is left out
        each = resampled(runs - base, groups) / resampled(np.repeat([sought - base], len(runs), 0), groups)
    low, high = np.percentile(each[np.isfinite(each)], [2.5, 97.5])
    return {"share": gain / best, "ci95": [float(low), float(high)]}
