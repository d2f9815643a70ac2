import json

import pytest
import torch

from hypernoise.commands.train import lipschitz_warning
from hypernoise.diagnostics.kl import estimate_kl
from hypernoise.diagnostics.lipschitz import kl_gap_bound, spectral_norm
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.draws import OBSERVED_STEP, noise_for
from hypernoise.noise.lora import LoRANoise
from hypernoise.noise.residual import ResidualNoise
from hypernoise.prompts import spread
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import Lipschitz, TrainConfig, read_recipe
from hypernoise.training.loop import train
from hypernoise.training.observers import NOISES, peak_memory
from hypernoise.training.step import lipschitz_seen, squared_excess
from tests.conftest import disturb
from tests.diagnostics.test_kl import affine, draws
from tests.training.test_trainer import PROMPTS, build, config, same, state


def run(sd_pipeline, settings, output_dir=None):
    generator, network = build(sd_pipeline)
    train(generator, network, WeightedSum({"redness": 20.0}), PROMPTS, settings, output_dir=output_dir, progress=False)
    return generator, network


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def measured(generator, network):
    noise = noise_for(generator, network, seed=0, step=OBSERVED_STEP, samples=range(NOISES))
    condition = generator.encode(spread(PROMPTS, NOISES))
    gap = estimate_kl(network, noise, condition).gap
    norm = spectral_norm(network, noise, condition).max().item()
    return {"lipschitz": norm, "kl_gap": gap.value, "kl_gap_error": gap.error}


def test_watching_changes_no_weight_and_writes_its_rows(sd_pipeline, tmp_path):
    _, plain = run(sd_pipeline, config())
    generator, watched = run(
        sd_pipeline, config(diagnostics=("lipschitz", "kl"), diagnostics_steps=4), output_dir=tmp_path
    )
    assert same(state(plain), state(watched))
    rows = rows_of(tmp_path)
    assert ["lipschitz" in row for row in rows] == [False, False, False, True, False, True]
    assert rows[-1]["lipschitz"] > 0
    assert rows[-1]["gap_bound"] == pytest.approx(kl_gap_bound(256, rows[-1]["lipschitz"]))
    assert abs(rows[-1]["kl_gap"]) + 4 * rows[-1]["kl_gap_error"] < rows[-1]["gap_bound"]
    assert measured(generator, watched).items() <= rows[-1].items()


def test_a_run_that_stretches_by_1_or_more_is_warned():
    rows = [{"step": step, "lipschitz": seen} for step, seen in ((5, 0.9), (10, 1.25), (15, 0.8))]
    warning = lipschitz_warning([*rows, {"step": 16}])
    assert warning.startswith("Lipschitz constant 1.25 at step 10, 0.8 at the end: at 1 or above, x + f may fold")
    assert "does not bound the error of the KL; train with --lipschitz.mode penalty or clamp, or" in warning
    own = lipschitz_warning(rows, knows_kl=True)  # such a network cannot be clamped
    assert "its KL is a lower bound; train with --lipschitz.mode penalty, or" in own
    assert lipschitz_warning([rows[0], {"step": 6}]) == ""


def test_peak_memory_is_in_bytes_on_every_system(monkeypatch):
    """Linux counts in KiB, macOS in bytes, and Windows has no `resource`."""
    usage = type("Usage", (), {"ru_maxrss": 3 * 2**20})
    monkeypatch.setattr("resource.getrusage", lambda who: usage)
    found = []
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr("sys.platform", system)
        found.append(peak_memory(torch.device("cpu")))
    assert found == [3 * 2**30, 3 * 2**20, None]


def test_watching_works_under_bf16(sd_pipeline, tmp_path):
    generator = DiffusionGenerator(sd_pipeline(dtype=torch.bfloat16), name="tiny")
    network = LoRANoise(generator, rank=4)
    disturb(network, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        half = measured(generator, network)
    whole_generator = DiffusionGenerator(sd_pipeline(), name="tiny")
    whole_network = LoRANoise(whole_generator, rank=4)
    whole_network.load_trainable_state(state(network))
    whole = measured(whole_generator, whole_network)
    assert half["lipschitz"] == pytest.approx(whole["lipschitz"], rel=0.05)
    assert abs(half["kl_gap"] - whole["kl_gap"]) < whole["kl_gap_error"]


def test_resuming_a_clamped_run_equals_no_interruption(sd_pipeline, tmp_path):
    settings = dict(lipschitz=Lipschitz("clamp", 0.02), checkpointing_steps=2)
    _, whole = run(sd_pipeline, config(**settings))
    run(sd_pipeline, config(**{**settings, "max_train_steps": 4}), output_dir=tmp_path)
    _, resumed = run(sd_pipeline, config(**settings), output_dir=tmp_path)
    _, free = run(sd_pipeline, config())
    assert same(state(whole), state(resumed))
    assert not same(state(whole), state(free))
    _, loose = run(sd_pipeline, config(lipschitz=Lipschitz("clamp", 100.0)))
    assert same(state(loose), state(free))


def test_a_limit_is_part_of_what_a_resumed_run_must_share(sd_pipeline, tmp_path):
    run(sd_pipeline, config(max_train_steps=1, lipschitz=Lipschitz("clamp")), output_dir=tmp_path / "clamped")
    with pytest.raises(InputError, match="trained with lipschitz = .*'clamp'"):
        run(sd_pipeline, config(max_train_steps=2), output_dir=tmp_path / "clamped")


def test_a_clamped_lora_stretches_less(sd_pipeline):
    def greatest(**changes):
        generator, network = run(sd_pipeline, config(max_train_steps=8, learning_rate=5e-2, kl_weight=0.01, **changes))
        noise, _ = draws(8, *generator.noise_shape, seed=5, dtype=torch.float32)
        return spectral_norm(network, noise, generator.encode(["a ring"] * 8)).max().item()

    assert greatest() > 0.3
    assert 0.02 < greatest(lipschitz=Lipschitz("clamp", 0.1)) < 0.15


def test_scaling_the_output_scales_what_a_clamp_limits(generator):
    network = LoRANoise(generator, rank=4)
    disturb(network, 0.05)
    noise, _ = draws(3, *generator.noise_shape)
    condition = generator.encode(["a red circle", "two blue rings", "a ring"])
    before, seen = network(noise, condition).detach(), lipschitz_seen(network, noise, condition).max().item()
    network.scale_output(1 / 4)
    assert torch.allclose(network(noise, condition), before / 4)
    assert lipschitz_seen(network, noise, condition).max().item() == pytest.approx(seen / 4)


def test_clamping_a_chain_keeps_its_shift():
    network = affine(2 * torch.eye(3), torch.tensor([1.0, 2.0, 3.0]))
    noise, condition = draws(2, 3)
    network.scale_output(0.5 / lipschitz_seen(network, noise, condition).max().item())
    assert torch.allclose(network(noise, condition), 0.5 * noise + torch.tensor([1.0, 2.0, 3.0]).double())


def test_the_penaltys_gradient_matches_finite_differences():
    network = ResidualNoise((4,), width=5, depth=1).double()
    disturb(network, 0.5)
    noise, condition = draws(4, 4)
    penalty = squared_excess(network, noise, condition, 0.1)
    penalty.backward()
    weight = network.network[1].weight
    gradient = weight.grad[1, 2].item()
    assert abs(gradient) > 1e-3
    values = []
    for sign in (1, -1):  # the direction is no function of the weight, to first order: it maximises the stretch
        with torch.no_grad():
            weight[1, 2] += sign * 1e-5
            values.append(squared_excess(network, noise, condition, 0.1).item())
            weight[1, 2] -= sign * 1e-5
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-5, rel=0.05)


def test_the_penalty_of_an_untrained_network_is_zero_and_so_is_its_gradient(generator):
    network = LoRANoise(generator, rank=2)
    noise, _ = draws(2, *generator.noise_shape)
    penalty = squared_excess(network, noise, generator.encode(["a ring", "a cross"]), 0.5)
    penalty.backward()
    assert penalty.item() == 0
    assert all(p.grad is None or not p.grad.isnan().any() for p in network.trainable_parameters())


def test_recipes_name_their_diagnostics(tmp_path):
    file = tmp_path / "recipe.yaml"
    for text, expected in (("kl", ("kl",)), ("[lipschitz, kl]", ("lipschitz", "kl"))):
        file.write_text(f"diagnostics: {text}")
        assert read_recipe(file).diagnostics == expected
    file.write_text("diagnostics: 3")
    with pytest.raises(InputError, match="diagnostics must be one of lipschitz, kl, not '3'"):
        read_recipe(file)
    with pytest.raises(InputError, match="diagnostics must be one of lipschitz, kl, not 'lipshitz'"):
        TrainConfig(diagnostics=("lipshitz",))
    with pytest.raises(InputError, match="lipschitz.bound must be a positive number"):
        Lipschitz(bound=0.0)
