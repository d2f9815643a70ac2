import json
import time

import pytest
import torch

from experiments.base import main
from experiments.failure_modes import (
    LIMITS,
    broken,
    bumpy,
    first_broken,
    modes,
    noisy,
    stepped,
    weakest_that_break,
)
from experiments.failures import Failures, paired_error, verdict
from hypernoise.rewards.pixel import redness

TINY = ["--updates", "2", "--looks", "2", "--judged", "1", "--points", "8", "--device", "cpu"]
BASE = {"reward": 5.0, "score": 0.5, "artefacts": 0.3, "diversity": 0.25}
SOUND = {**BASE, "reward": 9.0, "kl": 1.0, "kl_whole": 1.0, "kl_gap": 0.02, "kl_gap_error": 0.01, "lipschitz": 0.5}
SOUND |= {"score_error": 0.02, "artefacts_error": 0.01}


@pytest.mark.parametrize(
    ("change", "crossed"),
    [
        ({}, {}),
        ({"kl_gap": -0.3}, {"KL gap": 0.3}),
        ({"kl_gap": 0.3, "kl_gap_error": 0.16}, {}),  # within its error
        ({"lipschitz": 1.0}, {"Lipschitz": 1.0}),
        ({"artefacts": 0.36}, {"artefacts": 0.06}),
        ({"artefacts": 0.36, "artefacts_error": 0.04}, {}),
        ({"diversity": 0.2}, {"diversity": 0.2}),
        ({"score": 0.4}, {"judge": 0.1}),
        ({"score": 0.4, "score_error": 0.06}, {}),
        ({"score": 0.4, "reward": 4.0}, {}),  # both fell: the reward was not climbed for nothing
        ({"lipschitz": 3.0, "score": 0.1, "kl_gap": 2.0}, {"KL gap": 2.0, "Lipschitz": 3.0, "judge": 0.4}),
    ],
)
def test_limits_are_named_where_they_are_crossed(change, crossed):
    found = broken({**SOUND, **change}, BASE)
    assert found == pytest.approx(crossed)
    assert list(found) == [name for name in LIMITS if name in crossed]


def test_the_first_break_and_the_weakest_strength_are_found():
    sound, folds, ends = ({"broken": crossed} for crossed in ({}, {"Lipschitz": 2.0}, {"judge": 0.3}))
    assert first_broken([sound, sound]) is None
    assert first_broken([sound, folds, ends]) is folds
    looks = {2500.0: [folds, ends], 25.0: [sound, sound], 250.0: [sound, folds]}
    assert weakest_that_break(looks) == {"Lipschitz": 250.0, "judge": 2500.0}


def test_paired_errors_are_those_of_the_differences():
    assert paired_error([1.0, 5.0, 9.0], [2.0, 6.0, 10.0]) == 0
    assert paired_error([0.0, 0.0], [0.0, 1.0]) == pytest.approx(0.5)


def test_the_rewards_are_broken_as_they_say():
    pixels = torch.rand(64, 3, 8, 8, dtype=torch.float64)
    pixels[:, 0] += torch.linspace(-0.3, 0.3, 64).view(-1, 1, 1)
    pixels.requires_grad_()
    red = redness(pixels, [])

    def slope(values):  # per unit of redness, of each picture
        (gradient,) = torch.autograd.grad(values.sum(), pixels, allow_unused=True, materialize_grads=True)
        return gradient[:, 0].flatten(1).sum(1)

    assert torch.allclose(slope(redness(pixels, [])), torch.ones(64).double())
    waves = slope(bumpy(pixels, []))
    assert waves.min() < -0.5
    assert waves.max() > 2.5
    assert not slope(stepped(pixels, [])).any()
    assert (stepped(pixels, []) <= red).all()
    torch.manual_seed(0)
    chance = slope(noisy(pixels, []))
    assert chance.mean() == pytest.approx(1, abs=0.8)
    assert chance.std() == pytest.approx(2, rel=0.4)


def test_every_mode_makes_a_reward_and_settings():
    from hypernoise.training.config import TrainConfig

    found = modes(250.0, 1e-3)
    assert found["strength-x100"].rewards == {"redness": 25000.0}
    assert found["large-step"].changes == {"learning_rate": pytest.approx(0.03)}
    for mode in found.values():
        assert mode.reward().weights == dict(mode.rewards)
        TrainConfig(**mode.changes)


def test_the_verdict_counts_what_gives_first():
    sound, folds, ends = ({"broken": crossed} for crossed in ({}, {"Lipschitz": 2.0}, {"judge": 0.3}))
    rows = [[sound, folds], [folds, ends], [ends], [sound], []]
    text = verdict([{"looks": looks, "stopped": not looks} for looks in rows])
    assert text == "of 5 modes Lipschitz first in 2, judge first in 1, nothing in 1, 1 stopped by the library"


@pytest.mark.slow
def test_modes_are_measured_kept_and_not_run_again(tiny, tmp_path, capsys):
    where = ["--recipe", str(tiny), "--output-dir", str(tmp_path / "out")]
    call = [*TINY, *where, "--modes", "nonzero-start", "discontinuous"]
    assert main(Failures, call) == 0
    printed = capsys.readouterr().out
    started, refused = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert [look["step"] for look in started["looks"]] == [1, 2]
    look = started["looks"][1]
    assert look["kl_whole"] == pytest.approx(look["kl_gap"] + look["kl"], rel=0.5)
    assert look["base"]["kl"] == 0
    assert look["broken"] == broken(look, look["base"])
    assert started["said"] == look["findings"]
    assert all(f"nonzero-start: {line}" in printed for line in started["said"])
    assert (refused["looks"], refused["stopped"]) == ([], True)
    assert "gradient is cut" in refused["said"][0]
    assert f"stopped: {refused['said'][0]} |" in printed
    began = time.process_time()
    assert main(Failures, call) == 0
    assert time.process_time() - began < 10
    assert capsys.readouterr().out == printed
    (tmp_path / "out" / "nonzero-start" / "row.json").unlink()  # as if it had been interrupted
    (tmp_path / "out" / "nonzero-start" / "look-000002.json").unlink()
    assert main(Failures, call) == 0
    again, _ = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert again["looks"][0] == started["looks"][0]
    assert again["looks"][1]["lipschitz"] == look["lipschitz"]
    assert main(Failures, [*call, "--points", "9"]) == 2
    assert "was made with other settings" in capsys.readouterr().err
