from pathlib import Path

import pytest
import torch

from experiments.base import main
from experiments.noise_map import NoiseMap, cosine_basis, in_double
from experiments.transfer import Driven, Transfer, verdict
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.methods.base import Problem
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards.pixel import redness
from tests.conftest import disturb
from tests.families import build_pipeline

SHAPES = [((4, 8, 8), (4, 16, 16)), ((4, 8, 8), (4, 4, 4)), ((4, 8, 6), (16, 4, 12)), ((32, 3, 3), (4, 8, 8))]


def matrix(apply, source, target):
    """The matrix of a linear map of [*source] to [*target]."""
    size = int(torch.tensor(source).prod())
    return apply(torch.eye(size, dtype=torch.float64).reshape(size, *source)).reshape(size, -1).T


def test_the_cosine_basis_is_orthonormal():
    basis = cosine_basis(7)
    assert torch.allclose(basis @ basis.T, torch.eye(7, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_the_map_keeps_white_noise_white_exactly(source, target, monkeypatch):
    """z = A x + B e with x, e ~ N(0, I) has mean 0 and covariance A·Aᵀ + B·Bᵀ, which is I.

    A and B are what the map itself answers to unit vectors, of the noise and of what it draws fresh.
    """
    between, drawn = NoiseMap(source, target), {}
    monkeypatch.setattr("experiments.noise_map.fresh_noise", lambda noise, seed, shape: drawn["fresh"])
    sizes = [int(torch.tensor(shape).prod()) for shape in (source, target)]

    def answer(x, fresh):
        drawn["fresh"] = fresh
        return between(x).flatten(1).T

    units = [torch.eye(size, dtype=torch.float64) for size in sizes]
    nothing = [
        torch.zeros(size, *shape, dtype=torch.float64)
        for size, shape in zip(sizes[::-1], (source, target), strict=True)
    ]
    a = answer(units[0].reshape(-1, *source), nothing[1])
    b = answer(nothing[0], units[1].reshape(-1, *target))
    assert torch.equal(answer(nothing[0], nothing[1][:1].expand(sizes[1], *target)), torch.zeros_like(b))  # mean 0
    assert torch.allclose(a @ a.T + b @ b.T, units[1], atol=1e-10)
    assert torch.allclose(matrix(between.adjoint, target, source), a.T, atol=1e-10)


def test_where_a_device_has_no_fp64_the_cpu_computes():
    class OnMPS:
        device = torch.device("mps")

        def cpu(self):
            return torch.ones(2)

        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64")

    assert in_double(OnMPS()).dtype == torch.float64  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_drawn_noise_is_white_and_repeats(source, target):
    between = NoiseMap(source, target)
    x = torch.randn(400, *source, generator=torch.Generator().manual_seed(0))
    z = between(x)
    count = z.numel()
    assert abs(z.mean()) * count**0.5 < 4
    assert abs(z.square().mean() - 1) * (count / 2) ** 0.5 < 4
    flat = z.flatten(1)
    correlation = (flat.T @ flat / len(flat))[~torch.eye(flat.shape[1], dtype=torch.bool)]
    assert abs(correlation.square().mean() * len(flat) - 1) < 0.1  # that of independent N(0, 1): 1 / samples
    assert torch.equal(between(x[5:6]), z[5:6])
    assert not torch.equal(between(x[5:6], seed=1), z[5:6])


def test_coarse_structure_goes_there_and_back():
    smooth = torch.linspace(-1, 1, 8)[None, None, :, None].expand(1, 4, 8, 8).clone()
    there = NoiseMap((4, 8, 8), (4, 16, 16))
    assert torch.allclose(there.adjoint(NoiseMap((4, 16, 16), (4, 8, 8)).adjoint(smooth)), smooth, atol=1e-5)


def test_noise_in_tokens_is_refused():
    with pytest.raises(InputError, match="only \\[channels, height, width\\] can"):
        NoiseMap((16, 64), (4, 8, 8))


def generators(sd_pipeline, size):
    source = DiffusionGenerator(sd_pipeline(), name="first")
    network = LoRANoise(source, rank=4)
    disturb(network)
    return source, network, DiffusionGenerator(sd_pipeline(seed=1), name="second", size=size)


def test_one_layout_shares_its_noise(sd_pipeline):
    source, network, target = generators(sd_pipeline, (16, 16))
    noise = torch.randn(2, *target.noise_shape, generator=torch.Generator().manual_seed(0))
    prompts = ["a ring", "a cross"]
    driven = Driven(network, source).generate(Problem(target, redness), prompts, noise)
    own = HyperNoise(network).generate(Problem(source, redness), prompts, noise)
    assert torch.equal(driven.noise, own.noise)
    assert (driven.pixels - own.pixels).abs().max() > 1e-2
    with torch.no_grad():
        assert torch.allclose(driven.pixels, target.sample(driven.noise, target.encode(prompts)), atol=1e-6)


def test_another_layout_goes_by_the_map(sd_pipeline):
    source, network, target = generators(sd_pipeline, (32, 32))
    noise = torch.randn(2, *target.noise_shape, generator=torch.Generator().manual_seed(0))
    prompts = ["a ring", "a cross"]
    result = Driven(network, source).generate(Problem(target, redness), prompts, noise)
    between = NoiseMap((4, 16, 16), (4, 8, 8))
    with torch.no_grad():
        residual = between.adjoint(network(between(noise), source.encode(prompts)))
    assert torch.allclose(result.noise, noise + residual, atol=1e-6)
    assert residual.abs().max() > 1e-2
    assert result.pixels.shape == (2, 3, 32, 32)


def test_its_calls_of_the_source_are_counted(sd_pipeline):
    source, network, target = generators(sd_pipeline, (32, 32))
    noise = torch.randn(2, *target.noise_shape)
    spent = Driven(network, source).generate(Problem(target, redness), ["a ring", "a cross"], noise).spent
    assert (spent.denoiser_forwards, spent.decodes) == (4, 2)


def test_the_verdict_goes_by_the_driven_gains_interval():
    own, driven = {"reward_gain": 2.0}, {"reward_gain": 0.5, "reward_gain_ci95": [0.1, 0.9]}
    assert verdict(own, driven) == "carries over: +0.500 [+0.100, +0.900] in reward, 0.25 of its own network's"
    assert verdict(own, {**driven, "reward_gain_ci95": [-0.1, 1.1]}).startswith("does not carry over")
    assert verdict({"reward_gain": -1.0}, {"reward_gain": -0.5, "reward_gain_ci95": None}) == (
        "does not carry over: -0.500 in reward"
    )


def test_each_generator_has_its_own_network_and_the_recipes_drives_it(sd_pipeline, run, tmp_path, capsys):
    sd_pipeline(seed=1).save_pretrained(tmp_path / "second")
    summary = run("transfer", "--to", str(tmp_path / "second"), "--seeds", "0", "1", "--noises", "1")
    rows = summary["results"]
    assert [(Path(r["generator"]).name, r["method"].split(": ")[-1]) for r in rows] == [
        ("tiny", "plain"), ("tiny", "hypernoise"), ("second", "plain"), ("second", "hypernoise"),
        ("second", "transfer"),
    ]  # fmt: skip
    assert rows[4]["denoiser_forwards"] == 2
    assert rows[4]["reward_gain"] == pytest.approx(rows[4]["reward"] - rows[2]["reward"], abs=1e-6)
    assert rows[4]["reward_gain"] != rows[3]["reward_gain"]
    assert f"verdict: {summary['verdict'][0]}" in capsys.readouterr().out
    made = sorted(folder.name for folder in (tmp_path / "out" / "training").iterdir())
    assert made == ["source-seed0", "source-seed1", "to0-seed0", "to0-seed1"]


def test_a_layout_that_cannot_be_mapped_is_refused_before_anything_is_trained(tiny, tmp_path, capsys):
    build_pipeline("FluxPipeline", tmp_path).save_pretrained(tmp_path / "tokens")
    flags = ["--recipe", str(tiny), "--to", str(tmp_path / "tokens"), "--device", "cpu", "--judged", "1"]
    assert main(Transfer, [*flags, "--output-dir", str(tmp_path / "out")]) == 2
    assert "cannot be mapped" in capsys.readouterr().err
    assert not (tmp_path / "out" / "training").exists()
