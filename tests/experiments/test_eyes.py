"""The eyes experiment on networks of the wheels' layout, narrow and with random weights: CI downloads no weights."""

import json
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

import hypernoise as hn
from experiments import eye_networks, eyes
from experiments.base import main
from experiments.eye_networks import CLASSES, COLOURS, EyeClassifier, EyeGenerator, filled, one_hot_colours, weight_file

NETWORKS = {"omniart-eye-generator": EyeGenerator, "omniart-eye-classifier": EyeClassifier}
run = partial(main, eyes.Eyes)
TINY = ["--updates", "3", "--runs", "2", "--pictures", "3"]


def lively(network):
    """Weights that carry the noise through to the scores, as torch's own first weights do not."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=(4 / parameter[0].numel()) ** 0.5)
    return network


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """Files in place of the wheels'; the experiment builds its networks as narrow as they are."""
    torch.manual_seed(0)
    files = {package: tmp_path / f"{package}.pth" for package in NETWORKS}
    for package, network in NETWORKS.items():
        narrow = partial(network, 2)
        torch.save(lively(narrow()).state_dict(), files[package])
        monkeypatch.setattr(eyes, network.__name__, narrow)
    monkeypatch.setattr(eyes, "weight_file", files.__getitem__)
    return files


def test_it_runs_from_the_weight_files_to_the_table_and_resumes(wheels, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["--output-dir", str(output), *TINY]
    assert run(command) == 0
    printed = capsys.readouterr().out
    summary = json.loads((output / "summary.json").read_text())
    rows = {row["method"]: row for row in summary["results"]}
    assert list(rows) == [
        *("plain", "hypernoise", "hypernoise, exact KL", "best-of-2", "best-of-8", "reno-50"),
        *(f"fine-tuned, {n} updates" for n in (1, 3)),
    ]
    assert all(f"| {method} |" in printed for method in rows)
    calls = {
        name: [row[f] for f in ("denoiser_forwards", "denoiser_backwards", "reward_calls")]
        for name, row in rows.items()
    }
    assert calls["plain"] == calls["hypernoise"] == calls["fine-tuned, 3 updates"] == [1, 0, 0]
    assert calls["best-of-8"] == [8, 0, 8]
    assert calls["reno-50"] == [50, 49, 50]
    assert rows["best-of-8"]["reward"] > rows["best-of-2"]["reward"] > rows["plain"]["reward"]
    assert rows["best-of-8"]["kl_exact"] == pytest.approx(1.2044, abs=1e-4)  # log 8 − 7/8
    assert rows["plain"]["kl_exact"] == 0
    for name in ("hypernoise", "hypernoise, exact KL"):
        assert rows[name]["trained_pictures"] == 48
        assert len(rows[name]["runs"]) == len(rows[name]["kl_runs"]) == 2
    assert rows["fine-tuned, 3 updates"]["reward"] != rows["fine-tuned, 1 updates"]["reward"]
    assert Image.open(output / "sheet.png").size[1] == eyes.HEAD + 3 * (eyes.TILE + eyes.GAP)

    trained = {file: file.stat().st_mtime_ns for file in output.glob("training/**/*") if file.is_file()}
    assert run(command) == 0
    assert {file: file.stat().st_mtime_ns for file in output.glob("training/**/*") if file.is_file()} == trained
    assert json.loads((output / "summary.json").read_text())["results"] == summary["results"]
    assert run([*command, "--updates", "4"]) == 2
    assert "steps = 3, not 4" in capsys.readouterr().err


def test_a_run_that_was_stopped_ends_with_the_same_weights(wheels, tmp_path):
    whole = eyes.Bench.load(eyes.Eyes(tmp_path / "whole", updates=4))
    halved = eyes.Bench.load(eyes.Eyes(tmp_path / "halved", updates=4))
    halved.tuned_to(2)
    ends = [bench.tuned_to(4).module.state_dict() for bench in (whole, halved)]
    plain = whole.module.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(end.values() for end in ends), strict=True))
    assert not torch.equal(ends[0]["main.0.weight"], plain["main.0.weight"])
    assert torch.equal(ends[0]["main.1.running_mean"], plain["main.1.running_mean"])


def test_the_rewards_gradient_in_the_noise_is_the_difference_quotients():
    torch.manual_seed(0)
    module = lively(EyeGenerator(4)).double().eval()
    generator, reward = eyes.as_generator(module, "tiny"), eyes.Named(lively(EyeClassifier(4)).double().eval())
    prompts = ["blue", "red"]
    noise, direction = torch.randn(2, 2, 100, dtype=torch.float64)
    noise.requires_grad_()

    def score(x):
        return reward(generator.sample(x, generator.encode(prompts)), prompts).sum()

    slope = (torch.autograd.grad(score(noise), noise)[0] * direction).sum()
    with torch.no_grad():
        quotient = (score(noise + 1e-6 * direction) - score(noise - 1e-6 * direction)) / 2e-6
    assert abs(slope) > 1e-6
    assert slope.item() == pytest.approx(quotient.item(), rel=1e-5)


def test_the_reward_is_the_log_probability_of_the_requested_colour():
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 10)).double()
    pixels = torch.rand(len(COLOURS), 3, 1, 1, dtype=torch.float64)
    probabilities = classifier(pixels).softmax(1)
    expected = [probabilities[i, CLASSES.index(colour)].log() for i, colour in enumerate(COLOURS)]
    assert torch.allclose(eyes.Named(classifier)(pixels, list(COLOURS)), torch.stack(expected))


def test_a_colour_is_one_hot():
    assert one_hot_colours(["amber", "red"]).tolist() == [[1.0, *[0.0] * 7], [*[0.0] * 7, 1.0]]


def test_a_wheel_that_is_not_installed_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(eye_networks, "WHEELS", {"omniart-eye-generator": ("0.1", "nowhere/weights.pth")})
    assert run(["--output-dir", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("experiments.eyes: the weights of omniart-eye-generator are not installed: pip install om")


@pytest.mark.parametrize("wrong", ["another network", "code", "cut short", "no file of weights"])
def test_a_wrong_file_is_one_line(wrong, wheels, tmp_path, capsys):
    file = wheels["omniart-eye-classifier"]
    if wrong == "another network":
        torch.save(EyeClassifier(3).state_dict(), file)
    elif wrong == "code":
        torch.save({"layers.conv1.weight": print}, file)
    elif wrong == "cut short":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        file.write_text("{}")
    assert run(["--output-dir", str(tmp_path / "out"), *TINY]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"experiments.eyes: {file} does not hold the weights of EyeClassifier: reinstall its wheel"


@pytest.mark.parametrize("flags", [["--updates", "0"], ["--pictures", "2"], ["--runs", "0"]])
def test_an_invalid_size_is_refused_with_its_flag(flags, capsys):
    assert run(flags) == 2
    assert f"{flags[0]} must be at least" in capsys.readouterr().err


@pytest.mark.skipif(not find_spec("omniart_eye_generator"), reason="the wheels are not installed")
def test_the_wheels_weights_fit_strictly():
    for package, network in NETWORKS.items():
        filled(network(), weight_file(package))


def test_the_layouts_are_the_wheels():
    """Sizes of the files' tensors, read from the wheels of 2019."""
    generator, classifier = EyeGenerator().state_dict(), EyeClassifier().state_dict()
    assert (len(generator), len(classifier)) == (31, 124)
    assert generator["main.0.weight"].shape == (108, 1024, 4, 4)
    assert generator["main.16.weight"].shape == (64, 3, 4, 4)
    assert classifier["layers.layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert classifier["layers.fc.3.weight"].shape == (10, 256)


@pytest.mark.parametrize("kind", eyes.NETWORKS)
def test_the_noise_network_raises_the_reward(kind, wheels, tmp_path):
    bench = eyes.Bench.load(eyes.Eyes(tmp_path / "out", updates=30))
    network = hn.load_adapter(bench.generator, bench.trained(kind, 0))
    noise, condition = torch.randn(64, 100), bench.generator.encode(list(COLOURS) * 8)
    with torch.no_grad():
        before, after = (
            bench.reward(bench.generator.sample(x, condition), list(COLOURS) * 8).mean()
            for x in (noise, noise + network(noise, condition))
        )
    assert after > before
