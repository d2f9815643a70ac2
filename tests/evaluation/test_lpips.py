"""LPIPS against its definition, step by step, on random trunks; and through the command, from local files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import conv2d, max_pool2d

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.evaluation.fidelity import mean_squared_distance
from hypernoise.evaluation.lpips import NETWORKS, load

WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def published(folder, name):
    """Random weights in the published files: torchvision's with its classifier, and the heads."""
    draw = torch.Generator().manual_seed(0)
    trunk = NETWORKS[name]
    state, width = {"classifier.1.weight": torch.zeros(2, 2)}, 3
    for conv in trunk.convs:
        spread = (2 / (width * conv.kernel**2)) ** 0.5
        weight = spread * torch.randn(conv.width, width, conv.kernel, conv.kernel, generator=draw)
        state[f"features.{conv.number}.weight"] = weight
        state[f"features.{conv.number}.bias"] = 0.1 * torch.randn(conv.width, generator=draw)
        width = conv.width
    torch.save(state, folder / trunk.weights.url.rpartition("/")[2])
    heads = {f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=draw) for i, w in enumerate(WIDTHS[name])}
    torch.save(heads, folder / trunk.heads.url.rpartition("/")[2])
    return state, heads


@pytest.fixture(params=["alex", "vgg"])
def network(request, tmp_path):
    return request.param, *published(tmp_path, request.param), load(request.param, tmp_path, "cpu")


def layers(name, state, x):
    """The five layers' features, written out from the published definition."""
    w = {int(key.split(".")[1]): value for key, value in state.items() if key.endswith("weight") and "feat" in key}
    b = {int(key.split(".")[1]): value for key, value in state.items() if key.endswith("bias")}
    if name == "alex":
        one = conv2d(x, w[0], b[0], 4, 2).relu()
        two = conv2d(max_pool2d(one, 3, 2), w[3], b[3], 1, 2).relu()
        three = conv2d(max_pool2d(two, 3, 2), w[6], b[6], 1, 1).relu()
        four = conv2d(three, w[8], b[8], 1, 1).relu()
        return [one, two, three, four, conv2d(four, w[10], b[10], 1, 1).relu()]
    found = []
    for numbers in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
        x = max_pool2d(x, 2) if found else x
        for number in numbers:
            x = conv2d(x, w[number], b[number], 1, 1).relu()
        found.append(x)
    return found


def test_squared_distances_are_lpips_by_its_definition(network):
    name, state, heads, ours = network
    a, b = torch.rand(2, 2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)  # of its scaling layer, for pixels in [-1, 1]
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    seen = [layers(name, state, (2 * pixels - 1 - shift) / scale) for pixels in (a, b)]
    expected = 0
    for place, (one, other) in enumerate(zip(*seen, strict=True)):
        differ = (one / one.norm(dim=1, keepdim=True) - other / other.norm(dim=1, keepdim=True)).square()
        expected += (differ * heads[f"lin{place}.model.1.weight"]).sum(1).mean((1, 2))
    assert (ours(a) - ours(b)).square().sum(1).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert expected.min() > 0.01
    assert (ours(a) - ours(a.clone())).abs().max() == 0


def test_the_mean_over_pairs_from_one_look_at_each():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7)) + 3
    pairs = [np.square(x[i] - x[j]).sum() for i in range(5) for j in range(i)]
    assert mean_squared_distance(iter(x)) == pytest.approx(np.mean(pairs))
    assert mean_squared_distance(x[[0, 0, 0]]) == pytest.approx(0, abs=1e-9)
    assert mean_squared_distance(x[:1]) is mean_squared_distance([]) is None


def test_files_that_do_not_fit_are_refused(tmp_path):
    published(tmp_path, "alex")
    file = tmp_path / "alex.pth"
    heads = torch.load(file, weights_only=True)
    torch.save({**heads, "lin0.model.1.weight": -heads["lin0.model.1.weight"]}, file)
    with pytest.raises(InputError, match=r"alex.pth has negative weights"):
        load("alex", tmp_path, "cpu")
    torch.save({name: value for name, value in heads.items() if "lin4" not in name}, file)
    with pytest.raises(InputError, match=r"1 missing \(lin4.model.1.weight\)"):
        load("alex", tmp_path, "cpu")
    with pytest.raises(InputError, match="there is no weights file"):
        load("vgg", tmp_path, "cpu")


@pytest.fixture
def albums(tmp_path):
    """Two prompts: the base draws three different pictures of each, the other the same three times."""
    rng = np.random.default_rng(0)
    for name in ("base", "other"):
        for number in range(2):
            folder = tmp_path / name / f"{number:05d}" / "samples"
            folder.mkdir(parents=True)
            source = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": f"dog {number}"}
            (folder.parent / "metadata.jsonl").write_text(json.dumps(source))
            drawn = rng.integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
            for index in range(3):
                Image.fromarray(drawn[index if name == "base" else 0]).save(folder / f"{index:05d}.png")
    return tmp_path


def run(albums, *more):
    folders = [str(albums / "base"), str(albums / "other")]
    flags = ["--features", "pixels", "--lpips", "alex", "--device", "cpu", "--output", str(albums / "out")]
    return main(["evaluate", "diversity", "--pictures", *folders, *flags, *more])


def test_variety_of_folders_and_pictures_that_cannot_be_compared(albums, capsys):
    published(albums, "alex")
    Image.new("RGB", (48, 32)).save(albums / "base" / "00001" / "samples" / "00002.png")
    assert run(albums, "--lpips-weights", str(albums)) == 0
    told = json.loads((albums / "out" / "summary.json").read_text())
    base, other = told["results"]
    assert other["lpips"] == pytest.approx(0, abs=1e-6)
    network = load("alex", albums, "cpu")
    means = []
    for number, count in ((0, 3), (1, 2)):
        files = [albums / "base" / f"{number:05d}" / "samples" / f"{index:05d}.png" for index in range(count)]
        seen = [network(torch.tensor(np.asarray(Image.open(f)) / 255.0).permute(2, 0, 1)[None].float()) for f in files]
        means.append(np.mean([(a - b).square().sum() for i, a in enumerate(seen) for b in seen[:i]]))
    assert base["lpips"] == pytest.approx(np.mean(means), rel=1e-4)
    ((broken),) = told["broken"]
    assert broken["name"].endswith("base/00001/samples/00002.png")
    assert broken["why"] == "is 48 x 32 pixels, its prompt's first 32 x 32"
    assert f"{base['lpips']:.4f}" in capsys.readouterr().out


def test_pictures_too_small_cost_themselves(albums):
    published(albums, "alex")
    for file in (albums / "other").rglob("*.png"):
        Image.new("RGB", (16, 16)).save(file)
    assert run(albums, "--lpips-weights", str(albums)) == 0
    told = json.loads((albums / "out" / "summary.json").read_text())
    assert told["results"][0]["lpips"] > 0
    assert told["results"][1]["lpips"] is None
    assert len(told["broken"]) == 6
    assert "must be 31 pixels or more on a side for LPIPS by alex, not 16 x 16" in told["broken"][0]["why"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "cannot be downloaded: HF_HUB_OFFLINE is set (put the file there by hand)"),
        (["--lpips-weights", "nowhere"], "there is no weights file nowhere"),
        (["--lpips", "", "--lpips-weights", "nowhere"], "name it with --lpips alex or --lpips vgg"),
    ],
)
def test_mistakes_are_told_in_one_line(albums, capsys, more, message):
    assert run(albums, *more) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
    assert not (albums / "out").exists()
