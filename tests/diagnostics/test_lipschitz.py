import math

import pytest
import torch
from torch import nn

from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.diagnostics.lipschitz import (
    SILU,
    Linearised,
    jacobian,
    kl_gap_bound,
    lipschitz_bound,
    spectral_norm,
)
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.memory import Memory
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from tests.conftest import disturb
from tests.diagnostics.test_kl import affine, draws


def test_spectral_norm_of_an_affine_map_is_its_matrixs():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise, condition = draws(3, 6)
    truth = torch.linalg.matrix_norm(matrix, ord=2).item()
    found = spectral_norm(affine(matrix), noise, condition, iterations=60)
    assert found.tolist() == pytest.approx([truth] * 3, rel=1e-9)
    early = [spectral_norm(affine(matrix), noise, condition, iterations=k) for k in (1, 2, 4)]
    assert (early[0] < early[1]).all()  # from below, rising
    assert (early[1] < early[2]).all()
    assert (early[2] <= found).all()


def test_spectral_norm_of_a_lora_on_a_real_denoiser_is_its_jacobians(generator):
    network = LoRANoise(generator, rank=4)
    disturb(network, 0.05)
    noise, _ = draws(2, *generator.noise_shape)
    condition = generator.encode(["a red circle", "two blue rings"])
    found = spectral_norm(network, noise, condition, iterations=30)
    whole = jacobian(Linearised(lambda x: network(x, condition), noise))
    truth = torch.linalg.matrix_norm(whole[0], ord=2).item()
    assert truth > 0.1
    assert found[0].item() == pytest.approx(truth, rel=1e-2)
    assert found[0].item() <= truth * (1 + 1e-9)


def test_layers_that_compute_again_give_the_same(sd_pipeline):
    noise, norms = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for checkpointing in (False, True):
        generator = DiffusionGenerator(sd_pipeline(), memory=Memory(gradient_checkpointing=checkpointing))
        network = LoRANoise(generator, rank=4)
        disturb(network, 0.05)
        norms.append(spectral_norm(network, noise, generator.encode(["a red circle", "two blue rings"])))
    assert torch.allclose(*norms, rtol=1e-4)
    assert norms[0].min() > 0


def test_autocast_around_it_changes_nothing():
    """Inside it a bf16 weight would meet an fp32 dual tensor."""
    conv, x = nn.Conv2d(2, 2, 3, padding=1), torch.randn(1, 2, 4, 4)
    expected = Linearised(conv, x).jvp(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Linearised(conv, x).jvp(x), expected)


def test_before_training_it_is_zero():
    noise, condition = draws(2, 5)
    assert spectral_norm(ResidualNoise((5,)).double(), noise, condition).tolist() == [0, 0]


def test_the_norm_at_any_noise_lies_below_the_bound():
    network = ResidualNoise((8,), width=16, depth=2).double()
    disturb(network, 0.2)
    noise, condition = draws(200, 8)
    other, _ = draws(200, 8, seed=1)
    norms = spectral_norm(network, noise, condition, iterations=30)
    assert 0.1 < norms.max() < lipschitz_bound(network)
    with torch.no_grad():  # a small step cannot stretch more
        change = network(noise + 1e-6 * other, condition) - network(noise, condition)
    assert (change.norm(dim=1) / (1e-6 * other).norm(dim=1) <= norms + 1e-6).all()


def test_layers_norms_multiply_to_the_bound():
    network = ResidualNoise((4,), width=3, depth=1).double()
    disturb(network, 0.5)
    first, last = network.network[0][0].weight, network.network[1].weight
    norms = [torch.linalg.matrix_norm(w, ord=2).item() for w in (first, last)]
    assert lipschitz_bound(network) == pytest.approx(norms[0] * norms[1] * SILU, rel=1e-6)


def test_silus_greatest_slope():
    x = torch.linspace(-10, 10, 200001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(nn.functional.silu(x).sum(), x)
    assert slope.max().item() == pytest.approx(SILU, abs=1e-7)


def test_gap_bound_holds_is_attained_and_ends_at_one():
    assert kl_gap_bound(100, 0.1) == pytest.approx(100 * 0.1**2 / 2, rel=0.1)
    assert kl_gap_bound(10, 1.0) == kl_gap_bound(10, 1.5) == math.inf
    noise, condition = draws(50, 6)
    draw = torch.Generator().manual_seed(1)
    for _ in range(5):
        matrix = torch.randn(6, 6, generator=draw, dtype=torch.float64)
        matrix *= 0.6 / torch.linalg.matrix_norm(matrix, ord=2)
        gap = estimate_kl(affine(matrix), noise, condition, method="exact").gap.value
        assert 0 < abs(gap) <= kl_gap_bound(6, 0.6)


def test_wrong_calls_are_refused(generator):
    noise, condition = draws(3, 4)
    with pytest.raises(InputError, match="iterations must be at least 1"):
        spectral_norm(affine(torch.eye(4)), noise, condition, iterations=0)
    assert lipschitz_bound(LoRANoise(generator, rank=3, alpha=6.0)) == math.inf
