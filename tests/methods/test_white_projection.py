import math

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.methods.white_projection import _compact_spectrum, _from_compact_spectrum, _to_norms, project_white


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocks(x, block=16):
    return _compact_spectrum(x.flatten(1)).abs().unflatten(1, (-1, block))


def test_the_compact_spectrum_is_an_isometry_and_comes_back():
    x = draw(3, 64)
    y = _compact_spectrum(x)
    assert y.shape == (3, 32)
    assert torch.allclose(_from_compact_spectrum(y), x, atol=1e-12)
    assert torch.allclose(2 * y.abs().square().sum(1), x.square().sum(1))


def test_every_block_has_the_norms_of_white_noise():
    x = draw(4, 4, 8, 8)
    x[1] *= 30  # too loud
    x[2] += 5  # one frequency stands out
    x[3] = x[3].cumsum(-1)  # red
    projected = project_white(x)
    found = blocks(projected)
    assert torch.allclose(found.sum(-1), torch.full_like(found[..., 0], 16 * math.sqrt(math.pi) / 2))
    assert torch.allclose(found.square().sum(-1), torch.full_like(found[..., 0], 16.0))
    assert projected.shape == x.shape
    assert torch.allclose(projected.flatten(1).square().sum(1), torch.tensor(256.0, dtype=torch.float64))


def test_it_is_the_nearest_such_vector():
    """Against random vectors of the same norms, and those close by: none is nearer."""
    length = 3 * draw(1, 2, 16).abs()
    ours = _to_norms(length)
    distance = (ours - length).square().sum(-1)
    for seed in range(200):
        noise = draw(1, 2, 16, seed=seed)
        for other in (_to_norms(noise.abs()), _to_norms((ours + 0.05 * noise).clamp_min(0))):
            assert torch.allclose(other.square().sum(-1), torch.tensor(16.0, dtype=torch.float64))
            assert ((other - length).square().sum(-1) >= distance - 1e-9).all()


def test_a_projected_vector_stays_and_white_noise_hardly_moves():
    x = draw(8, 1024)
    once = project_white(x)
    assert torch.allclose(project_white(once), once, atol=1e-9)
    assert torch.cosine_similarity(x, once, dim=1).min() > 0.98  # the paper: at least 0.988 of 1.1 million


def test_flat_and_empty_blocks_are_finite():
    spike = torch.zeros(1, 64, dtype=torch.float64)
    spike[0, 0] = 1.0  # all frequencies alike
    flat = project_white(spike)
    assert torch.isfinite(flat).all()
    assert flat.square().sum().item() == pytest.approx(64)
    assert torch.equal(project_white(torch.zeros(2, 64)), torch.zeros(2, 64))


def test_samples_are_projected_apart_and_keep_their_type():
    x = draw(3, 2, 32).float()
    assert torch.allclose(project_white(x)[1:2], project_white(x[1:2]), atol=1e-6)
    assert project_white(x).dtype == torch.float32


def test_a_size_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="a noise of 48 numbers cannot be projected in blocks of 16 frequencies"):
        project_white(torch.zeros(1, 48))
