import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from transformers import Dinov2Config, Dinov2Model

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.evaluation import features
from hypernoise.evaluation.features import Dino, of_pictures
from hypernoise.evaluation.fidelity import frechet, kernel_distance, pairwise_similarity, vendi
from hypernoise.rewards.preprocess import normalise


def test_vendi_counts_what_is_different():
    assert vendi(np.ones((5, 3))) == pytest.approx(1)
    assert vendi(np.eye(4) * [[1], [2], [3], [4]]) == pytest.approx(4)  # lengths do not matter
    assert vendi(np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])) == pytest.approx(2)
    angle = np.array([[1, 0], [np.cos(0.7), np.sin(0.7)]])  # eigenvalues (1 ± cos 0.7) / 2
    p = (1 + np.cos(0.7)) / 2
    assert vendi(angle) == pytest.approx(np.exp(-p * np.log(p) - (1 - p) * np.log(1 - p)))


def test_similarity_is_the_mean_cosine_of_pairs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5))
    pairs = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i in range(4) for j in range(i)]
    assert pairwise_similarity(x) == pytest.approx(np.mean(pairs))
    assert pairwise_similarity(np.ones((3, 2))) == pytest.approx(1)


def test_the_frechet_distance_by_its_definition_and_between_known_gaussians():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 4)), rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)) + 1
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    mean = a.mean(0) - b.mean(0)
    assert frechet(a, b) == pytest.approx(mean @ mean + np.trace(one + other - 2 * sqrtm(one @ other).real), rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + np.array([3, 0, 4, 0])) == pytest.approx(25)
    assert frechet(a, 2 * a) == pytest.approx(a.mean(0) @ a.mean(0) + np.trace(one))  # (2 − 1)² of the spread
    few = rng.normal(size=(3, 10))  # fewer pictures than features
    assert frechet(few, few + 1) == pytest.approx(10)


def test_the_kernel_distance_is_unbiased_and_by_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)) + 1

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    across = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across)
    same = [kernel_distance(rng.normal(size=(20, 3)), rng.normal(size=(20, 3))) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20  # about 0, from both sides
    assert min(same) < 0 < max(same)


def tiny_dino():
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    return Dinov2Model(config).eval()


def test_dinos_features_are_its_class_token():
    model = tiny_dino()
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seen = model(pixel_values=normalise(pictures, features.IMAGENET_MEAN, features.IMAGENET_STD)).last_hidden_state[
        :, 0
    ]
    found = Dino(model)(pictures)
    assert torch.allclose(found, seen, atol=1e-5)
    assert (found[0] - found[1]).norm() > 1e-3
    assert Dino(model)(torch.rand(1, 3, 30, 50)).shape == (1, 16)


def test_pictures_of_different_sizes_keep_their_order():
    pictures = [torch.full((3, side, side), level) for side, level in ((8, 0.1), (8, 0.2), (4, 0.3), (8, 0.4))]
    found = of_pictures(features.pixels, pictures, batch_size=2)
    assert found[:, 0] == pytest.approx([-0.4, -0.3, -0.2, -0.1], abs=1e-6)


@pytest.fixture
def albums(tmp_path):
    """The base: two different pictures for each of three prompts; the other: the same one twice, a little redder."""
    rng = np.random.default_rng(0)
    for name in ("base", "other"):
        for number in range(3):
            folder = tmp_path / name / f"{number:05d}" / "samples"
            folder.mkdir(parents=True)
            source = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": f"dog {number}"}
            (folder.parent / "metadata.jsonl").write_text(json.dumps(source))
            drawn = rng.integers(0, 200, (2, 16, 16, 3)).astype(np.uint8)
            for index in range(2):
                picture = drawn[index if name == "base" else 0].copy()
                picture[..., 0] += 25 if name == "other" else 0
                Image.fromarray(picture).save(folder / f"{index:05d}.png")
    return tmp_path


def run(albums, *more):
    folders = [str(albums / "base"), str(albums / "other")]
    call = ["evaluate", "diversity", "--pictures", *folders, "--device", "cpu", "--output", str(albums / "out")]
    assert main([*call, *more]) == 0
    return json.loads((albums / "out" / "summary.json").read_text())


def test_variety_and_drift_of_folders(albums, capsys):
    base, other = run(albums, "--features", "pixels", "--rewards", "redness")["results"]
    assert (base["images"], base["prompts"]) == (6, 3)
    assert base["similarity"] < other["similarity"] == pytest.approx(1)
    assert 1 < base["vendi"] < 2
    assert other["vendi"] == pytest.approx(1)
    assert base["frechet"] is base["kernel"] is None
    assert other["frechet"] > 0
    gain = other["rewards"]["redness"]
    assert gain["gain"] == pytest.approx(gain["mean"] - base["rewards"]["redness"]["mean"])
    assert gain["gain_ci95"][0] <= gain["gain"] <= gain["gain_ci95"][1]
    assert f"{other['similarity']:.4f}" in capsys.readouterr().out


def test_a_model_from_a_folder_and_a_broken_picture(albums, capsys):
    tiny_dino().save_pretrained(albums / "dino")
    (albums / "other" / "00001" / "samples" / "00001.png").write_bytes(b"no picture")
    told = run(albums, "--features", str(albums / "dino"))
    ((broken),) = told["broken"]
    assert broken["name"].endswith("other/00001/samples/00001.png")
    assert "cannot be read as a picture" in broken["why"]
    base, other = told["results"]
    assert (other["images"], other["prompts"]) == (5, 3)
    assert other["similarity"] == pytest.approx(1)  # of the two prompts that have two pictures
    assert base["similarity"] < 1
    with pytest.raises(InputError, match="cannot be loaded"):
        features.load(str(albums / "nowhere"), "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pictures", "nowhere"], "there is no folder nowhere"),
        (["--pictures", "."], "is not in GenEval's layout"),
        (["--pictures"], "name one or more folders"),
        (["--pictures", ".", "--batch-size", "0"], "--batch-size must be at least 1"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "diversity", *arguments, "--features", "pixels", "--device", "cpu"]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told


def refused(albums, capsys, *more):
    folders = [str(albums / "base"), str(albums / "other")]
    call = ["evaluate", "diversity", "--pictures", *folders, "--device", "cpu", "--output", str(albums / "out")]
    assert main([*call, "--features", "pixels", *more]) == 2
    return capsys.readouterr().err.strip()


def test_rewards_are_compared_for_the_same_prompts_only(albums, capsys):
    file = albums / "other" / "00001" / "metadata.jsonl"
    file.write_text(file.read_text().replace("dog 1", "cat 1"))
    told = refused(albums, capsys, "--rewards", "redness")
    assert f"00001/samples/00000.png shows 'cat 1' and {albums / 'base'}'s 'dog 1'" in told
    assert "\n" not in told
    run(albums, "--features", "pixels")  # variety and drift need no prompts


def test_only_numbered_png_files_count_and_it_is_said(albums, capsys):
    for file in (albums / "other").rglob("*.png"):
        file.rename(file.with_suffix(".jpg"))
    told = refused(albums, capsys)
    assert "other has no picture that counts; the first: 00000: 0 of 1 pictures are there" in told
    assert told.endswith("only names such as 00000.png count, not 00000.jpg")
    assert "\n" not in told


def test_one_picture_per_prompt_says_why_its_row_is_empty(albums, capsys):
    for file in (albums / "other").rglob("00001.png"):
        file.unlink()
    assert run(albums, "--features", "pixels")["results"][1]["similarity"] is None
    told = capsys.readouterr().err
    assert f"{albums / 'other'}: no prompt has two pictures to compare" in told
    assert f"{albums / 'base'}: no prompt" not in told


def test_the_report_has_the_tables(albums):
    _, other = run(albums, "--features", "pixels", "--rewards", "redness", "--report")["results"]
    page = (albums / "out" / "report.html").read_text()
    assert page.count("<table") == 2
    assert page.count(f"<th>{albums / 'other'}") == 2
    assert f"<td>{other['similarity']:.4f}" in page
    assert f"<td>{other['rewards']['redness']['gain']:+.4f}" in page
    assert "lpips" not in page  # no row has it
    assert "default-src 'none'" in page
