"""The theory on a problem where all of it is known: g(x) = x, r(x) = −½‖x − m‖², f affine, trained to convergence.

The L2 objective is least at f(x) = (m − x)/(1 + α): J = −I/(1 + α), so L = 1/(1 + α), and the terms that it drops
are the most that the theory allows, d(−log(1 − L) − L).
"""

import json

import pytest
import torch

from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.diagnostics.lipschitz import kl_gap_bound, spectral_norm
from hypernoise.noise.residual import ResidualNoise
from hypernoise.training.config import TrainConfig
from hypernoise.training.trainer import train
from tests.diagnostics.test_kl import draws, gaussian_kl, within
from tests.test_objective import linear_generator

ALPHA, D = 1.0, 4
MIDDLE = torch.tensor([2.0, -1.0, 0.0, 1.0], dtype=torch.float64)


def reward(pixels, prompts):
    return -0.5 * (pixels - MIDDLE).flatten(1).square().sum(1)


def trained(output=None, **changes):
    network = ResidualNoise((1, 1, D), depth=0).double()
    settings = {"steps": 300, "batch_size": 64, "lr": 0.03, "kl_weight": ALPHA, "decay": True, "clip": 100.0, **changes}
    generator = linear_generator(torch.eye(D, dtype=torch.float64))
    train(generator, network, reward, ["any"], TrainConfig(**settings), output=output, progress=False)
    return network


def parts(network):
    """f's matrix and shift, and the closed-form KL of x + f(x)."""
    matrix, shift = network.network[0].weight.detach(), network.network[0].bias.detach()
    return matrix, shift, gaussian_kl(matrix, shift)


@pytest.fixture(scope="module")
def free():
    return trained()


@pytest.mark.parametrize("method", ["exact", "series", "arnoldi", "lanczos"])
def test_the_reported_kl_is_the_truth_within_its_error(free, method):
    noise, condition = draws(200, 1, 1, D, seed=9)
    report = estimate_kl(free, noise, condition, method=method)
    *_, truth = parts(free)
    assert within(report.kl, truth, errors=3)
    assert report.kl.error < 0.15 * truth


def test_l2_alone_is_wrong_by_what_the_theory_says(free):
    matrix, shift, truth = parts(free)
    low = 1 / (1 + ALPHA)
    assert torch.allclose(matrix, -low * torch.eye(D, dtype=torch.float64), atol=0.01)
    assert torch.allclose(shift, low * MIDDLE, atol=0.01)
    l2 = 0.5 * (shift @ shift + matrix.square().sum()).item()  # E[½‖Mx + s‖²]
    assert truth - l2 == pytest.approx(kl_gap_bound(D, low), rel=0.03)  # 0.77 nats of 2.02
    noise, condition = draws(200, 1, 1, D, seed=9)
    report = estimate_kl(free, noise, condition)
    assert within(report.l2, l2, errors=3)
    assert report.gap.value == pytest.approx(truth - l2, rel=1e-6)
    assert truth - report.l2.value > 3 * report.l2.error  # which L2's own error does not tell


def test_a_clamped_run_keeps_its_bound_at_every_step(tmp_path):
    bound = 0.3
    network = trained(tmp_path, lipschitz="clamp", lipschitz_bound=bound, watch=("lipschitz", "kl"), watch_every=1)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    seen = [row["lipschitz"] for row in rows]
    assert len(seen) == 300
    assert max(seen) <= bound * (1 + 1e-6)
    assert seen[-1] == pytest.approx(bound, rel=0.02)  # the optimum, 0.5, lies outside
    assert all(row["kl_gap"] <= kl_gap_bound(D, bound) + 1e-9 for row in rows)
    matrix, shift, truth = parts(network)
    noise, condition = draws(200, 1, 1, D, seed=9)
    report = estimate_kl(network, noise, condition)
    assert within(report.kl, truth, errors=3)
    assert report.gap.value < 0.35 * estimate_kl(trained(), noise, condition).gap.value
    assert shift.norm() == pytest.approx((MIDDLE / (1 + ALPHA)).norm().item(), rel=0.02)  # the shift is free


def test_a_penalised_run_ends_between_free_and_bound():
    network = trained(lipschitz="penalty", lipschitz_bound=0.3, lipschitz_weight=20.0)
    noise, condition = draws(20, 1, 1, D, seed=9)
    assert 0.3 < spectral_norm(network, noise, condition, iterations=20).max().item() < 0.4
