"""The resize against Pillow's, which is an independent one: bicubic, antialiased, on floating-point pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.rewards.network import CLIP_MEAN, CLIP_STD, Resize, normalise

SIZES = [(40, 60), (61, 33), (17, 50), (16, 16), (9, 7), (32, 32)]


def pictures(height, width, dtype=torch.float64):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


def by_pillow(pixels, rows, columns):
    def resized(plane):
        picture = Image.fromarray(plane.float().numpy()).resize((columns, rows), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(picture).copy())

    return torch.stack([torch.stack([resized(plane) for plane in picture]) for picture in pixels])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_is_pillows_resize_of_the_short_side_and_the_middle(height, width):
    size = 16
    scale = size / min(height, width)
    rows, columns = int(height * scale + 1e-9), int(width * scale + 1e-9)  # torchvision cuts the long side down
    whole = by_pillow(pictures(height, width), rows, columns)
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    expected = whole[..., top : top + size, left : left + size]
    assert (Resize(size)(pictures(height, width)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pad_is_pillows_resize_of_the_long_side_on_black(height, width):
    size = 16
    scale = size / max(height, width)
    rows, columns = round(height * scale), round(width * scale)
    expected = torch.zeros(2, 3, size, size)
    above, before = (size - rows) // 2, (size - columns) // 2
    expected[..., above : above + rows, before : before + columns] = by_pillow(pictures(height, width), rows, columns)
    assert (Resize(size, "pad")(pictures(height, width)) - expected).abs().max() < 1e-5


def test_squash_is_pillows_resize_to_a_square():
    assert (Resize(16, "squash")(pictures(40, 60)) - by_pillow(pictures(40, 60), 16, 16)).abs().max() < 1e-5


def test_on_squares_every_fit_is_one_and_the_same():
    square = pictures(40, 40)
    for fit in ("pad", "squash"):
        assert torch.equal(Resize(16, fit)(square), Resize(16)(square))


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_gradient_is_right_by_finite_differences(fit):
    pixels = pictures(20, 27).requires_grad_()
    weights = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def function(pixels):
        return (weights * normalise(Resize(16, fit)(pixels), CLIP_MEAN, CLIP_STD).square()).sum()

    (gradient,) = torch.autograd.grad(function(pixels), pixels)
    assert gradient.abs().max() > 0
    along = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        rise = function(pixels + 1e-6 * along) - function(pixels - 1e-6 * along)
    assert (gradient * along).sum().item() == pytest.approx(rise.item() / 2e-6, rel=1e-6)


def test_half_precision_pictures_are_resized_in_fp32():
    assert Resize(16)(pictures(20, 20, torch.float32).bfloat16()).dtype == torch.float32


def test_normalise():
    flat = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1) + 2 * torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    assert torch.allclose(normalise(flat, CLIP_MEAN, CLIP_STD), torch.full((1, 3, 1, 1), 2.0))
