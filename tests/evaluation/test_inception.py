"""FID's network against torch-fidelity 0.4.0's, which was given the same weights and pictures once."""

import hashlib
import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.evaluation import features, inception
from hypernoise.evaluation.fidelity import frechet, kernel_distance


def hashed(count, start):
    """Numbers in [-0.5, 0.5) that look like chance and are the same everywhere."""
    waves = ((torch.arange(count, dtype=torch.float64) + start) * 12.9898).sin() * 43758.5453
    return waves - waves.floor() - 0.5


def weight(name, shape):
    noise = hashed(torch.Size(shape).numel(), zlib.crc32(name.encode()) % 100_000).view(shape)
    if len(shape) == 4:
        return (noise * (24 / (shape[1] * shape[2] * shape[3])) ** 0.5).float()
    return (float(name.rpartition(".")[2] in ("weight", "running_var")) + 0.2 * noise).float()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file with what the published one holds, the classifier and batch norm's counters included."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in inception.Inception().state_dict().items()}
    state = {name: weight(name, shape) for name, shape in shapes.items()}
    state |= {name.replace("weight", "num_batches_tracked"): torch.tensor(0) for name in state if "bn.weight" in name}
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, file)
    return file


PICTURES = (hashed(2 * 3 * 40 * 50, 1).view(2, 3, 40, 50) + 0.5).float()
GOLDEN = [  # features 0, 256, 512, 768 and 2047, and the length of all
    [0.376071959733963, 0.35406237840652466, 1.0211410522460938, 0.00835534930229187, 1.1700624227523804,
     17.66263415576827],
    [0.39578521251678467, 0.36480817198753357, 1.028075933456421, 0.009450077079236507, 1.1820714473724365,
     17.703202261474964],
]  # fmt: skip


def test_features_are_torch_fidelitys(published):
    found = features.load(str(published), "cpu")(PICTURES)
    assert found.shape == (2, 2048)
    told = [[*row[:1024:256].tolist(), row[-1].item(), row.norm().item()] for row in found.double()]
    for one, golden in zip(told, GOLDEN, strict=True):
        assert one == pytest.approx(golden, rel=1e-4, abs=1e-5)


def test_names_and_shapes_are_torch_fidelitys():
    with torch.device("meta"):
        state = inception.Inception().state_dict()
    table = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    assert len(table) == 470
    digest = "b628bc492e0cd5a5ea154bb78c4637db2a10ffa3c528519b65fb723b9bb5a5ac"
    assert hashlib.sha256("\n".join(table).encode()).hexdigest() == digest


def test_pictures_are_resized_as_tensorflow_1_did():
    ramp = torch.arange(598.0).view(1, 1, 1, -1).expand(1, 1, 2, -1)
    found = inception.resized(ramp)
    assert found.shape == (1, 1, 299, 299)
    assert found[0, 0, 0].tolist() == list(range(0, 598, 2))  # every second one, with no half pixel's shift
    small = inception.resized(torch.tensor([[[[0.0, 299.0]]]]))[0, 0, 0]
    assert small[:150].tolist() == pytest.approx([2.0 * i for i in range(150)], abs=1e-3)
    assert small[150:].tolist() == [299.0] * 149  # nothing beyond the last


def test_a_file_that_does_not_fit_is_refused(published, tmp_path):
    state = torch.load(published, weights_only=True)
    del state["Mixed_6a.branch3x3.conv.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(InputError, match=r"part.pth does not fit .* 1 missing \(Mixed_6a.branch3x3.conv.weight\)"):
        features.load(str(tmp_path / "part.pth"), "cpu")
    (tmp_path / "none.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a whole file of tensors"):
        features.load(str(tmp_path / "none.pth"), "cpu")
    with pytest.raises(InputError, match="cannot be downloaded: HF_HUB_OFFLINE is set"):
        features.load("inception", "cpu")


def test_fid_and_kid_of_folders(published, tmp_path, capsys):
    levels = (hashed(2 * 2 * 24 * 24 * 3, 7).view(2, 2, 24, 24, 3) * 255 + 127.5).byte().numpy()
    levels[1] //= 2  # darker
    for folder, name in enumerate(("base", "other")):
        place = tmp_path / name / "00000" / "samples"
        place.mkdir(parents=True)
        source = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "dog"}
        (place.parent / "metadata.jsonl").write_text(json.dumps(source))
        for index in range(2):
            Image.fromarray(levels[folder, index]).save(place / f"{index:05d}.png")
    call = ["evaluate", "diversity", "--pictures", str(tmp_path / "base"), str(tmp_path / "other"), "--device", "cpu"]
    assert main([*call, "--features", str(published), "--output", str(tmp_path / "out")]) == 0
    other = json.loads((tmp_path / "out" / "summary.json").read_text())["results"][1]
    network = features.load(str(published), "cpu")
    seen = [network(torch.tensor(pictures).permute(0, 3, 1, 2) / 255).double().numpy() for pictures in levels]
    assert other["frechet"] == pytest.approx(frechet(seen[1], seen[0]), rel=1e-3)
    assert other["kernel"] == pytest.approx(kernel_distance(seen[1], seen[0]), rel=1e-3)
    assert other["frechet"] > 0.1
    assert "frechet is FID and kernel is KID" in capsys.readouterr().out


class Given(nn.Module):
    num_features = 6

    def forward(self, features):
        return features


def test_the_formulas_are_torchmetrics():
    """An independent implementation of FID and KID, given the same features."""
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (the dev extra has it)")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    rng = np.random.default_rng(0)
    ours, base = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 0.5, rng.normal(size=(40, 6))
    fid, kid = FrechetInceptionDistance(Given()), KernelInceptionDistance(Given(), subsets=1, subset_size=40)
    for metric in (fid, kid):
        metric.set_dtype(torch.float64)
        metric.update(torch.tensor(base), real=True)
        metric.update(torch.tensor(ours), real=False)
    assert frechet(ours, base) == pytest.approx(fid.compute().item(), rel=1e-4)
    assert kernel_distance(ours, base) == pytest.approx(kid.compute()[0].item(), rel=1e-4)
