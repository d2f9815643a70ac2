import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import hypernoise as hn
from hypernoise.adapters import save_adapter
from hypernoise.cli import main
from hypernoise.diagnostics.diagnosis import diagnose, findings
from hypernoise.diagnostics.kl import Estimate
from hypernoise.diagnostics.swap import swap_control
from hypernoise.errors import InputError
from hypernoise.generators.base import Condition
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.lora import LoRANoise
from tests.conftest import disturb
from tests.diagnostics.test_kl import draws

PROMPTS = ["up", "down"] * 20


class Mean:
    """Pictures [B, 1, 2, 4] are the noise; "up" and "down" are +1 and −1."""

    name, noise_shape, device = "mean", (1, 2, 4), torch.device("cpu")

    def encode(self, prompts):
        return Condition({"sign": torch.tensor([1.0 if p == "up" else -1.0 for p in prompts]).double()})

    def sample(self, noise, condition, *, num_inference_steps=1, seed=None):
        return noise


def sign_of(prompts, like):
    return torch.tensor([1.0 if p == "up" else -1.0 for p in prompts]).to(like)


def asked(pixels, prompts):
    """High for bright pictures of "up" and dark ones of "down"."""
    return pixels.flatten(1).mean(1) * sign_of(prompts, pixels)


class Edit(NoiseNetwork):
    """f = shift · (sign of the prompt, or 1) + slope · x."""

    kind, settings = "edit", {}

    def __init__(self, shift=0.0, slope=0.0, specific=True):
        super().__init__()
        self.shift, self.slope, self.specific = shift, slope, specific

    def forward(self, noise, condition):
        sign = condition.tensors["sign"].view(-1, 1, 1, 1)
        return self.shift * (sign if self.specific else torch.ones_like(sign)) + self.slope * noise

    def trainable_parameters(self):
        return [nn.Parameter(torch.zeros(1, dtype=torch.float64))]


def finding(found, name):
    return next(line for line in findings(found) if line.name == name)


def look(network, reward=asked, **settings):
    return diagnose(Mean(), network, reward, PROMPTS, **{"noises": 64, **settings})


def test_swapping_the_prompt_separates_specific_edits_from_generic_ones():
    noise, _ = draws(40, 1, 2, 4)
    specific = swap_control(Mean(), Edit(0.5), asked, PROMPTS, noise, batch=7)
    assert (specific.own.value, specific.swapped.value, specific.lost.value) == pytest.approx((0.5, -0.5, 1.0))
    brighter = lambda pixels, prompts: pixels.flatten(1).mean(1)  # noqa: E731
    generic = swap_control(Mean(), Edit(0.5, specific=False), brighter, PROMPTS, noise)
    assert (generic.own.value, generic.swapped.value, generic.lost.value) == pytest.approx((0.5, 0.5, 0.0))


def test_verdict_on_a_specific_shift():
    found = look(Edit(0.2))
    assert found.kl.kl.value == pytest.approx(8 * 0.04 / 2)
    assert found.lipschitz < 1e-12
    assert found.distance == pytest.approx(0.2)
    assert finding(found, "L2 term").good
    assert finding(found, "L2 term").text.startswith("trustworthy: KL 0.16")
    assert finding(found, "Lipschitz").good
    assert finding(found, "prompt").text.startswith("specific: 200% ± 0% of the gain")
    lowest, *others = found.bands  # the same at every place: f has no other frequency than 0
    assert lowest.power * lowest.share == pytest.approx(0.04)
    assert not any(band.power > 1e-20 for band in others)


def test_a_single_prompt_is_diagnosed_without_the_swap():
    found = diagnose(Mean(), Edit(0.2), asked, ["up"], noises=8)
    assert found.swap is None
    assert finding(found, "prompt").text.startswith("not tested: a swap needs at least two different prompts")
    assert finding(found, "L2 term").text.startswith("trustworthy")
    with pytest.raises(InputError, match="no prompt to diagnose on"):
        diagnose(Mean(), Edit(0.2), asked, [], noises=8)


def test_verdict_on_a_generic_shift():
    found = look(Edit(0.4, specific=False), reward=lambda pixels, prompts: pixels.flatten(1).mean(1))
    assert finding(found, "prompt").text.startswith("generic: 0% ± 0% of the gain")
    assert "a reward that reads the prompt" in finding(found, "prompt").advice
    assert finding(found, "white").text.startswith("x + f is not white: mean square of the mean at each place")


def test_too_few_noises_leave_the_swap_undecided():
    found = look(Edit(0.4, specific=False), reward=lambda pixels, prompts: pixels.flatten(1).mean(1))
    swap = dataclasses.replace(found.swap, own=Estimate(10.0, 1.0), swapped=Estimate(6.0, 1.0), lost=Estimate(4.0, 1.5))
    vague = finding(dataclasses.replace(found, swap=swap), "prompt")
    assert vague.text.startswith("undecided: 40% ± 15% of the gain is lost")
    assert "more --noises" in vague.advice
    sure = dataclasses.replace(swap, lost=Estimate(0.4, 0.5))  # 0.4 + 3 x 0.5 is under a fifth of 10
    assert finding(dataclasses.replace(found, swap=sure), "prompt").text.startswith("generic: 4% ± 5% of the gain")


def test_an_exact_kl_is_trusted_whatever_the_stretch():
    found = look(Edit(slope=-2.5))
    assert not finding(found, "Lipschitz").good
    found = dataclasses.replace(found, kl=dataclasses.replace(found.kl, own=True))
    assert finding(found, "KL").text.startswith(f"{found.kl.kl} nats, exact")
    assert finding(found, "Lipschitz").text.startswith("2.5 measured; at any value x + f never folds")
    assert all(line.good and not line.advice for line in findings(found) if line.name in ("KL", "Lipschitz"))


def test_verdict_on_a_contraction_that_l2_misjudges():
    found = look(Edit(slope=-0.5))
    assert found.kl.gap.value == pytest.approx(8 * (math.log(2) - 0.5))
    assert not finding(found, "L2 term").good
    assert finding(found, "L2 term").text.startswith("not trustworthy")
    assert "--lipschitz.mode clamp" in finding(found, "L2 term").advice
    assert finding(found, "Lipschitz").text.startswith("0.5 measured, below 1")
    assert not finding(found, "white").good
    assert finding(found, "prompt").text.startswith("no gain measured")


def test_verdict_on_an_expansion():
    found = look(Edit(slope=1.5))
    assert found.lipschitz == pytest.approx(1.5)
    assert not finding(found, "Lipschitz").good
    assert finding(found, "Lipschitz").text.startswith("1.5 measured, above 1 at 64 of 64 noises")


def test_verdict_where_noises_may_fold():
    found = look(Edit(0.2))
    folded = finding(dataclasses.replace(found, norms=[1.2]), "L2 term")
    assert not folded.good
    assert "a lower bound, as x + f may fold noises onto each other: KL at least 0.16" in folded.text
    flat = finding(look(Edit(slope=-1.0)), "L2 term")
    assert not flat.good
    assert "the KL is infinite" in flat.text


def test_verdict_when_the_error_is_too_great():
    found = look(Edit(0.2))
    vague = dataclasses.replace(found, kl=dataclasses.replace(found.kl, gap=Estimate(0.0, 1.0)))
    assert finding(vague, "L2 term").text.startswith("undecided")


def test_the_command_prints_its_verdict_and_writes_a_page(sd_pipeline, tmp_path, capsys):
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    network = LoRANoise(DiffusionGenerator(sd_pipeline(), name="tiny"), rank=2)
    disturb(network, 0.05)
    save_adapter(network, tmp_path / "adapter", training={"rewards": {"redness": 10.0}})
    (tmp_path / "prompts.txt").write_text("a ring\na red circle\ntwo blue rings\n")
    call = [
        "diagnose",
        "--adapter",
        str(tmp_path / "adapter"),
        "--generator",
        str(tmp_path / "tiny"),
        "--device",
        "cpu",
    ]
    call += ["--prompts", str(tmp_path / "prompts.txt"), "--output-dir", str(tmp_path / "out")]
    assert main([*call, "--noises", "8"]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["name"] for row in summary["results"]] == [
        "L2 term", "Lipschitz", "distance", "white", "prompt"
    ]  # fmt: skip
    assert all(row["text"] in printed for row in summary["results"])
    measured = summary["measured"]
    assert measured["dimensions"] == 256
    assert measured["lipschitz"] == max(measured["norms"])

    def said(*flags):
        assert main([*call, *flags]) == 2
        return capsys.readouterr().err

    assert "at least 8 noises" in said("--noises", "2")
    assert "--batch-size must be at least 1" in said("--batch-size", "0")
    save_adapter(network, tmp_path / "adapter")
    assert "does not record its rewards; name them" in said()
    assert main(["diagnose"]) == 2
    assert "name an adapter" in capsys.readouterr().err


def test_the_instruments_are_part_of_the_public_names():
    assert hn.diagnose is diagnose
    assert {"diagnose", "estimate_kl", "spectral_norm"} <= set(hn.__all__)
