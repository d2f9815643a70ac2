"""How far pictures moved, from below: a bound of KL(P || Q) by a classifier that tells samples of P from those of Q.

By data processing the pictures' divergence never exceeds the noise's (arXiv 2508.09968, section 3), so a bound
above the noise's KL would mean that one of the two is wrong. For any function T

    KL(P || Q) ≥ 1 + E_P[T] − E_Q[exp T]

(Nguyen, Wainwright and Jordan 2010), with equality at T = log(p/q), which is what a classifier's logit learns. T is
learned on one half of the samples and the means are taken on the other, then the halves change places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hypernoise.diagnostics.kl import Estimate
from hypernoise.errors import InputError

COMPONENTS = 16  # principal components of the samples that the classifier sees at most, with their squares,
SAMPLES_EACH = 4  # and samples that it needs of P and of Q for each
RIDGE = 4.0  # divided by the number of samples: what few samples cannot tell is not said
POOLED = 8  # pictures are averaged to 8 x 8
STEEPEST = 4.0  # |T| is cut there: a logit of 50 would make E_Q[exp T] a matter of one sample


def kl_lower_bound(improved: Tensor, plain: Tensor) -> Estimate:
    """A lower bound, in expectation, of KL(P || Q) in nats, from independent samples of P and Q, [N, ...] each.

    Raises:
        InputError: fewer than 16 samples of either.
    """
    if min(len(improved), len(plain)) < 16:
        raise InputError(f"a divergence needs at least 16 samples of each, not {len(improved)} and {len(plain)}")
    p, q = _features(improved), _features(plain)
    halves = [(p[::2], p[1::2], q[::2], q[1::2]), (p[1::2], p[::2], q[1::2], q[::2])]
    values, variances = [], []
    for learn_p, test_p, learn_q, test_q in halves:
        statistic = _learn(learn_p, learn_q)
        on_p, on_q = statistic(test_p), statistic(test_q).exp()
        values.append((1 + on_p.mean() - on_q.mean()).item())
        variances.append((on_p.var() / len(on_p) + on_q.var() / len(on_q)).item())
    return Estimate(sum(values) / 2, math.sqrt(sum(variances)) / 2)


def _features(samples: Tensor) -> Tensor:
    values = samples.detach().cpu().double()
    if values.ndim == 4 and min(values.shape[2:]) > POOLED:
        values = nn.functional.adaptive_avg_pool2d(values, POOLED)
    return values.flatten(1)


def _learn(p: Tensor, q: Tensor):
    """T: a ridge logistic regression on the first principal components and their squares."""
    both = torch.cat([p, q])
    centre = both.mean(0)
    directions = torch.linalg.svd(both - centre, full_matrices=False).Vh[: min(COMPONENTS, len(p) // SAMPLES_EACH)].T
    scale = ((both - centre) @ directions).std(0).clamp_min(1e-12)

    def read(samples: Tensor) -> Tensor:
        components = ((samples - centre) @ directions) / scale
        return torch.cat([components, components.square() - 1], 1)

    inputs, labels = read(both), torch.cat([torch.ones(len(p)), torch.zeros(len(q))]).double()
    weights = torch.zeros(inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weights[1:] + weights[0]
        value = (
            nn.functional.binary_cross_entropy_with_logits(logits, labels)
            + RIDGE / len(both) * weights[1:].square().sum()
        )
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    found, odds = weights.detach(), math.log(len(p) / len(q))  # the logit is log(p/q) plus the odds of the counts
    return lambda samples: (read(samples) @ found[1:] + found[0] - odds).clamp(-STEEPEST, STEEPEST)
