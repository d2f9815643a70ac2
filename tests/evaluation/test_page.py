"""The report: one file, its numbers, and its filter, which node runs, and Chromium where there is one."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from hypernoise.evaluation.benchmarks import first_of_each
from hypernoise.evaluation.page import TILE, charts_of, result_tables
from hypernoise.evaluation.page import page as rendered
from hypernoise.evaluation.picture_sheet import Example, Shown
from hypernoise.evaluation.result_rows import empty_row
from tests.evaluation.browser import CHROMIUM, Browser


class Page(HTMLParser):
    """Tags with their attributes, and all text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def row(method, steps, score, **more):
    interval = [score - 0.05, score + 0.05]
    categories = {"colors": score, "counting": score / 2}
    return {
        **empty_row(method),
        "inference_steps": steps,
        "denoiser_forwards": steps,
        "denoiser_backwards": 0,
        "score": score,
        "score_ci95": interval,
        "categories": categories,
        **more,
    }


ROWS = [
    row("plain", 1, 0.5, kl=0.0), row("hyper<noise>", 1, 0.625, gain=0.125, gain_ci95=[0.0625, 0.1875]),
    row("plain", 4, 0.55), row("hyper<noise>", 4, 0.6, seconds_per_image=0.25),
]  # fmt: skip


@pytest.fixture
def page(tmp_path):
    red, blue = tmp_path / "red.png", tmp_path / "blue.png"
    Image.new("RGB", (32, 64), "red").save(red)
    Image.new("RGB", (300, 300), "blue").save(blue)
    examples = [
        Example(
            'a "red" <circle>',
            "colors",
            [Shown("plain", red, False, "expected red & round"), Shown("ours", blue, True)],
        ),
        Example("two rings", "counting", [Shown("plain", red, True), Shown("ours", blue, True)]),
        Example("three rings", "counting", [Shown("plain", red, False), Shown("ours", blue, False)]),
    ]
    return rendered("A <report>", {"detector": "a & b"}, result_tables(ROWS), charts_of(ROWS), examples)


def test_the_file_needs_nothing_else(page):
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "http" not in re.sub(r'"data:[^"]+"', "", page).replace("http-equiv", "")
    policy = next(meta["content"] for meta in parsed.all("meta") if "content" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_numbers_intervals_and_names_are_there_escaped(page):
    text = Page(page).text
    for shown in ("A <report>", "a & b", "hyper<noise>, 1 step", "plain, 4 steps", "0.625", "[+0.062, +0.188]", "0.25",
                 "[0.575, 0.675]", 'a "red" <circle>', "expected red & round"):  # fmt: skip
        assert shown in text, shown
    assert "validation" not in text  # no row has it
    assert "<noise>" not in page
    assert "<circle>" not in page


def test_bars_are_to_scale_and_charts_are_inside(page):
    widths = [float(value) for value in re.findall(r'<i style="width:([\d.]+)%', page)]
    assert widths == pytest.approx([60 * v for r in (1, 2) for v in (0.5 / r, 0.625 / r, 0.55 / r, 0.6 / r)], abs=0.01)
    charts = [image["src"] for image in Page(page).all("img") if image["alt"] == "chart"]
    assert len(charts) == 2
    assert all(chart.startswith("data:image/png;base64,") for chart in charts)


def test_pictures_are_inside_small_and_whole(page):
    images = [image for image in Page(page).all("img") if image["alt"] != "chart"]
    assert len(images) == 6
    sizes = set()
    for image in images:
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        opened = Image.open(io.BytesIO(base64.b64decode(data)))
        sizes.add(opened.size)
    assert sizes == {(TILE // 2, TILE), (TILE, TILE)}
    assert [figure["class"] for figure in Page(page).all("figure")] == ["wrong", "right"] + ["right"] * 2 + [
        "wrong"
    ] * 2


def test_without_verdicts_only_the_category_is_picked(tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    rows = [empty_row("plain") | {"reward": 1.0}]
    text = rendered("a", {}, result_tables(rows), [], [Example("one", "all", [Shown("plain", picture)])])
    assert [select["id"] for select in Page(text).all("select")] == ["category"]
    assert "By category" not in text


CASES = [  # picked, and which of the three examples are shown
    ({}, [1, 1, 1]),
    ({"category": "counting"}, [0, 1, 1]),
    ({"verdict": "right"}, [1, 1, 0]),
    ({"verdict": "wrong"}, [1, 0, 1]),
    ({"verdict": "differ"}, [1, 0, 0]),
    ({"verdict": "right", "method": "plain"}, [0, 1, 0]),
    ({"verdict": "wrong", "method": "ours"}, [0, 0, 1]),
    ({"verdict": "wrong", "category": "colors"}, [1, 0, 0]),
]


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_filter(page):
    """The page's own function, on verdicts as the page's elements carry them."""
    sections, figures = Page(page).all("section"), Page(page).all("figure")
    given = [
        {"category": section["data-category"],
         "verdicts": [{"kind": f["class"], "method": f["data-method"]} for f in figures[2 * i : 2 * i + 2]]}
        for i, section in enumerate(sections)
    ]  # fmt: skip
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    code = f"{script}\nconst e = {json.dumps(given)}, c = {json.dumps([picked for picked, _ in CASES])};\n"
    code += "console.log(JSON.stringify(c.map(p => e.map(x => +matches(x, p)))))"
    output = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(output) == [shown for _, shown in CASES]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_person_filters_it_in_a_browser(page, tmp_path):
    """Opened as a file and used by the keyboard: what is visible, and that it sends no request."""
    (tmp_path / "report.html").write_text(page)
    visible = '[...document.querySelectorAll("section")].map(s => +(s.getBoundingClientRect().height > 0))'
    with Browser(tmp_path / "report.html", tmp_path) as browser:
        for picked, shown in CASES:
            for name in ("category", "verdict", "method"):
                offered = browser.run(f"[...document.getElementById('{name}').options].map(o => o.value)")
                browser.choose(name, offered.index(picked.get(name, "")))
            assert browser.run(visible) == shown, picked
            assert browser.run('document.getElementById("count").textContent') == f"{sum(shown)} of 3 prompts"
        assert browser.run("[...document.images].map(i => i.naturalWidth > 0)") == [True] * 8
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")  # nothing juts out sideways
        picture = Image.open(io.BytesIO(browser.screenshot()))
        assert {(255, 0, 0), (0, 0, 255)} <= {color for _, color in colors(picture)}
        assert {address.partition(":")[0] for address in browser.asked_for} <= {"file", "data"}
        assert browser.asked_for[0].startswith("file:")


def colors(picture):
    """Of a screenshot, to the nearest 51: (how often, colour)."""
    return picture.convert("RGB").point(lambda level: round(level / 51) * 51).getcolors(1 << 24)


def test_the_first_of_each_category_are_shown():
    assert first_of_each(["a", "a", "b", "a", "b", "c"], 2) == [0, 1, 2, 4, 5]
