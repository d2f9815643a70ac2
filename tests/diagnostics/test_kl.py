import math

import pytest
import torch

from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.diagnostics.lipschitz import Linearised, jacobian, spectral_norm
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.noise.spectral import SpectralNoise
from hypernoise.objective import exact_kl
from tests.conftest import disturb

METHODS = ["exact", "arnoldi"]


def affine(matrix, shift=None):
    network = ResidualNoise((len(matrix),), depth=0).double()
    with torch.no_grad():
        network.network[0].weight.copy_(matrix)
        network.network[0].bias.copy_(torch.zeros(len(matrix)) if shift is None else shift)
    return network


def gaussian_kl(matrix, shift):
    """KL(N(shift, (I + M)(I + M)ᵀ) || N(0, I))."""
    a = torch.eye(len(matrix), dtype=matrix.dtype) + matrix
    covariance = a @ a.T
    return 0.5 * (covariance.trace() + shift @ shift - len(matrix) - torch.logdet(covariance)).item()


def draws(count, *shape, seed=0, dtype=torch.float64):
    noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return noise, Condition({"index": torch.arange(count)})


def within(estimate, truth, errors=4):
    return abs(estimate.value - truth) <= errors * estimate.error


@pytest.mark.parametrize("method", METHODS)
def test_affine_residuals_have_the_gaussians_kl(method):
    draw = torch.Generator().manual_seed(0)
    matrix = 0.15 * torch.randn(6, 6, generator=draw, dtype=torch.float64)
    shift = torch.randn(6, generator=draw, dtype=torch.float64)
    noise, condition = draws(500, 6)
    report = estimate_kl(affine(matrix, shift), noise, condition, method=method, batch=125)
    truth = gaussian_kl(matrix, shift)
    assert within(report.kl, truth)
    assert report.kl.error < 0.1 * truth
    gap = (matrix.trace() - torch.logdet(torch.eye(6) + matrix)).item()
    if method == "exact":
        assert report.gap.value == pytest.approx(gap, abs=1e-12)  # the same at every noise
    else:
        assert within(report.gap, gap)
        assert 0 < report.gap.error < 0.1
    assert report.gap.error < report.kl.error


@pytest.mark.parametrize("method", METHODS)
def test_a_shift_has_no_gap_and_a_rotation_a_negative_one(method):
    noise, condition = draws(64, 2)
    shifted = estimate_kl(affine(torch.zeros(2, 2), torch.tensor([3.0, 4.0])), noise, condition, method=method)
    assert (shifted.kl.value, shifted.l2.value, shifted.gap.value) == pytest.approx((12.5, 12.5, 0.0))
    turned = estimate_kl(affine(torch.tensor([[0.0, -0.5], [0.5, 0.0]])), noise, condition, method=method)
    assert turned.gap.value == pytest.approx(-math.log(1.25))  # det(I + J) = 1 + ¼


@pytest.mark.parametrize("method", METHODS)
def test_a_contraction_attains_the_theorys_bound(method):
    """J = −L·I: the gap is d(−log(1 − L) − L), the most that Lip(f) = L allows."""
    d, low = 8, 0.4
    noise, condition = draws(4, d)
    report = estimate_kl(affine(-low * torch.eye(d, dtype=torch.float64)), noise, condition, method=method)
    assert report.gap.value == pytest.approx(d * (-math.log(1 - low) - low), rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_tiny_network_agrees_with_its_whole_jacobian(method):
    network = ResidualNoise((5,), width=7, depth=2).double()
    disturb(network, 0.3)
    noise, condition = draws(100, 5)
    truth = exact_kl(lambda x: network(x, condition), noise)
    report = estimate_kl(network, noise, condition, method=method)
    gap = estimate_kl(network, noise, condition, method="exact").gap.value
    assert report.l2.value > 0.02
    assert abs(gap) > 0.02
    if method == "exact":
        assert report.kl.value == pytest.approx(truth.mean().item(), rel=1e-12)
        assert report.kl.error == pytest.approx(truth.std().item() / 100**0.5, rel=1e-12)
    else:  # the noises are the same, so only the probes' error is between them
        assert abs(report.gap.value - gap) <= 4 * report.gap.error < 2 * abs(gap)


def test_a_lora_on_a_real_denoiser_agrees_with_its_whole_jacobian(generator):
    """The same noise many times: the standard error is then that of the probes."""
    network = LoRANoise(generator, rank=4)
    disturb(network, 0.05)
    noise, _ = draws(1, *generator.noise_shape)
    condition = generator.encode(["a red circle"])
    exact = estimate_kl(network, noise, condition, method="exact", batch=128)
    assert abs(exact.gap.value) > 0.01
    probed = estimate_kl(network, noise.expand(32, -1, -1, -1), condition[torch.zeros(32).long()])
    assert probed.l2.value == pytest.approx(exact.l2.value, rel=1e-9)
    assert abs(probed.gap.value - exact.gap.value) <= 4 * probed.gap.error < 0.2 * exact.l2.value


def test_a_network_that_knows_its_kl_gives_it():
    network = SpectralNoise(6, 1, k=1, width=8).double()
    disturb(network, 0.2)
    noise, condition = draws(400, 6)
    own = estimate_kl(network, noise, condition, batch=150)
    whole = estimate_kl(network, noise, condition, method="exact", batch=150)
    assert (own.own, whole.own) == (True, False)
    assert own.kl.value == pytest.approx(network.kl(noise, condition).mean().item())
    assert own.l2.value == pytest.approx(whole.l2.value)
    assert abs(own.gap.value) > 0.1
    assert within(whole.kl, own.kl.value)


def test_products_with_the_jacobian_match_finite_differences_and_each_other(generator):
    network = LoRANoise(generator, rank=4)
    disturb(network, 0.1)
    noise, _ = draws(2, *generator.noise_shape)
    condition = generator.encode(["a red circle", "two blue rings"])
    linear = Linearised(lambda x: network(x, condition), noise)
    along, across = draws(2, *generator.noise_shape, seed=1)[0], draws(2, *generator.noise_shape, seed=2)[0]
    step = 1e-5
    with torch.no_grad():
        slope = (network(noise + step * along, condition) - network(noise - step * along, condition)) / (2 * step)
    pushed = linear.jvp(along)
    assert pushed.abs().max() > 1e-3
    assert torch.allclose(pushed, slope, atol=1e-6)
    assert torch.allclose((across * pushed).flatten(1).sum(1), (along * linear.vjp(across)).flatten(1).sum(1))
    assert torch.allclose(jacobian(linear)[1] @ along[1].flatten(), pushed[1].flatten(), atol=1e-12)


def test_arnoldi_stands_expansion():
    draw = torch.Generator().manual_seed(3)
    matrix = torch.randn(6, 6, generator=draw, dtype=torch.float64)  # expands in some directions
    assert torch.linalg.eigvals(matrix).abs().max() > 1
    noise, condition = draws(100, 6)
    gap = (matrix.trace() - torch.linalg.slogdet(torch.eye(6) + matrix).logabsdet).item()
    assert within(estimate_kl(affine(matrix), noise, condition).gap, gap)


class Fold(NoiseNetwork):
    """x + f(x) = √(x² + 10⁻⁴): x and −x map to one point."""

    def forward(self, noise, condition):
        return (noise.square() + 1e-4).sqrt() - noise


@pytest.mark.parametrize("method", METHODS)
def test_a_fold_is_seen_where_the_kl_is_only_a_lower_bound(method):
    noise, condition = draws(400, 1)
    report = estimate_kl(Fold(), noise, condition, method=method)
    assert report.kl.value + 3 * report.kl.error < math.log(2)  # the truth
    assert torch.equal(spectral_norm(Fold(), noise, condition) >= 1, noise[:, 0] <= 0)  # by which it is seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("flattened", [3, 12])
def test_flattened_noise_has_an_infinite_kl(method, dtype, flattened):
    matrix = -torch.diag((torch.arange(12) < flattened).double())
    noise, condition = draws(4, 12, dtype=dtype)
    report = estimate_kl(affine(matrix).to(dtype), noise, condition, method=method)
    assert report.kl.value == report.gap.value == math.inf


def test_eight_steps_come_near_a_map_that_nearly_folds():
    """Forty dimensions in eight steps, and some of them nearly folded flat."""
    matrix = -torch.diag(torch.linspace(0, 0.99, 40, dtype=torch.float64))
    noise, condition = draws(100, 40)
    report = estimate_kl(affine(matrix), noise, condition)
    truth = (matrix.trace() - torch.logdet(torch.eye(40) + matrix)).item()
    assert report.gap.value == pytest.approx(truth, rel=0.02)


def test_fp32_costs_no_accuracy_that_matters():
    network = ResidualNoise((64,), width=32, depth=1)
    disturb(network, 0.1)
    noise, condition = draws(32, 64, dtype=torch.float32)
    single = estimate_kl(network.float(), noise, condition)
    double = estimate_kl(network.double(), noise.double(), condition)
    assert abs(double.gap.value) > 0.05
    assert single.gap.value == pytest.approx(double.gap.value, rel=1e-4)


def test_before_training_all_is_zero(generator):
    network = LoRANoise(generator, rank=2)
    noise, _ = draws(2, *generator.noise_shape)
    report = estimate_kl(network, noise, generator.encode(["a ring", "a cross"]))
    assert (report.kl.value, report.l2.value, report.gap.value) == pytest.approx((0, 0, 0), abs=1e-9)


def test_the_same_seed_gives_the_same_numbers_and_leaves_torchs_own_alone():
    network = affine(0.2 * torch.ones(4, 4))
    noise, condition = draws(6, 4)
    state = torch.get_rng_state()
    first, second, other = (estimate_kl(network, noise, condition, seed=s) for s in (0, 0, 1))
    assert first == second != other
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_calls_are_refused():
    network = affine(torch.zeros(2, 2))
    noise, condition = draws(2, 2)
    with pytest.raises(InputError, match="unknown method 'arnold'; did you mean 'arnoldi'"):
        estimate_kl(network, noise, condition, method="arnold")
    with pytest.raises(InputError, match="needs a noise and a batch, not 2 and 0"):
        estimate_kl(network, noise, condition, batch=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_that_is_not_finite_is_refused(method):
    network = affine(torch.full((3, 3), math.nan))
    with pytest.raises(InputError, match="the residual is not finite"):
        estimate_kl(network, *draws(2, 3), method=method)


def test_a_residual_that_ignores_the_noise():
    class Constant(NoiseNetwork):
        def forward(self, noise, condition):
            return torch.ones_like(noise)

    noise, condition = draws(3, 4)
    report = estimate_kl(Constant(), noise, condition)
    assert (report.kl.value, report.gap.value) == (2.0, 0.0)
