"""The theory on a problem where all of it is known: g(x) = x, r(x) = −½‖x − m‖², f affine, trained to convergence.

The L2 objective is least at f(x) = (m − x)/(1 + α): J = −I/(1 + α), so L = 1/(1 + α), and the terms that it drops
are the most that the theory allows, d(−log(1 − L) − L).
"""

import json

import pytest
import torch

from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.diagnostics.lipschitz import kl_gap_bound, spectral_norm
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.module import ModuleGenerator
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.training.config import Lipschitz, TrainConfig
from hypernoise.training.loop import train
from hypernoise.training.step import exact_gap
from tests.conftest import disturb
from tests.diagnostics.test_kl import draws, gaussian_kl, within
from tests.test_objective import linear_generator

ALPHA, D = 1.0, 4
MIDDLE = torch.tensor([2.0, -1.0, 0.0, 1.0], dtype=torch.float64)


def reward(pixels, prompts):
    return -0.5 * (pixels - MIDDLE).flatten(1).square().sum(1)


def trained(output=None, **changes):
    network = ResidualNoise((1, 1, D), depth=0).double()
    settings = {
        "max_train_steps": 300,
        "train_batch_size": 64,
        "learning_rate": 0.03,
        "kl_weight": ALPHA,
        "lr_scheduler": "cosine",
        "max_grad_norm": 100.0,
        **changes,
    }
    generator = linear_generator(torch.eye(D, dtype=torch.float64))
    train(generator, network, reward, ["any"], TrainConfig(**settings), output_dir=output, progress=False)
    return network


def parts(network):
    """f's matrix and shift, and the closed-form KL of x + f(x)."""
    matrix, shift = network.network[0].weight.detach(), network.network[0].bias.detach()
    return matrix, shift, gaussian_kl(matrix, shift)


@pytest.fixture(scope="module")
def free():
    return trained()


@pytest.mark.parametrize("method", ["exact", "arnoldi"])
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


def test_a_clamped_run_keeps_its_bound_at_every_step(free, tmp_path):
    bound = 0.3
    network = trained(
        tmp_path, lipschitz=Lipschitz("clamp", bound), diagnostics=("lipschitz", "kl"), diagnostics_steps=1
    )
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
    assert report.gap.value < 0.35 * estimate_kl(free, noise, condition).gap.value
    assert shift.norm() == pytest.approx((MIDDLE / (1 + ALPHA)).norm().item(), rel=0.02)  # the shift is free


def test_a_penalised_run_ends_between_free_and_bound():
    network = trained(lipschitz=Lipschitz("penalty", 0.3, 20.0))
    noise, condition = draws(20, 1, 1, D, seed=9)
    assert 0.3 < spectral_norm(network, noise, condition, iterations=20).max().item() < 0.4


def test_the_exact_kl_trains_to_the_tilted_noise_that_l2_misses(free):
    """p*(x) ∝ N(0, I)·exp(r/α) is N(m/(1 + α), α/(1 + α)·I) here: a variance of ½, where L2's f leaves ¼.

    Which f takes N(0, I) there is free up to a rotation of x.
    """
    matrix, shift, truth = parts(trained(kl_term="exact", train_batch_size=16))
    eye = torch.eye(D, dtype=torch.float64)
    assert torch.allclose((eye + matrix) @ (eye + matrix).T, ALPHA / (1 + ALPHA) * eye, atol=0.03)
    assert torch.allclose(shift, MIDDLE / (1 + ALPHA), atol=0.03)

    def objective(matrix, shift, kl):  # α·KL − E[r], in closed form
        return ALPHA * kl + 0.5 * ((eye + matrix).square().sum() + (shift - MIDDLE).square().sum()).item()

    assert objective(matrix, shift, truth) < objective(*parts(free)) - 0.1


def test_the_logged_kl_of_an_exact_run_is_the_whole(tmp_path):
    trained(tmp_path, kl_term="exact", max_train_steps=60, train_batch_size=16, kl_limit=0)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss"] == pytest.approx(ALPHA * last["kl"] - last["reward"], rel=1e-5)


def test_the_exact_gap_is_the_reports_and_its_gradient_right():
    network = ResidualNoise((3,), width=5, depth=1).double()
    disturb(network, 0.4)
    noise, condition = draws(4, 3)
    gap = exact_gap(network, noise, condition)
    assert gap.mean().item() == pytest.approx(estimate_kl(network, noise, condition, method="exact").gap.value)
    gap.sum().backward()
    weight = network.network[1].weight
    gradient, values = weight.grad[1, 2].item(), []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            weight[1, 2] += step
        values.append(exact_gap(network, noise, condition).sum().item())
    assert abs(gradient) > 1e-3
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_the_exact_gap_of_a_pipeline_has_a_gradient(sd_pipeline):
    """Attention's fused kernels have no second derivative, in fp32 on a CPU either."""
    generator = DiffusionGenerator(sd_pipeline(), name="tiny", size=(8, 8))  # a backward pass for each of 64 numbers
    network = LoRANoise(generator, rank=2)
    disturb(network, 0.05)
    noise, _ = draws(1, *generator.noise_shape, dtype=torch.float32)
    exact_gap(network, noise, generator.encode(["a ring"])).sum().backward()
    gradients = [p.grad for p in network.trainable_parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert max(gradient.abs().max().item() for gradient in gradients) > 0


def test_noise_too_large_for_the_exact_kl_is_refused():
    generator = ModuleGenerator(torch.nn.Identity(), noise_shape=(1, 1, 300), pictures=False)
    with pytest.raises(InputError, match="256 at most; this noise has 300: use kl_term: l2"):
        train(generator, ResidualNoise((1, 1, 300)), reward, ["any"], TrainConfig(max_train_steps=1, kl_term="exact"))
