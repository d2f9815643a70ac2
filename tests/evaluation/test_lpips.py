"""LPIPS against its definition, step by step, on random weights in the published files."""

import pytest
import torch
from torch.nn.functional import conv2d, max_pool2d

from hypernoise.errors import InputError
from hypernoise.evaluation.lpips import load

WIDTHS = (64, 192, 384, 256, 256)


def published(folder):
    """Random weights in the published files: torchvision's with its classifier, and the heads."""
    draw = torch.Generator().manual_seed(0)
    state, before = {"classifier.1.weight": torch.zeros(2, 2)}, 3
    for number, width, kernel in zip((0, 3, 6, 8, 10), WIDTHS, (11, 5, 3, 3, 3), strict=True):
        spread = (2 / (before * kernel**2)) ** 0.5
        state[f"features.{number}.weight"] = spread * torch.randn(width, before, kernel, kernel, generator=draw)
        state[f"features.{number}.bias"] = 0.1 * torch.randn(width, generator=draw)
        before = width
    torch.save(state, folder / "alexnet-owt-7be5be79.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=draw) for i, width in enumerate(WIDTHS)}
    torch.save(heads, folder / "alex.pth")
    return state, heads


def layers(state, x):
    """The five layers' features, written out from the published definition."""
    w = {int(key.split(".")[1]): value for key, value in state.items() if key.endswith("weight") and "feat" in key}
    b = {int(key.split(".")[1]): value for key, value in state.items() if key.endswith("bias")}
    one = conv2d(x, w[0], b[0], 4, 2).relu()
    two = conv2d(max_pool2d(one, 3, 2), w[3], b[3], 1, 2).relu()
    three = conv2d(max_pool2d(two, 3, 2), w[6], b[6], 1, 1).relu()
    four = conv2d(three, w[8], b[8], 1, 1).relu()
    return [one, two, three, four, conv2d(four, w[10], b[10], 1, 1).relu()]


def test_squared_distances_are_lpips_by_its_definition(tmp_path):
    state, heads = published(tmp_path)
    ours = load(tmp_path, "cpu")
    a, b = torch.rand(2, 2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)  # of its scaling layer, for pixels in [-1, 1]
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    seen = [layers(state, (2 * pixels - 1 - shift) / scale) for pixels in (a, b)]
    expected = 0
    for place, (one, other) in enumerate(zip(*seen, strict=True)):
        differ = (one / one.norm(dim=1, keepdim=True) - other / other.norm(dim=1, keepdim=True)).square()
        expected += (differ * heads[f"lin{place}.model.1.weight"]).sum(1).mean((1, 2))
    assert (ours(a) - ours(b)).square().sum(1).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert expected.min() > 0.01
    assert (ours(a) - ours(a.clone())).abs().max() == 0


def test_files_that_do_not_fit_are_refused(tmp_path):
    published(tmp_path)
    file = tmp_path / "alex.pth"
    heads = torch.load(file, weights_only=True)
    torch.save({**heads, "lin0.model.1.weight": -heads["lin0.model.1.weight"]}, file)
    with pytest.raises(InputError, match=r"alex.pth has negative weights"):
        load(tmp_path, "cpu")
    torch.save({name: value for name, value in heads.items() if "lin4" not in name}, file)
    with pytest.raises(InputError, match=r"1 missing \(lin4.model.1.weight\)"):
        load(tmp_path, "cpu")
    with pytest.raises(InputError, match="there is no weights file"):
        load(tmp_path / "nowhere", "cpu")
