"""The scenes world: its captions, and that pictures show what their captions say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dev.scenes.drawing import GAP, Placed, Scene, draw, sample_scene
from hypernoise.evaluation.geneval.rules import directions
from hypernoise.scenes.world import (
    CATEGORIES,
    COLORS,
    RADII,
    RELATIONS,
    SHAPES,
    SIZE,
    Request,
    Thing,
    all_requests,
)

COUNTS = {"single_object": 6, "two_object": 30, "counting": 18, "colors": 48, "position": 120, "color_attr": 1680}


@pytest.mark.parametrize(
    ("request_", "caption"),
    [
        (Request("single_object", (Thing("ring"),)), "a ring"),
        (Request("two_object", (Thing("cross"), Thing("square"))), "a cross and a square"),
        (Request("counting", (Thing("cross", count=2),)), "two crosses"),
        (Request("counting", (Thing("diamond", count=4),)), "four diamonds"),
        (Request("colors", (Thing("triangle", "orange"),)), "an orange triangle"),
        (Request("position", (Thing("circle"), Thing("ring")), "left of"), "a circle left of a ring"),
        (Request("position", (Thing("ring"), Thing("cross")), "above"), "a ring above a cross"),
        (
            Request("color_attr", (Thing("circle", "black"), Thing("cross", "orange"))),
            "a black circle and an orange cross",
        ),
    ],
)
def test_captions(request_, caption):
    assert request_.caption == caption
    assert request_ in all_requests(request_.category)


def test_every_caption_is_grammatical_and_unique():
    shape, color = "|".join(SHAPES), "|".join(COLORS)
    one = rf"(an (?=[aeiou])|a (?![aeiou]))(({color}) )?({shape})"
    many = r"(two|three|four) (circles|squares|triangles|rings|crosses|diamonds)"
    grammar = re.compile(rf"{many}|{one}( (and|{'|'.join(RELATIONS)}) {one})?")
    requests = {category: all_requests(category) for category in CATEGORIES}
    assert {category: len(some) for category, some in requests.items()} == COUNTS
    captions = {category: [r.caption for r in some] for category, some in requests.items()}
    for category, some in captions.items():
        assert len(set(some)) == len(some), category
        assert not [c for c in some if not grammar.fullmatch(c)], category


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((10, 32, 10, 10), (50, 32, 10, 10), {"left of"}),
        ((50, 32, 10, 10), (10, 32, 10, 10), {"right of"}),
        ((32, 10, 10, 10), (32, 50, 10, 10), {"above"}),
        ((32, 50, 10, 10), (32, 10, 10, 10), {"below"}),
        ((10, 10, 10, 10), (50, 50, 10, 10), {"left of", "above"}),
        ((30, 30, 10, 10), (31.9, 28.1, 10, 10), set()),  # within a tenth of the summed sizes, 2 px
        ((30, 30, 10, 10), (33, 30, 10, 10), {"left of"}),
        # shrunk by 2 px the offset is (-20, -11.4): 30 degrees off the axis, where the second direction begins
        ((10, 10, 10, 10), (32, 23.4, 10, 10), {"left of"}),
        ((10, 10, 10, 10), (32, 23.7, 10, 10), {"left of", "above"}),
        ((10, 10, 10, 10), (23.4, 32, 10, 10), {"above"}),
        ((32, 32, 10, 10), (18.6, 10, 10, 10), {"below"}),
        ((32, 32, 10, 10), (10, 18.6, 10, 10), {"right of"}),
    ],
)
def test_relations_are_genevals(a, b, expected):
    assert directions(a, b, of_the_rest=True) == expected


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_scene_shows_its_request_and_nothing_else(category):
    rng = np.random.default_rng(0)
    requests = all_requests(category)
    for _ in range(100):
        request = requests[rng.integers(len(requests))]
        objects = sample_scene(request, rng).objects
        assert [o.shape for o in objects] == [t.shape for t in request.things for _ in range(t.count)]
        for thing in request.things:
            colors = {o.color for o in objects if o.shape == thing.shape}
            assert len(colors) == 1
            assert thing.color is None or colors == {thing.color}
        low, high = RADII[len(objects)]
        assert all(low <= o.radius <= high for o in objects)
        for i, a in enumerate(objects):
            assert a.radius + 1 <= a.x <= SIZE - a.radius - 1
            assert a.radius + 1 <= a.y <= SIZE - a.radius - 1
            for b in objects[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP
        if request.relation is not None:
            a, b = objects
            sizes = [2 * a.radius] * 2, [2 * b.radius] * 2
            held = directions((a.x, a.y, *sizes[0]), (b.x, b.y, *sizes[1]), of_the_rest=True)
            assert held == {request.relation}


def test_colours_left_free_are_all_used():
    rng = np.random.default_rng(1)
    request = Request("two_object", (Thing("ring"), Thing("cross")))
    pairs = [tuple(o.color for o in sample_scene(request, rng).objects) for _ in range(300)]
    assert {a for a, _ in pairs} == {b for _, b in pairs} == set(COLORS)
    assert all(a != b for a, b in pairs)


def test_pixels_are_floats_in_range():
    rng = np.random.default_rng(2)
    for category in CATEGORIES:
        request = all_requests(category)[-1]
        picture = draw(sample_scene(request, rng))
        assert picture.shape == (SIZE, SIZE, 3)
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        assert picture[0, 0].min() >= 0.88  # a light ground, up to the corners


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_cut_off_by_the_border(shape):
    """A shape as far in a corner as it may be drawn keeps its whole area."""
    radius, least = 10.3, 11.3
    middle, *corners = (
        (1 - draw(Scene((Placed(shape, "black", p, p, radius),), (1.0, 1.0, 1.0)))).sum()
        for p in (least + 21, least, SIZE - least)
    )
    assert corners == pytest.approx([middle] * 2, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_are_pixels(shape):
    """Each side's distance grows by one per pixel, so that edges are soft over one pixel and no more."""
    y, x = (np.mgrid[:640, :640] - 319.5) / 10
    distance = SHAPES[shape](x, y, 14.0)
    slope = 10 * np.hypot(*np.gradient(distance))
    near_outline = np.abs(distance) < 1
    assert np.median(slope[near_outline]) == pytest.approx(1, abs=0.01)


# Closed forms of the areas, in radii squared.
AREAS = {
    "circle": np.pi * 0.92**2,
    "square": 1.6**2,
    "triangle": 0.75 * 3**0.5 * 1.15**2,
    "ring": np.pi * (0.96**2 - 0.54**2),
    "cross": 2 * 2 * 0.6 - 0.6**2,
    "diamond": 2 * 0.8 * 1.0,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_areas_and_colours(shape):
    for color, rgb in COLORS.items():
        picture = draw(Scene((Placed(shape, color, 32.2, 31.7, 14.0),), (1.0, 1.0, 1.0)))
        inked = (1 - picture).reshape(-1, 3).sum(0)
        expected = AREAS[shape] * 14.0**2 * (1 - np.array(rgb) / 255)
        np.testing.assert_allclose(inked, expected, rtol=0.02)


def test_a_seed_fixes_the_scene_and_its_pixels():
    request = all_requests("position")[7]
    first, again, other = (sample_scene(request, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    np.testing.assert_array_equal(draw(first), draw(again))
