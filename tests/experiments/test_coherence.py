"""How far a reward's slope reaches: closed forms, and the command."""

import json

import pytest
import torch

import hypernoise as hn
from experiments import coherence
from experiments.base import main


def found(reward, size=4000):
    generator = hn.ModuleGenerator(torch.nn.Identity(), noise_shape=(size,), pictures=False)
    return coherence.coherence(generator, reward, ["a", "b"], noises=8)


def test_a_linear_reward_reaches_everywhere():
    row = found(lambda pixels, prompts: 3 * pixels.sum(1))
    assert row["norm"] == pytest.approx(3 * 4000**0.5)
    assert [row[f"cosine_{distance:g}"] for distance in coherence.DISTANCES] == pytest.approx([1, 1, 1])


def test_a_quadratic_rewards_gradients_turn_with_the_noise():
    row = found(lambda pixels, prompts: pixels.square().sum(1))
    expected = [1 / (1 + distance**2) ** 0.5 for distance in coherence.DISTANCES]
    assert [row[f"cosine_{distance:g}"] for distance in coherence.DISTANCES] == pytest.approx(expected, abs=0.02)


def test_it_measures_the_embedded_generator(tmp_path, capsys):
    arguments = ["--output-dir", str(tmp_path), "--prompts", "2", "--noises", "2"]
    assert main(coherence.Coherence, arguments) == 0
    (row,) = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert 0 < row["cosine_1"] + 1 <= 2
    assert row["norm"] > 0
    assert f"| scenes | {row['norm']:.2f} |" in capsys.readouterr().out
    assert main(coherence.Coherence, ["--prompts", "0"]) == 2
    assert "--prompts must be at least 1" in capsys.readouterr().err
