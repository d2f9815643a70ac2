"""Advice from a finished run's rows: which settings to change, and in which direction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hypernoise.settings import finite
from hypernoise.training.config import MOST_DIMENSIONS, TrainConfig

FEWEST = 40  # rows needed for advice
SURE = 2.0  # standard errors
WORTH = 0.02  # as a share of the objective's whole fall
MANY = 0.5  # as a share of updates
BEST_OF = 8  # its KL, log n − (n − 1)/n, is little to spend


def advice(rows: Sequence[Mapping[str, Any]], config: TrainConfig, dimensions: int, *, exact: bool) -> str:
    """One line of advice on a finished run; empty if it was too short.

    Args:
        rows: the whole run's rows of metrics.jsonl.
        dimensions: the noise's.
        exact: whether the rows' KL is the whole KL rather than ½‖f‖².
    """
    columns = ("loss", "kl", "gradient_norm")
    seen = [row for row in rows if all(finite(row.get(name)) for name in columns)]
    if len(seen) < FEWEST:
        return ""
    quarter = len(seen) // 4
    before, last = ([float(row["loss"]) for row in part] for part in (seen[-2 * quarter : -quarter], seen[-quarter:]))
    now, fallen = statistics.fmean(last), statistics.fmean(before) - statistics.fmean(last)
    error = math.sqrt((statistics.variance(before) + statistics.variance(last)) / quarter)
    whole = statistics.fmean(float(row["loss"]) for row in seen[: max(1, quarter // 5)]) - now
    improving = fallen > max(SURE * error, WORTH * whole)
    clipped = statistics.fmean(row["gradient_norm"] > config.max_grad_norm for row in seen[-2 * quarter :])
    share = f"{clipped:.0%} of the last updates were clipped"
    if improving:
        rate = " (and max_grad_norm)" if clipped > MANY and config.optimizer == "sgd" else ""
        pace = f"raise max_train_steps, or learning_rate{rate}"
    elif config.lr_scheduler == "constant":
        pace = "more updates alone bring little; a decaying learning_rate (lr_scheduler: cosine) may help"
    else:
        pace = "its learning rate has decayed to 0; a longer run (max_train_steps) shows if there is more to gain"
    how = f"{'still' if improving else 'no longer'} improving ({now:.3g}, {fallen:+.2g} better than a quarter before)"
    parts = [f"after {seen[-1]['step']} updates the objective was {how}; {share}: {pace}"]
    parts.append(_of_kl(statistics.fmean(float(row["kl"]) for row in seen[-quarter:]), config, dimensions))
    if not exact and dimensions <= MOST_DIMENSIONS:
        parts.append(f"½‖f‖² is only a part of the KL: in {dimensions} dimensions kl_term: exact counts all of it")
    return "; ".join(parts)


def _of_kl(nats: float, config: TrainConfig, dimensions: int) -> str:
    little = math.log(BEST_OF) - (BEST_OF - 1) / BEST_OF
    much = (config.kl_limit or 0.5) * max(dimensions, 64) / 4
    spent = f"the KL is {nats:.2g} nats"
    if nats > much:
        return f"{spent}, a quarter of kl_limit or more: raise kl_weight if the pictures suffer"
    if nats < little:
        return f"{spent}, less than best-of-{BEST_OF} spends ({little:.2f}): a lower kl_weight lets f go further"
    return f"{spent}: a lower kl_weight trades more of it for reward, a higher one the reverse"
