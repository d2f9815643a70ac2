"""Training a spectral noise network through the same loop."""

import json

import pytest
import torch

from hypernoise.cli import main
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition, Generator
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES
from hypernoise.noise.draws import keyed_noise
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.settings import Spectral
from hypernoise.noise.spectral import SpectralNoise, spectral_noise
from hypernoise.objective import l2_kl
from hypernoise.prompts import prompts_of_step
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import Recipe, read_recipe
from hypernoise.training.loop import train
from tests.conftest import disturb
from tests.families import build_pipeline, size_of
from tests.training.ranks import on_ranks
from tests.training.test_trainer import PROMPTS, config, same, state

SMALL = Spectral(k=2, width=16, depth=2)


def run(sd_pipeline, settings, output=None, begin=lambda network: None):
    generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    network = spectral_noise(generator, SMALL)
    begin(network)
    reward = WeightedSum({"redness": 20.0})
    return generator, network, train(generator, network, reward, PROMPTS, settings, output_dir=output, progress=False)


def test_the_reward_rises_and_the_base_is_untouched(sd_pipeline):
    generator, network, result = run(sd_pipeline, config(max_train_steps=25, learning_rate=4e-2, kl_weight=0.01))
    assert result.history[0]["kl"] == 0
    first, last = (sum(row["reward"] for row in rows) / 5 for rows in (result.history[:5], result.history[-5:]))
    assert last > first + 0.05
    fresh = sd_pipeline().unet.state_dict()
    assert same(dict(generator.denoiser.state_dict()), dict(fresh))
    assert not any(p.requires_grad or p.grad is not None for p in generator.denoiser.parameters())
    assert all(p.grad is None or p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("term", ["l2", "exact"])
def test_the_row_has_the_networks_own_kl(sd_pipeline, term):
    generator, network, result = run(
        sd_pipeline, config(max_train_steps=1, kl_term=term), begin=lambda f: disturb(f, scale=0.05)
    )
    fresh = spectral_noise(generator, SMALL)
    disturb(fresh, scale=0.05)
    noise = keyed_noise(generator.noise_shape, seed=0, step=0, samples=range(4))
    condition = generator.encode(prompts_of_step(PROMPTS, 0, 4, 0))
    row = result.history[0]
    assert row["kl"] == pytest.approx(fresh.kl(noise, condition).mean().item(), rel=1e-5)
    assert row["kl"] != pytest.approx(l2_kl(fresh(noise, condition)).mean().item(), rel=1e-2)
    assert row["loss"] == pytest.approx(0.1 * row["kl"] - row["reward"], rel=1e-5)


def test_resume_and_accumulation_give_the_same_numbers(sd_pipeline, tmp_path):
    whole = run(sd_pipeline, config())
    run(sd_pipeline, config(max_train_steps=4, checkpointing_steps=2), output=tmp_path)
    resumed = run(sd_pipeline, config(checkpointing_steps=2), output=tmp_path)
    assert [row["step"] for row in resumed[2].history] == [5, 6]
    assert same(state(whole[1]), state(resumed[1]))
    parts = run(sd_pipeline, config(gradient_accumulation_steps=2))
    for name, weight in state(whole[1]).items():
        assert torch.allclose(state(parts[1])[name], weight, atol=2e-3), name


class Linear(Generator):
    """g(z) = z and prompts of two kinds."""

    name, noise_shape, device = "linear", (2, 4, 4), torch.device("cpu")

    def encode(self, prompts):
        kinds = torch.tensor([[[1.0, -1.0]] if prompt == "up" else [[-1.0, 1.0]] for prompt in prompts])
        return Condition({"prompt_embeds": kinds})

    def sample(self, noise, condition, *, num_inference_steps=1, seed=None):
        return noise


def test_each_prompts_tilted_gaussian_is_reached(tmp_path):
    """r(z) = ± 2 u₀ − ½ u₁² of the two channels' lowest frequencies: N(±2, 1) and N(0, ½), KL 2 + ½(½ − 1 + log 2)."""

    def reward(pixels, prompts):
        u = pixels.sum((2, 3)) / 4
        sign = torch.tensor([1.0 if prompt == "up" else -1.0 for prompt in prompts])
        return 2 * sign * u[:, 0] - 0.5 * u[:, 1].square()

    generator = Linear()
    network = SpectralNoise(2, 2, k=1, width=16, depth=2)
    settings = config(
        max_train_steps=150,
        train_batch_size=16,
        learning_rate=3e-2,
        kl_weight=1.0,
        lr_scheduler="cosine",
        kl_limit=0,
        clipping_limit=0,
    )
    train(generator, network, reward, ["up", "down"], settings, progress=False)
    noise = keyed_noise(generator.noise_shape, seed=1, step=0, samples=range(1000))
    for prompt, mean in (("up", 2.0), ("down", -2.0)):
        condition = generator.encode([prompt] * len(noise))
        with torch.no_grad():
            u, z = (x.sum((2, 3)) / 4 for x in (noise, noise + network(noise, condition)))
            kl = network.kl(noise, condition)
        assert torch.allclose(z[:, 0], u[:, 0] + mean, atol=0.1)
        assert torch.allclose(z[:, 1], u[:, 1] / 2**0.5, atol=0.1)
        assert kl.mean().item() == pytest.approx(2 + 0.5 * (0.5 - 1 + 0.6931472), abs=2e-2)
        assert kl.std() < 0.5  # 2 if the shift's share were sampled


def test_two_processes_give_the_numbers_of_one(sd_pipeline):
    def go():
        _, network, result = run(sd_pipeline, config(max_train_steps=3), begin=lambda f: disturb(f, scale=0.05))
        return {name: weight.tolist() for name, weight in state(network).items()}, result.history[-1]["kl"]

    (one, kl), (first, shared), (second, _) = *on_ranks(1, go), *on_ranks(2, go)
    assert first == second
    assert shared == pytest.approx(kl, rel=1e-4)
    for name, weight in one.items():
        assert torch.allclose(torch.tensor(first[name]), torch.tensor(weight), atol=2e-3), name


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_network_for_every_family(family, tmp_path):
    """Zero at the start; later only the latents' low frequencies change, whatever the layout."""
    generator = DiffusionGenerator(build_pipeline(family, tmp_path), size=size_of(family))
    network = spectral_noise(generator, SMALL)
    x = keyed_noise(generator.noise_shape, seed=0, step=0, samples=range(2))
    condition = generator.encode(["a ring", "two blue crosses"])
    assert not network(x, condition).any()
    disturb(network)
    residual = network(x, condition)
    assert residual.shape == x.shape
    assert (residual[0] - network(x[:1], generator.encode(["two blue crosses"]))[0]).abs().max() > 1e-4
    assert torch.isfinite(network.kl(x, condition)).all()
    latent = residual
    if family in ("FluxPipeline", "QwenImagePipeline", "Krea2Pipeline"):
        latent = residual.view(2, 4, 4, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 8, 8)
    if family == "Flux2KleinPipeline":
        latent = residual.view(2, 4, 2, 2, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(2, 4, 8, 8)
    spectrum = torch.linalg.matrix_rank(latent.double(), atol=1e-5)
    assert (spectrum <= 2).all()


def test_a_recipe_says_which_network(tmp_path, sd_pipeline):
    file = tmp_path / "r.yaml"
    file.write_text("generator: scenes\nnoise_network: spectral\nspectral: {k: 2, width: 8}\nseed: 3\n")
    recipe = read_recipe(file)
    assert (recipe.noise_network, recipe.spectral) == ("spectral", Spectral(k=2, width=8))
    generator = DiffusionGenerator(sd_pipeline())
    network = recipe.build_network(generator)
    assert isinstance(network, SpectralNoise)
    own = {"channels": 4, "text_width": 8, "token_width": 8, "k": 2, "width": 8, "depth": 4, "patch": 1}
    assert network.settings == own
    assert isinstance(Recipe().build_network(generator), LoRANoise)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise_network: spectre", "noise_network must be one of lora, spectral"),
        ("spectral: 3", "spectral is a group of fields, such as spectral: {...}, not '3'"),
        ("spectral: {kk: 3}", "unknown field 'spectral.kk'; did you mean 'spectral.k'"),
        ("spectral: {k: 1.5}", "spectral.k must be a whole number, not '1.5'"),
        ("spectral: {k: 0}", "k must be at least 1, not 0"),
        ("spectral: {depth: -1}", "depth must be 0 or more, not -1"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)


def test_more_frequencies_than_the_grid_has_are_refused(sd_pipeline):
    with pytest.raises(InputError, match="k = 9 frequencies do not fit into the latent grid of 'pipeline', 8 x 8"):
        spectral_noise(DiffusionGenerator(sd_pipeline()), Spectral(k=9))


def test_the_command_trains_one(sd_pipeline, tmp_path, capsys):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a red circle\ntwo blue rings\n")
    (tmp_path / "r.yaml").write_text(
        f"generator: {tmp_path / 'tiny'}\nprompts: {tmp_path / 'prompts.txt'}\nnoise_network: spectral\n"
    )
    assert main(["train", str(tmp_path / "r.yaml"), "--dry-run", "--output-dir", str(tmp_path / "plan")]) == 0
    assert "at once; spectral, k = 4" in capsys.readouterr().out
    flags = ["--spectral.k", "3", "--max-train-steps", "2", "--train-batch-size", "2", "--device", "cpu"]
    assert main(["train", str(tmp_path / "r.yaml"), "--output-dir", str(tmp_path / "run"), *flags]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["arguments"]["spectral"] == {"k": 3, "width": 128, "depth": 4, "map": "coupling"}
    about = json.loads((tmp_path / "run" / "adapter" / "hypernoise.json").read_text())
    assert (about["kind"], about["settings"]["k"]) == ("spectral", 3)
