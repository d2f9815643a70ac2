import numpy as np
import pytest
from PIL import Image

from hypernoise.evaluation.bootstrap import grouped_mean, interval, means_of_groups
from hypernoise.evaluation.charts import COLORS, HEIGHT, LEFT, Line, line_chart
from hypernoise.evaluation.page import as_text, charts_of, result_tables
from hypernoise.evaluation.picture_sheet import HEAD, LABEL, PAD, RIGHT, TILE, WRONG, Example, Shown, picture_sheet
from hypernoise.evaluation.result_rows import empty_row, name_of


def row(method, forwards, score, steps=1, **more):
    costs = {"denoiser_forwards": forwards, "denoiser_backwards": 0, "reward": 2.0, "inference_steps": steps}
    span = None if score is None else [score - 0.05, score + 0.05]
    return {**empty_row(method), "score": score, "score_ci95": span, **costs, **more}


def test_the_interval_is_the_bootstraps_and_pairs_cancel_what_prompts_share():
    rng = np.random.default_rng(1)
    values, groups = rng.normal(size=400), np.zeros(400)
    low, high = interval(values, groups)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < grouped_mean(values, groups) < high
    shifted = values + 0.1
    assert interval(shifted - values, groups) == pytest.approx([0.1, 0.1])


def test_runs_are_resampled_with_prompts():
    """Two runs that differ by a constant: the interval spans what either alone would give."""
    rng = np.random.default_rng(1)
    values, groups = rng.normal(size=100), np.zeros(100)
    low, high = interval(np.stack([values, values + 1]), groups)
    assert low < values.mean() + 0.1
    assert high > values.mean() + 0.9
    alone = interval(values[None], groups)
    assert alone == interval(values, groups)


def test_groups_weigh_the_same_whatever_their_size():
    values, groups = np.array([1.0] * 8 + [0.0] * 2), np.array(["a"] * 8 + ["b"] * 2)
    assert grouped_mean(values, groups) == 0.5
    assert interval(values, groups) == [0.5, 0.5]  # no spread within a group
    assert interval(values[:9], groups[:9]) is None  # a group of one prompt


def test_a_prompt_counts_once_however_many_pictures_it_has():
    values = np.array([1.0, 2.0, 6.0, 4.0])
    assert means_of_groups(values, np.array(["b", "a", "b", "a"])) == {"b": 3.5, "a": 3.0}
    rng = np.random.default_rng(1)
    values = rng.normal(size=50)
    names = [f"prompt {i}" for i in range(50)]
    twice = means_of_groups(values.repeat(2), np.array([name for name in names for _ in range(2)]))
    assert interval(np.array(list(twice.values())), np.zeros(50)) == pytest.approx(interval(values, np.zeros(50)))


def test_the_table_leaves_out_what_no_row_has():
    rows = [row("plain", 1, 0.5), row("best-of-8", 8, 0.6, gain=0.1, gain_ci95=[0.05, 0.15])]
    results, *others = result_tables(rows)
    assert others == []
    head, first, second = as_text(results).splitlines()
    assert "validation" not in head
    assert "[+0.050, +0.150]" in second
    assert "+0.1" not in first
    assert len(first) == len(second) == len(head)
    categories = result_tables([row("plain", 1, 0.5, categories={"colors": 0.25}), rows[1]])[1]
    assert as_text(categories).split() == ["colors", "plain,", "1", "step", "0.250", "best-of-8,", "1", "step"]


def dots(chart, number):
    """Where a chart's dots of a colour are: (x, y) of their middle."""
    found = np.argwhere((np.asarray(chart)[: HEIGHT - 40, LEFT - 4 :] == COLORS[number]).all(-1))
    return found.mean(0)[::-1]


def test_costs_are_on_a_log_axis_and_scores_rise():
    assert charts_of([row("plain", 1, 0.5)]) == []
    (chart,) = charts_of([row("plain", 1, 0.5), row("worse", 10, 0.4), row("best", 100, 0.9)])
    places = [dots(chart, number) for number in range(3)]
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=1.5)
    assert places[2][1] < places[0][1] < places[1][1]  # down a picture is up the axis


def test_several_inference_steps_have_a_curve_each_and_intervals():
    rows = [row(name, 1, score, steps) for steps in (1, 4) for name, score in (("plain", 0.5), ("ours", 0.6))]
    assert [name_of(one) for one in rows[1:3]] == ["ours, 1 step", "plain, 4 steps"]
    _, curves = charts_of(rows)
    colors = {color for _, color in curves.getcolors(1 << 20)}
    assert {COLORS[0], COLORS[1]} <= colors
    bare = line_chart([Line("a", [(0, 1.0), (1, 2.0)])], title="")
    spanned = line_chart([Line("a", [(0, 1.0), (1, 2.0)], spans=[(0.5, 1.5), (1.5, 2.5)])], title="")
    assert (np.asarray(spanned) == COLORS[0]).all(-1).sum() > (np.asarray(bare) == COLORS[0]).all(-1).sum()


def test_strengths_have_curves_of_score_reward_and_kl():
    rows = [
        {**row(name, 1, score), "kl": kl}
        for name, score, kl in (
            ("plain", 0.5, 0.0), ("hypernoise@0.5", 0.6, 0.1), ("hypernoise", 0.7, 0.4), ("best", 0.9, 0.2)
        )
    ]  # fmt: skip
    fields = [field for field in ("score", "reward", "kl") if rows[0][field] is not None]
    assert len(charts_of(rows)) == 1 + len(fields)
    assert len(charts_of([one for one in rows if "@" not in one["method"]])) == 1
    unknown = [{**one, "kl": None if "@" in one["method"] else one["kl"]} for one in rows]
    assert len(charts_of(unknown)) == 1 + len(fields)


def test_without_a_judge_rewards_are_drawn_and_without_either_nothing():
    assert len(charts_of([row("plain", 1, None), row("reno", 99, None)])) == 1
    assert charts_of([row("plain", 1, None, reward=None), row("ours", 2, None, reward=None)]) == []


def test_each_name_takes_a_line_of_the_legend():
    few, many = (line_chart([Line("a long name", [(0, i), (1, i)]) for i in range(n)], title="") for n in (2, 12))
    assert many.height > few.height > HEIGHT
    colors = [color for _, color in many.getcolors(1 << 20)]
    assert set(COLORS) <= set(colors)


def test_a_sheet_has_a_row_per_method_a_column_per_prompt_and_frames(tmp_path):
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    examples = [
        Example("one", "all", [Shown("plain", red, True), Shown("reno", blue, True)]),
        Example("two", "all", [Shown("plain", blue, False), Shown("reno", red, True)]),
    ]
    sheet = picture_sheet(examples, "title")

    def middle(row, column):
        return sheet.getpixel((LABEL + column * (TILE + PAD) + TILE // 2, HEAD + row * (TILE + PAD) + TILE // 2))

    assert middle(0, 0) == middle(1, 1) == (255, 0, 0)
    assert middle(0, 1) == middle(1, 0) == (0, 0, 255)
    assert sheet.getpixel((LABEL, HEAD - 1)) == RIGHT
    assert sheet.getpixel((LABEL + TILE + PAD, HEAD - 1)) == WRONG
