import json
import time

import pytest
import torch

from hypernoise.cli import main
from hypernoise.diagnostics.failure_modes import LIMITS, MODES, broken, bumpy, noisy, stepped
from hypernoise.rewards.pixel import redness

TINY = [
    "failures",
    "--steps",
    "1",
    "--batch-size",
    "2",
    "--rank",
    "2",
    "--judged",
    "1",
    "--points",
    "2",
    "--device",
    "cpu",
]
BASE = {"reward": 5.0, "score": 0.5, "artefacts": 0.3, "diversity": 0.25}
SOUND = {**BASE, "reward": 9.0, "kl": 1.0, "kl_whole": 1.0, "kl_gap": 0.02, "kl_gap_error": 0.01, "lipschitz": 0.5}


@pytest.mark.parametrize(
    ("change", "crossed"),
    [
        ({}, []),
        ({"kl_gap": -0.3}, ["KL gap"]),
        ({"kl_gap": 0.3, "kl_gap_error": 0.15}, []),  # within its error
        ({"lipschitz": 1.0}, ["Lipschitz"]),
        ({"artefacts": 0.36}, ["artefacts"]),
        ({"diversity": 0.2}, ["diversity"]),
        ({"score": 0.4}, ["judge"]),
        ({"score": 0.4, "reward": 4.0}, []),  # both fell: the reward was not climbed for nothing
        ({"lipschitz": 3.0, "score": 0.1, "kl_gap": 2.0}, ["KL gap", "Lipschitz", "judge"]),
    ],
)
def test_limits_are_told_where_they_are_crossed(change, crossed):
    assert broken({**SOUND, **change}, BASE) == crossed
    assert set(crossed) <= set(LIMITS)


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

    for mode in MODES.values():
        assert mode.reward().weights == dict(mode.rewards)
        TrainConfig(**mode.changes)


@pytest.mark.slow
def test_modes_are_measured_kept_and_not_run_again(tmp_path, capsys):
    call = [*TINY, "--modes", "nonzero-start", "discontinuous", "--output", str(tmp_path)]
    assert main(call) == 0
    printed = capsys.readouterr().out
    started, refused = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert started["lipschitz"] > 0.1
    assert started["kl_whole"] == pytest.approx(started["kl_gap"] + started["kl"], rel=0.5)
    assert started["base"]["kl"] == 0
    assert started["broken"] == broken(started, started["base"])
    assert "gradient is cut" in refused["refused"]
    assert "discontinuous   refused: " + refused["refused"] in printed
    began = time.perf_counter()
    assert main(call) == 0
    assert time.perf_counter() - began < 10
    assert capsys.readouterr().out == printed
    (tmp_path / "nonzero-start" / "row.json").unlink()  # as if it had been interrupted
    assert main([*call, "--rank", "3"]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_wrong_calls_are_said(capsys):
    for flags, message in (
        (["--modes", "large-stp"], "unknown mode 'large-stp'; did you mean 'large-step'"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--points", "1"], "--points must be at least 2"),
    ):
        assert main(["failures", *flags]) == 2
        assert message in capsys.readouterr().err
