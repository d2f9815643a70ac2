import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from hypernoise.evaluation.bootstrap import grouped_mean, interval
from hypernoise.evaluation.report import contact_sheet, pareto_front, pareto_svg, table


def row(method, forwards, score, **more):
    empty = dict.fromkeys(
        ["gain", "gain_ci95", "reward_gain", "reward_gain_ci95", "watched_reward", "artefacts", "diversity", "kl"]
    )
    costs = {"denoiser_forwards": forwards, "denoiser_backwards": 0, "decodes": 1, "reward_calls": 0}
    interval = None if score is None else [score - 0.05, score + 0.05]
    return {
        "method": method, "steps": 1, "score": score, "score_ci95": interval, "reward": 2.0, "seconds_per_image": 0.01,
        **empty, **costs, **more,
    }  # fmt: skip


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


def test_the_front_is_what_nothing_cheaper_equals():
    assert pareto_front([(1, 0.5), (8, 0.6), (2, 0.7), (99, 0.7), (50, 0.9)]) == [0, 2, 4]
    assert pareto_front([(1, 0.5), (1, 0.6)]) == [1]


def test_the_table_leaves_out_what_no_row_has():
    text = table([row("plain", 1, 0.5), row("best-of-8", 8, 0.6, gain=0.1, gain_ci95=[0.05, 0.15])])
    head, first, second = text.splitlines()
    assert "watched" not in head
    assert "[+0.050, +0.150]" in second
    assert "+0.1" not in first
    assert len(first) == len(second) == len(head)


def test_the_plot_is_valid_and_places_points_by_their_calls():
    svg = pareto_svg([row("plain", 1, 0.5), row("a<b", 10, 0.6), row("best", 100, 0.9)])
    ElementTree.fromstring(svg)
    assert "a&lt;b" in svg
    x = [float(value) for value in re.findall(r'<circle cx="([\d.]+)"', svg)]
    y = [float(value) for value in re.findall(r'cy="([\d.]+)"', svg)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)  # a log axis
    assert y[0] > y[1] > y[2]


def test_without_a_judge_the_plot_shows_the_reward():
    svg = pareto_svg([row("plain", 1, None), row("reno", 99, None)])
    assert "reward over denoiser calls" in svg


def test_the_sheet_has_a_row_per_prompt_and_a_column_per_method(tmp_path):
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{name}.png")
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    sheet = contact_sheet(["one", "two"], [("plain", [red, blue]), ("reno", [blue, red])], "title")
    first, last = sheet.getpixel((150 + 64, 30 + 64)), sheet.getpixel((150 + 134 + 64, 30 + 134 + 64))
    assert first == last == (255, 0, 0)
    assert sheet.getpixel((150 + 134 + 64, 30 + 64)) == (0, 0, 255)
