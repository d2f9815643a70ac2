import math

import pytest
import torch
from torch import nn

from hypernoise.diagnostics.divergence import kl_lower_bound
from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.errors import InputError
from hypernoise.generators.registry import load_generator
from tests.diagnostics.test_kl import affine, draws, gaussian_kl


@pytest.mark.parametrize(("shift", "factor"), [(1.0, 1.0), (0.3, 1.0), (0.0, 0.6), (0.7, 0.7), (0.0, 1.0)])
def test_the_bound_lies_below_gaussians_kl_and_near_it(shift, factor):
    d = 3
    p, q = draws(2000, d)[0] * factor + shift, draws(2000, d, seed=1)[0]
    truth = d * 0.5 * (factor**2 + shift**2 - 1 - 2 * math.log(factor))
    found = kl_lower_bound(p, q)
    assert found.value <= truth + 3 * found.error
    assert found.value >= 0.75 * truth - 3 * found.error
    assert found.error < 0.15


def test_too_few_samples_are_refused():
    with pytest.raises(InputError, match="at least 16 samples of each, not 8 and 20"):
        kl_lower_bound(torch.zeros(8, 2), torch.zeros(20, 2))


def test_outputs_never_diverge_more_than_the_noise_in_closed_form():
    """g(x) = W x: outputs N(W b, W A Aᵀ Wᵀ) against N(0, W Wᵀ)."""
    draw = torch.Generator().manual_seed(0)
    for rows in (1, 2, 3, 4):
        w = torch.randn(rows, 4, generator=draw, dtype=torch.float64)
        matrix = 0.3 * torch.randn(4, 4, generator=draw, dtype=torch.float64)
        shift = torch.randn(4, generator=draw, dtype=torch.float64)
        a = torch.eye(4, dtype=torch.float64) + matrix
        mean, covariance, base = w @ shift, w @ a @ a.T @ w.T, w @ w.T
        solved = torch.linalg.solve(base, covariance)
        outputs = 0.5 * (
            solved.trace() + mean @ torch.linalg.solve(base, mean) - rows - torch.linalg.slogdet(solved).logabsdet
        )
        noise, condition = draws(2000, 4)
        reported = estimate_kl(affine(matrix, shift), noise, condition, method="exact").kl
        truth = gaussian_kl(matrix, shift)
        assert outputs <= reported.value + 3 * reported.error
        if rows == 4:  # nothing is lost
            assert outputs == pytest.approx(truth)
        else:
            assert 0 < outputs < 0.99 * truth
        improved, plain = (draws(2000, 4, seed=s)[0] for s in (1, 2))
        seen = kl_lower_bound((improved @ a.T + shift) @ w.T, plain @ w.T)
        assert seen.value <= outputs + 3 * seen.error


def test_pictures_of_scenes_diverge_less_than_their_noise():
    """A shift of every number, of which a circle reads a few."""

    class Shift(nn.Module):
        def forward(self, noise, condition):
            return 0 * noise + 1 / 2  # ½ · 256 / 4 = 32 nats

    generator = load_generator("scenes", device="cpu")
    noise, _ = draws(768, *generator.noise_shape, dtype=torch.float32)
    condition = generator.encode(["a red circle"] * 384)
    reported = estimate_kl(Shift(), noise[:4], condition[:4]).kl
    assert reported.value == pytest.approx(32, rel=1e-5)
    with torch.no_grad():
        improved = generator.sample(noise[:384] + 1 / 2, condition)
        seen = kl_lower_bound(improved, generator.sample(noise[384:], condition))
    assert seen.value > 3 * seen.error
    assert seen.value + 3 * seen.error < reported.value
