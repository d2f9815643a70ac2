"""Advice from a finished run's rows: which settings to change, and in which direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hypernoise.training.config import MOST_DIMENSIONS, TrainConfig
from hypernoise.training.guards import FEWEST as FEWEST_DIMENSIONS

READ = ("step", "loss", "kl", "gradient_norm")
FEWEST = 40  # rows needed for advice
SURE = 2.0  # standard errors
WORTH = 0.02  # as a share of the objective's whole fall
MANY = 0.5  # as a share of updates
LITTLE = math.log(8) - 7 / 8  # nats: the KL of best-of-8


def advice(rows: Iterable[Mapping[str, Any]], config: TrainConfig, dimensions: int, *, exact: bool) -> str:
    """One line of advice on a finished run; empty if it was too short.

    Args:
        rows: the whole run's rows of metrics.jsonl.
        dimensions: the noise's.
        exact: whether the rows' KL is the whole KL rather than ½‖f‖².
    """
    seen = [[row[name] for name in READ] for row in rows if all(name in row for name in READ)]
    if len(seen) < FEWEST:
        return ""
    quarter = len(seen) // 4
    steps, loss, kl, norm = np.array(seen, dtype=float).T
    before, last, nats = loss[-2 * quarter : -quarter], loss[-quarter:], kl[-quarter:].mean()
    now, fallen = last.mean(), before.mean() - last.mean()
    error = math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / quarter)
    improving = fallen > max(SURE * error, WORTH * (loss[: max(1, quarter // 5)].mean() - now))
    clipped = (norm[-2 * quarter :] > config.max_grad_norm).mean()
    if improving:
        rate = " (and max_grad_norm)" if clipped > MANY and config.optimizer == "sgd" else ""
        pace = f"raise max_train_steps, or learning_rate{rate}"
    elif config.lr_scheduler == "constant":
        pace = "more updates alone bring little; a decaying learning_rate (lr_scheduler: cosine) may help"
    else:
        pace = "its learning rate has decayed to 0; a longer run (max_train_steps) shows if there is more to gain"
    if nats > (config.kl_limit or 0.5) * max(dimensions, FEWEST_DIMENSIONS) / 4:
        weight = ", a quarter of kl_limit or more: raise kl_weight if the pictures suffer"
    elif nats < LITTLE:
        weight = f", less than best-of-8 spends ({LITTLE:.2f}): a lower kl_weight lets f go further"
    else:
        weight = ": a lower kl_weight trades more of it for reward, a higher one the reverse"
    if not exact and dimensions <= MOST_DIMENSIONS:
        weight += f"; ½‖f‖² is only a part of the KL: in {dimensions} dimensions kl_term: exact counts all of it"
    how = f"{'still' if improving else 'no longer'} improving ({now:.3g}, {fallen:+.2g} better than a quarter before)"
    return (
        f"after {steps[-1]:.0f} updates the objective was {how}; {clipped:.0%} of the last updates were clipped: "
        f"{pace}; the KL is {nats:.2g} nats{weight}"
    )
