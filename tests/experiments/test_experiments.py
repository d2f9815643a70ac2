import json
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.amortisation import artefacts_over_plain, goals, shares_of
from experiments.base import RECIPES, drawing_nearby, first_of, main, same_run, start_off_zero, table
from experiments.redness import at_matched_reward, verdict
from experiments.steps import RandomShift, verdict_on
from hypernoise.errors import InputError
from hypernoise.evaluation.benchmarks import load_benchmark
from hypernoise.methods.base import Problem
from hypernoise.methods.hypernoise import HyperNoise
from hypernoise.noise.lora import LoRANoise
from hypernoise.rewards.pixel import redness
from hypernoise.training.config import read_recipe
from hypernoise.training.metrics import rows_of
from tests.conftest import disturb

EXPERIMENTS = ["amortisation", "steps", "ablations", "spectral", "redness", "transfer", "failures"]


def row(reward, score, artefacts=0.0):
    return {"reward": reward, "score": score, "artefacts": artefacts, "validation_reward": None, "diversity": 0.2}


def test_curves_meet_at_the_lower_final_reward():
    ours = [row(0, 0.5), row(2, 0.6, 0.2), row(4, 0.4, 0.4)]
    other = [row(0, 0.5), row(1, 0.5, 0.1), row(3, 0.3, 0.5)]
    met = at_matched_reward(ours, other)
    assert met["reward"] == 3
    assert met["hypernoise"]["score"] == pytest.approx(0.5)
    assert met["hypernoise"]["artefacts"] == pytest.approx(0.3)
    assert met["finetune"]["score"] == pytest.approx(0.3)
    assert met["finetune"]["validation_reward"] is None
    stuck = at_matched_reward([row(1, 0.7), row(0.5, 0.2)], other)  # one that only fell is met at its start
    assert (stuck["reward"], stuck["hypernoise"]["score"]) == (1, 0.7)


def test_the_verdict_needs_every_seed():
    met = {"reward": 1, "plain_reward": 0}
    good = {**met, "hypernoise": row(1, 0.6, 0.1), "finetune": row(1, 0.5, 0.2)}
    bad = {**met, "hypernoise": row(1, 0.6, 0.3), "finetune": row(1, 0.5, 0.2)}
    assert verdict([good, {**good, "plain_reward": 1}]).startswith("undecided: one of them never raised")
    assert verdict([good, good]).startswith("holds")
    assert verdict([good, bad]).startswith("undecided")
    assert verdict([bad, bad]).startswith("does not hold")


def records(**values):
    return SimpleNamespace(values={name: np.array(each)[:, None] for name, each in values.items()})


def test_shares_are_of_gains_over_plain():
    rng = np.random.default_rng(0)
    base, gain, names = rng.random(60), rng.random(60), ["all"] * 60
    found = SimpleNamespace(
        records={
            (1, "plain"): records(right=base, reward=base, artefacts=base),
            (1, "reno"): records(right=base + gain, reward=base + gain - gain.mean() + 1e-12),
            (1, "a"): records(right=base + 0.4 * gain, reward=base, artefacts=base + 0.01),
            (1, "b"): records(right=base + 0.6 * gain, reward=base, artefacts=base + 0.03),
        }
    )
    a, b = SimpleNamespace(name="a"), SimpleNamespace(name="b")
    share = shares_of(found, 4096, [a], "reno", names)
    assert (share["method"], share["right"]) == ("hypernoise-4k", pytest.approx(0.4))
    assert share["right_ci95"] == pytest.approx([0.4, 0.4])  # in pairs: what prompts share cancels
    assert share["reward"] is None  # no share of a gain that may be none
    both = shares_of(found, 4096, [a, b], "reno", names)
    assert both["right"] == pytest.approx(0.5)
    assert both["right_ci95"] == pytest.approx([0.4, 0.6])  # by the run that is drawn
    rise = artefacts_over_plain(found, [a, b], names)
    assert rise == {"rise": pytest.approx(0.02), "ci95": pytest.approx([0.01, 0.03])}


def test_each_goal_has_its_own_verdict():
    plain = {"denoiser_forwards": 1, "denoiser_backwards": 0, "diversity": 0.2}
    ours = {"denoiser_forwards": 2, "denoiser_backwards": 0, "gain": 0.081, "diversity": 0.189}
    lines = goals(plain, ours, {"right": 0.61, "reward": 0.59}, {"rise": 0.002, "ci95": [-0.001, 0.005]})
    assert lines == [
        "reached: 0.61 of ReNO-50's gain by the judge for 1 extra calls (goal: 0.6 for 1)",
        "missed: 0.59 of ReNO-50's gain in reward for 1 extra calls (goal: 0.6 for 1)",
        "reached: judge +0.081 at one step (goal: +0.08)",
        "missed: artefacts +0.002 [-0.001, +0.005] (goal: no worse than plain's)",
        "missed: diversity 94.5% of plain's (goal: 95%)",
    ]
    nothing = goals(plain, {**ours, "denoiser_forwards": 3}, {"right": None, "reward": 0.9}, None)
    assert nothing[0] == "undecided: ReNO-50's gain by the judge is not above 0"
    assert nothing[1].startswith("missed: 0.90")  # for two calls
    assert goals({**plain, "diversity": None}, ours, {"right": 1, "reward": 1}, None)[-1].startswith("undecided")


def test_a_gain_must_last_and_shrink():
    rows = [{"gain": 0.10, "gain_ci95": [0.05, 0.15]}, {"gain": 0.06, "gain_ci95": [0.01, 0.11]}]
    assert verdict_on(rows).startswith("holds")
    assert verdict_on(rows[::-1]).startswith("does not hold")
    assert verdict_on([rows[0], {"gain": 0.02, "gain_ci95": [-0.01, 0.05]}]).startswith("does not hold")


def test_a_random_shift_is_as_long_as_fs(generator):
    noise = torch.randn(2, *generator.noise_shape, dtype=torch.float64)
    network = LoRANoise(generator, rank=2)
    disturb(network)
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
    start_off_zero(network, 0.0, 0)
    assert not network(noise, condition).any()
    start_off_zero(network, 0.02, 0)
    assert network(noise, condition).any()


def test_a_run_of_other_settings_is_not_resumed(tmp_path):
    same_run(tmp_path / "run", {"lr": 1e-3})
    same_run(tmp_path / "run", {"lr": 1e-3})
    with pytest.raises(InputError, match="was trained with lr = 0.001, not 0.1; give another --output-dir"):
        same_run(tmp_path / "run", {"lr": 0.1})


def test_the_first_prompts_of_each_category_are_used():
    asked = load_benchmark("scenes", 5)
    few = first_of(asked, 2)
    assert len(few.prompts) == 12
    assert [few.categories.count(name) for name in dict.fromkeys(few.categories)] == [2] * 6
    assert few.prompts[:2] == asked.prompts[:2]
    assert few.prompts[2:4] == asked.prompts[5:7]
    assert first_of(asked, 0) is first_of(asked, 5) is asked


def test_the_table_leaves_out_what_nothing_has():
    plain = {"method": "plain", "inference_steps": 1, "score": 0.5, "score_ci95": [0.4, 0.6], "gain": None}
    rows = [plain, {**plain, "method": "h", "score": 0.6, "gain": 0.1, "gain_ci95": [0.05, 0.15]}]
    assert table(rows).splitlines() == [
        "|  | judge | gain [95 %] |",
        "| --- | --- | --- |",
        "| plain | 0.500 |  |",
        "| h | 0.600 | +0.100 [+0.050, +0.150] |",
    ]


def test_amortisation_is_a_curve_of_runs_of_their_own(run, tmp_path, capsys):
    flags = ["--pictures", "8", "4", "--seeds", "0", "1", "--noises", "2"]
    summary = run("amortisation", *flags)
    printed = capsys.readouterr().out
    rows = {r["method"]: r for r in summary["results"]}
    sizes = ["hypernoise-4", "hypernoise-8"]
    assert list(rows) == ["plain", *sizes, "best-of-2", "best-of-8", "best-of-50", "reno-10", "reno-50"]
    assert [rows[name]["training_runs"] for name in sizes] == [1, 2]  # every seed at the largest
    calls = ("denoiser_forwards", "denoiser_backwards", "decodes", "reward_calls")
    assert [rows["hypernoise-8"][name] for name in calls] == [2, 0, 1, 0]
    assert [rows["best-of-8"][name] for name in calls] == [8, 0, 8, 8]
    assert [rows["reno-50"][name] for name in calls] == [50, 49, 50, 50]
    share = summary["shares"][1]["reward"]
    gains = [rows[name]["reward_gain"] for name in ("hypernoise-8", "reno-50")]
    assert share == pytest.approx(gains[0] / gains[1])
    assert f"| hypernoise-8 | 8 | 2 | {share:.2f} [" in printed  # the judge finds nothing in these pictures
    assert summary["verdict"][0] == "undecided: ReNO-50's gain by the judge is not above 0"
    assert all(f"verdict: {line}" in printed for line in summary["verdict"])
    assert (tmp_path / "out" / "curve.png").is_file()
    made = {folder.name: rows_of(folder) for folder in (tmp_path / "out" / "training").iterdir()}
    assert {name: len(steps) for name, steps in made.items()} == {"4-seed0": 2, "8-seed0": 4, "8-seed1": 4}
    noted = json.loads((tmp_path / "out" / "training" / "8-seed1" / "run.json").read_text())
    assert (noted["lr_scheduler"], noted["max_train_steps"], noted["rank"], noted["start"]) == ("cosine", 4, 2, 0.0)
    assert noted["learning_rate"] == 0.01
    assert run("amortisation", *flags)["results"] == summary["results"]  # all is found
    assert {name: len(rows_of(tmp_path / "out" / "training" / name)) for name in made} == {
        name: len(steps) for name, steps in made.items()
    }


def test_expensive_searches_may_draw_fewer_captions(run):
    summary = run(
        "amortisation", "--pictures", "2", "--judged", "2", "--searched", "1", "--seeds", "0", "--noises", "1"
    )
    names = ["plain", "hypernoise-2", "best-of-2", "best-of-8"]
    assert [(r["method"], r["images"]) for r in summary["results"]] == [(name, 12) for name in names]
    searched = summary["searched"]["results"]
    assert [(r["method"], r["images"]) for r in searched] == [
        (name, 6) for name in (*names, "best-of-50", "reno-10", "reno-50")
    ]
    assert summary["searched"]["prompts"]["count"] == 6


def test_steps_reports_how_much_the_noise_still_matters(run):
    flags = ["--inference-steps", "1", "2", "--mixed", "1", "2", "--seeds", "0", "--noises", "2"]
    summary = run("steps", *flags)
    names = ["plain", "hypernoise-one", "hypernoise-mixed"]
    assert [(r["inference_steps"], r["method"]) for r in summary["results"]] == [(s, n) for s in (1, 2) for n in names]
    first, second = summary["influence"]
    assert first["moved_since_first"] == 0 < second["moved_since_first"]
    assert 0 < first["moved_by_f"] < 1
    assert first["between_noises"] > 0


def test_spectral_networks_and_the_lora_have_a_row_each(run):
    flags = ["--ks", "1", "2", "--width", "8", "--seeds", "0", "--noises", "1", "--pictures", "4", "--measured", "2"]
    summary = run("spectral", *flags, "--calls", "1")
    plain, lora, one, two = summary["results"]
    assert [row["method"] for row in (plain, lora, one, two)] == ["plain", "lora", "spectral-1", "spectral-2"]
    assert (lora["denoiser_forwards"], one["denoiser_forwards"]) == (2, 1)
    assert one["parameters"] < two["parameters"]
    for row in (lora, one, two):
        assert row["pictures"] == 4
        assert np.isfinite([row[name] for name in ("whole_kl", "overhead_1", "overhead_4", "seconds_per_step")]).all()
    assert len(summary["verdict"]) == 2
    assert "a LoRA that gained nothing" in summary["verdict"][0]  # the judge finds nothing in these pictures


def test_ablations_have_a_row_each(run):
    summary = run("ablations", "--ranks", "1", "2", "--seeds", "0", "--noises", "1", "--pictures", "4")
    assert [r["method"] for r in summary["results"]] == ["plain", "rank-1", "rank-2", "rank-2-nonzero-start"]
    rows = summary["results"]
    assert rows[3]["kl"] != rows[2]["kl"]
    assert summary["verdict"][1].startswith("rank-2 over rank-1: judge +0.000, reward ")
    assert f"reward {rows[2]['reward'] - rows[1]['reward']:+.3f}" in summary["verdict"][1]


def test_ablations_change_one_training_setting_at_a_time(run, tmp_path):
    flags = ["--ranks", "1", "--vary", "kl_weight=9", "--nearby", "0.5", "--seeds", "0", "--noises", "1"]
    summary = run("ablations", *flags, "--pictures", "8")
    rows = {row["method"]: row for row in summary["results"]}
    assert list(rows) == ["plain", "rank-1", "rank-2", "rank-2-nonzero-start", "kl_weight=9", "nearby-0.5"]
    assert rows["kl_weight=9"]["kl"] < rows["rank-2"]["kl"] != rows["nearby-0.5"]["kl"]
    known = json.loads((tmp_path / "out" / "training" / "rank-2-seed0" / "run.json").read_text())
    for name, change in (("kl_weight=9", {"kl_weight": 9.0}), ("nearby-0.5", {"nearby": 0.5})):
        noted = json.loads((tmp_path / "out" / "training" / f"{name}-seed0" / "run.json").read_text())
        assert noted == {**known, **change}
    assert summary["verdict"][-1].startswith("nearby-0.5 over rank-2: judge ")


def test_nearby_noises_are_white_and_keyed():
    noise = torch.randn(64, 4, 8, 8, dtype=torch.float64)
    drawn = []
    still = SimpleNamespace(sample=lambda noise, *_, **__: drawn.append(noise))
    for seeds in (range(64), range(64), range(1, 65)):
        drawing_nearby(still, 0.5).sample(noise, None, seed=list(seeds))
    assert torch.equal(drawn[0], drawn[1])
    added = [own * 1.25**0.5 - noise for own in drawn]
    assert torch.allclose(added[0][1:], added[2][:-1])  # sample 1's draw, wherever it stands in the batch
    assert drawn[0].std().item() == pytest.approx(1, abs=0.05)
    assert added[0].std().item() / 0.5 == pytest.approx(1, abs=0.05)


def test_redness_trains_both_alike_and_meets_them(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("experiments.redness.VALIDATED", {"blueness": 1.0})  # which sees pictures of any size
    flags = ["--rates", "0.1", "1", "--looks", "1", "2", "--seeds", "0", "1", "--noises", "1"]
    summary = run("redness", *flags)
    rows = summary["results"]
    assert [(r["method"], r.get("updates")) for r in rows] == [
        ("plain", None), ("hypernoise", 1), ("hypernoise", 2), ("finetune", 1), ("finetune", 2),
    ]  # fmt: skip
    assert all(len(r["runs"]) == 2 for r in rows[1:])
    assert set(summary["learning_rates"]["finetune"]["losses"]) == {"0.001", "0.01"}
    assert [one["training_seed"] for one in summary["matched"]] == [0, 1]
    assert (tmp_path / "out" / "sheet.png").is_file()
    assert f"verdict: {summary['verdict'][0]}" in capsys.readouterr().out
    made = sorted(tmp_path.glob("out/training/*/checkpoint-*"))
    assert len(made) == 2 * 3 * 2  # kinds, learning rates and the second seed's run, two checkpoints each
    assert run("redness", *flags)["results"] == rows  # all is found
    assert sorted(tmp_path.glob("out/training/*/checkpoint-*")) == made


def test_default_recipes_are_those_that_ship():
    for name in EXPERIMENTS:
        own = getattr(import_module(f"experiments.{name}"), name.capitalize())().recipe
        assert own.parent == RECIPES
        read_recipe(own)


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("redness", ["--lookz", "1"], "unknown flag '--lookz'; did you mean '--looks'?"),
        ("redness", ["--noises", "two"], "two"),
        ("redness", ["--seeds", "1", "1"], "--seeds takes different numbers"),
        ("redness", ["--looks", "0"], "--looks takes numbers of updates from 1, not [0]"),
        ("redness", ["--rates", "0"], "--rates takes numbers above 0"),
        ("redness", ["--judged", "0"], "--judged must be at least 1"),
        ("amortisation", ["--pictures", "1"], "--pictures must be at least a batch of the recipe, 2, not 1"),
        ("amortisation", ["--searched", "-1"], "--searched must be 0 (all) or more"),
        ("amortisation", ["--recipe", "nowhere.yaml"], "recipe nowhere.yaml cannot be read"),
        ("steps", ["--mixed", "0"], "--mixed takes numbers from 1"),
        ("steps", ["--inference-steps", "0"], "--inference-steps takes numbers from 1"),
        ("ablations", ["--ranks", "0"], "--ranks takes numbers from 1"),
        ("ablations", ["--vary", "kl_weight"], "--vary takes field=value, such as kl_weight=0.01, not 'kl_weight'"),
        ("ablations", ["--vary", "kl_wait=1"], "unknown field of training 'kl_wait'; did you mean 'kl_weight'?"),
        ("ablations", ["--nearby", "-1"], "--nearby must be 0 or more, not -1.0"),
        ("transfer", [], "name generators to drive"),
        ("failures", ["--modes", "large-stp"], "unknown mode 'large-stp'; did you mean 'large-step'"),
        ("failures", ["--points", "1"], "--points must be at least 8"),
        ("failures", ["--noises", "1"], "--noises must be at least 2"),
    ],
)
def test_mistakes_are_one_line(capsys, tiny, tmp_path, name, flags, message):
    capsys.readouterr()  # the recipe's pipeline was saved with a bar
    given = ["--recipe", str(tiny), *flags, "--device", "cpu", "--output-dir", str(tmp_path / "out")]
    assert main(getattr(import_module(f"experiments.{name}"), name.capitalize()), given) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "\n" not in printed
