import pytest
import torch

from hypernoise.diagnostics.whiteness import band_powers, white_checks
from tests.diagnostics.test_kl import draws


def worst(noise):
    return max(white_checks(noise), key=lambda check: abs(check.z))


def named(noise, name):
    return next(check for check in white_checks(noise) if check.name == name)


def test_white_noise_passes_and_its_scores_are_standard_normal():
    scores = torch.tensor([[check.z for check in white_checks(draws(8, 4, 8, 8, seed=s)[0])] for s in range(300)])
    assert scores.shape == (300, 11)
    assert scores.mean(0).abs().max() < 0.25
    assert (scores.std(0) - 1).abs().max() < 0.25


def test_what_is_not_white_is_named():
    noise, _ = draws(32, 4, 8, 8)
    assert abs(worst(noise).z) < 4
    assert abs(named(noise + 0.2, "mean").z) > 10
    assert named(1.1 * noise, "variance").z > 10
    assert named(1.1 * noise, "variance").found == pytest.approx(1.21, abs=0.05)
    same = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * 16
    assert named(same, "variance of ‖z‖² / 2d").z < -2  # every norm alike
    smooth = 0.9**0.5 * noise + 0.1**0.5 * noise.roll(1, 3)
    assert named(smooth, "neighbours across").z > 10
    assert abs(named(smooth, "neighbours down").z) < 4


def test_powers_are_by_frequency_and_add_up():
    noise, _ = draws(16, 4, 8, 8)
    bands = band_powers(noise)
    assert sum(band.share for band in bands) == pytest.approx(1)
    assert sum(band.share * band.power for band in bands) == pytest.approx(noise.square().mean().item())
    assert all(band.power == pytest.approx(1, abs=0.2) for band in bands)
    flat = torch.ones(2, 4, 8, 8) * torch.randn(2, 4, 1, 1)
    lowest, *others = band_powers(flat)
    assert lowest.share == pytest.approx(
        6 / 64
    )  # (0,0) (0,1) (1,0) (1,1) (0,2) (2,0), at most a quarter of the highest
    assert max(band.power for band in others) < 1e-9 * lowest.power
    board = torch.ones(2, 4, 8, 8)
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1
    assert band_powers(board)[0].power < 0.1 * band_powers(board)[-1].power


def test_flat_noise_has_no_spatial_statistics():
    assert [check.name for check in white_checks(draws(8, 16)[0])] == [
        "mean",
        "variance",
        "mean square of the mean at each place, times noises",
        "variance of ‖z‖² / 2d",
    ]


def test_a_pattern_of_zero_mean_is_found():
    """Too faint for the variance: 0.01 of it, at every noise the same."""
    noise, _ = draws(200, 4, 8, 8)
    pattern, _ = draws(1, 4, 8, 8, seed=1)
    moved = noise + 0.1 * (pattern - pattern.mean()) / pattern.std()
    assert named(moved, "mean square of the mean at each place, times noises").z > 10
    assert max(abs(check.z) for check in white_checks(moved) if "each place" not in check.name) < 4
