"""What is measured beside training: is the KL term still to be trusted?

Always on the same few noises and prompts, so that a curve over the steps shows the network's change and not
the noises'. Nothing here touches torch's own random numbers, so a watched run trains to the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.diagnostics.lipschitz import kl_gap_bound, spectral_norm
from hypernoise.evaluation.charts import Line, line_chart, page
from hypernoise.generators.base import Condition, Generator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.draws import WATCH_STEP, keyed_noise
from hypernoise.prompts import spread
from hypernoise.training.metrics import rows_of

NOISES = 4


def watch(
    names: Sequence[str],
    generator: Generator,
    network: NoiseNetwork,
    prompts: Sequence[str],
    *,
    seed: int,
    encode: Callable[[list[str]], Condition] | None = None,
) -> dict[str, float]:
    """Columns of metrics.jsonl, on 4 noises of their own. `encode` stands in for the generator's.

    lipschitz: the greatest ‖J‖₂ seen, a lower bound of Lip(f); gap_bound: the most that the KL's dropped terms
    can be if it is the constant everywhere (absent from 1 on). kl_gap, kl_gap_error: what they are, in nats.
    """
    noise, condition = watched_noise(generator, network, prompts, seed=seed, encode=encode)
    row: dict[str, float] = {}
    if "lipschitz" in names:
        row["lipschitz"] = spectral_norm(network, noise, condition).max().item()
        bound = kl_gap_bound(math.prod(generator.noise_shape), row["lipschitz"])
        if math.isfinite(bound):
            row["gap_bound"] = bound
    if "kl" in names:
        gap = estimate_kl(network, noise, condition).gap
        row["kl_gap"], row["kl_gap_error"] = gap.value, gap.error
    return row


def watched_noise(
    generator: Generator,
    network: NoiseNetwork,
    prompts: Sequence[str],
    *,
    seed: int,
    encode: Callable[[list[str]], Condition] | None = None,
) -> tuple[Tensor, Condition]:
    """The 4 noises that `watch` measures on, and their conditions."""
    noise = keyed_noise(generator.noise_shape, seed=seed, step=WATCH_STEP, samples=range(NOISES))
    noise = noise.to(generator.device, network.trainable_parameters()[0].dtype)
    return noise, (encode or generator.encode)(spread(prompts, NOISES))


def stretch_warning(run: Path) -> str:
    """What is said of a run, by its folder, whose Lipschitz constant was seen at 1 or more; empty if it was not."""
    rows = rows_of(run)
    over = [row for row in rows if row.get("lipschitz", 0.0) >= 1]
    if not over:
        return ""
    last = next(row for row in reversed(rows) if "lipschitz" in row)
    return (
        f"Lipschitz constant {over[0]['lipschitz']:.3g} at step {over[0]['step']}, {last['lipschitz']:.3g} at the end: "
        "from 1 on nothing bounds what the KL term leaves out; train with --lipschitz penalty or clamp, or look at "
        "what it is with hypernoise diagnose"
    )


def draw_watched(run: Path, file: Path) -> bool:
    """Charts the Lipschitz constant of a run's folder over the steps; False if it was not watched.

    The constant against 1; beside it the bound of the KL's dropped terms, where there is one, and they themselves,
    if they were watched.
    """
    rows = rows_of(run)

    def curve(name: str) -> list[tuple[float, float]]:
        return [(row["step"], row[name]) for row in rows if name in row]

    seen = curve("lipschitz")
    if not seen:
        return False
    one = Line("1", [(seen[0][0], 1.0), (seen[-1][0], 1.0)])
    charts = [line_chart([Line("seen", seen), one], title="Lipschitz constant of the residual", across="step")]
    names = {"gap_bound": "at most, if L is as seen: d(-log(1 - L) - L)", "kl_gap": "measured"}
    dropped = [Line(told, curve(name)) for name, told in names.items() if curve(name)]
    if dropped:
        charts.append(line_chart(dropped, title="Terms of the KL that training leaves out, nats", across="step"))
    page("Below 1 the terms left out are bounded; from 1 on nothing bounds them.", charts).save(file)
    return True
