import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hypernoise.cli import main
from hypernoise.commands.experiment_amortisation import Amortisation, _share
from hypernoise.commands.experiment_base import disturb, same_run
from hypernoise.commands.experiment_redness import at_matched_reward, verdict
from hypernoise.commands.experiment_steps import RandomShift
from hypernoise.errors import InputError
from hypernoise.methods.base import Problem
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards.pixel import redness
from tests import conftest

TINY = [
    "--judged", "1", "--noises", "2", "--train-steps", "2", "--batch-size", "2", "--rank", "2", "--seeds", "0", "1",
    "--rewards", "redness=20", "--watched", "blueness", "--device", "cpu",
]  # fmt: skip

WARM = ["--warm-rounds", "1", "--warm-samples", "2"]


@pytest.fixture
def run(sd_pipeline, tmp_path):
    """Runs an experiment on a tiny pipeline, whose pictures the judge finds nothing in, and reads its summary."""
    sd_pipeline().save_pretrained(tmp_path / "tiny")

    def run(name, *flags):
        where = ["--generator", str(tmp_path / "tiny"), "--output", str(tmp_path / "out")]
        assert main(["experiment", name, *TINY, *where, *flags]) == 0
        return json.loads((tmp_path / "out" / "summary.json").read_text())

    return run


def row(reward, score, artefacts=0.0):
    return {"reward": reward, "score": score, "artefacts": artefacts, "watched_reward": None, "diversity": 0.2}


def test_curves_meet_at_the_lower_final_reward():
    ours = [row(0, 0.5), row(2, 0.6, 0.2), row(4, 0.4, 0.4)]
    other = [row(0, 0.5), row(1, 0.5, 0.1), row(3, 0.3, 0.5)]
    met = at_matched_reward(ours, other)
    assert met["reward"] == 3
    assert met["hypernoise"]["score"] == pytest.approx(0.5)
    assert met["hypernoise"]["artefacts"] == pytest.approx(0.3)
    assert met["finetune"]["score"] == pytest.approx(0.3)
    assert met["finetune"]["watched_reward"] is None
    stuck = at_matched_reward([row(1, 0.7), row(0.5, 0.2)], other)  # one that only fell is met at its start
    assert (stuck["reward"], stuck["hypernoise"]["score"]) == (1, 0.7)


def test_the_verdict_needs_every_seed():
    met = {"reward": 1, "plain_reward": 0}
    good = {**met, "hypernoise": row(1, 0.6, 0.1), "finetune": row(1, 0.5, 0.2)}
    bad = {**met, "hypernoise": row(1, 0.6, 0.3), "finetune": row(1, 0.5, 0.2)}
    assert verdict([good, {**good, "plain_reward": 1}]).startswith("undecided: one of them never raised")
    assert verdict([good, good]) == "holds"
    assert verdict([good, bad]) == "undecided"
    assert verdict([bad, bad]) == "does not hold"


def test_shares_are_of_gains_over_plain():
    def records(values):
        return SimpleNamespace(values={"right": np.array(values)[:, None]})

    rng = np.random.default_rng(0)
    base, gain = rng.random(60), rng.random(60)
    found = SimpleNamespace(
        records={(1, "plain"): records(base), (1, "reno"): records(base + gain), (1, "h"): records(base + 0.5 * gain)}
    )
    share = _share(found, [SimpleNamespace(name="h")], "reno", "right", np.zeros(60))
    assert share["share"] == pytest.approx(0.5)
    assert share["ci95"] == pytest.approx([0.5, 0.5])  # in pairs: what prompts share cancels
    found.records[1, "reno"] = found.records[1, "plain"]
    assert _share(found, [SimpleNamespace(name="h")], "reno", "right", np.zeros(60))["share"] is None


@pytest.mark.parametrize(
    ("share", "calls", "expected"),
    [(0.8, 0.01, "holds"), (0.6, 0.01, "does not hold"), (0.8, 0.03, "does not hold"), (None, 0.01, "does not hold")],
)
def test_amortisation_holds_only_at_its_target_and_compute(share, calls, expected):
    one = {"of_score_gain": {"share": share}, "of_extra_calls": calls}
    assert Amortisation(against=("reno-50",))._verdict({"reno-50": one}) == expected


def test_a_random_shift_is_as_long_as_fs(generator):
    noise = torch.randn(2, *generator.noise_shape, dtype=torch.float64)
    network = LoRANoise(generator, rank=2)
    conftest.disturb(network)
    ours, random = HyperNoise(network), RandomShift(HyperNoise(network), "random")
    problem, prompts = Problem(generator, redness), ["a ring", "a cross"]
    shifted = random.generate(problem, prompts, noise)
    assert shifted.kl.tolist() == pytest.approx(ours.generate(problem, prompts, noise).kl.tolist())
    likeness = torch.cosine_similarity(
        (shifted.noise - noise).flatten(1), network(noise, generator.encode(prompts)).flatten(1)
    )
    assert likeness.abs().max() < 0.3


def test_a_start_other_than_zero(generator):
    network = LoRANoise(generator, rank=2)
    noise = torch.randn(1, *generator.noise_shape, dtype=torch.float64)
    condition = generator.encode(["a ring"])
    disturb(network, 0.0, 0)
    assert not network(noise, condition).any()
    disturb(network, 0.02, 0)
    assert network(noise, condition).any()


def test_a_run_of_other_settings_is_not_taken_up(tmp_path):
    same_run(tmp_path / "run", {"lr": 1e-3})
    same_run(tmp_path / "run", {"lr": 1e-3})
    with pytest.raises(InputError, match="was trained with lr = 0.001, not 0.1; give another --output"):
        same_run(tmp_path / "run", {"lr": 0.1})


def test_redness_trains_both_alike_and_meets_them(run, tmp_path, capsys):
    summary = run("redness", "--lrs", "1e-3", "1e-2", "--looks", "1")
    rows = summary["results"]
    assert [r["method"] for r in rows] == ["plain", "hypernoise-1", "hypernoise-2", "finetune-1", "finetune-2"]
    assert all(len(r["runs"]) == 2 for r in rows[1:])
    assert set(summary["learning_rates"]["finetune"]["losses"]) == {"0.001", "0.01"}
    assert [one["training_seed"] for one in summary["matched"]] == [0, 1]
    assert summary["verdict"].partition(":")[0] in {"holds", "undecided", "does not hold"}
    assert (tmp_path / "out" / "sheet.png").is_file()
    assert f"verdict: {summary['verdict']}" in capsys.readouterr().out
    made = sorted(tmp_path.glob("out/training/*/checkpoint-*"))
    assert len(made) == 2 * 3 * 2  # kinds, learning rates and the second seed's run, two checkpoints each
    assert run("redness", "--lrs", "1e-3", "1e-2", "--looks", "1")["results"] == rows  # all is found
    assert sorted(tmp_path.glob("out/training/*/checkpoint-*")) == made


def test_amortisation_reports_every_search(run, tmp_path, capsys):
    flags = ["--searches", "best-of-2", "--against", "reno-2", "--lr", "1e-2"]
    summary = run("amortisation", *flags, *WARM)
    assert "warm start 1/1" in capsys.readouterr().err
    assert [r["method"] for r in summary["results"]] == ["plain", "hypernoise", "best-of-2", "reno-2"]
    assert summary["shares"]["reno-2"]["of_extra_calls"] == pytest.approx(
        1 / 2
    )  # 2 forwards and 1 backward, less plain's
    assert summary["shares"]["best-of-2"]["of_extra_calls"] == pytest.approx(1)
    assert (tmp_path / "out" / "pareto.svg").exists()


def test_steps_tells_what_is_left_of_the_noise(run):
    summary = run("steps", "--steps", "1", "2", "--mixed", "1", "2", "--seeds", "0", "--lr", "1e-2", *WARM)
    names = ["plain", "hypernoise-one", "hypernoise-mixed"]
    assert [(r["steps"], r["method"]) for r in summary["results"]] == [(s, n) for s in (1, 2) for n in names]
    first, second = summary["influence"]
    assert first["moved_since_1_steps"] == 0 < second["moved_since_1_steps"]
    assert 0 < first["moved_by_f"] < 1
    assert first["between_noises"] > 0


def test_ablations_have_a_row_each(run):
    summary = run("ablations", "--ranks", "1", "2", "--seeds", "0", "--noises", "1")
    assert [r["method"] for r in summary["results"]] == ["plain", "rank-1", "rank-2", "rank-2-nonzero-start"]
    assert summary["results"][3]["kl"] > summary["results"][2]["kl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which experiment: redness, amortisation"),
        (["rednes"], "unknown experiment 'rednes'; did you mean 'redness'"),
        (["redness", "--seeds", "1", "1"], "--seeds takes different numbers"),
        (["redness", "--looks", "0"], "--looks takes numbers of updates from 1, not [0]"),
        (["redness", "--train-steps", "0"], "steps must be at least 1"),
        (["redness", "--judged", "0"], "--judged must be at least 1"),
        (["amortisation", "--against", "reno50"], "unknown method 'reno50'; did you mean 'reno-50'"),
        (["steps", "--mixed", "0"], "--mixed takes numbers from 1"),
        (["ablations", "--ranks", "0"], "--ranks takes numbers from 1"),
        (["ablations", "--start", "0"], "--start must be above 0"),
        (["ablations", "--ranks", "4"], "--rank 32 must be among --ranks"),
        (["redness", "--warm-rounds", "1"], "--warm-rounds must be 0 here"),
        (["amortisation", "--against"], "--against takes at least one search"),
        (["ablations", "--warm-rounds", "1"], "--warm-rounds must be 0 here"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, tmp_path, arguments, message):
    where = ["--device", "cpu", "--output", str(tmp_path / "out")] if arguments else []
    assert main(["experiment", *arguments, *where]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told
    assert "\n" not in told
