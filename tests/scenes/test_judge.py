"""The judge against a world whose truth is known: drawn scenes, wrong captions, damaged pictures."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dev.scenes.drawing import Placed, Scene, draw, sample_scene
from hypernoise.evaluation.geneval.rules import directions
from hypernoise.scenes.judge import detect, judge
from hypernoise.scenes.world import CATEGORIES, COLORS, SHAPES, SIZE, Request, Thing, all_requests
from tests.scenes.accuracy import score

PICTURES = 2000
# Half width and half height in radii, worked out by hand from the shapes' definitions.
HALF = {
    "circle": (0.92, 0.92),
    "square": (0.8, 0.8),
    "triangle": (1.15 * 0.75**0.5, 1.15 * 0.75),
    "ring": (0.96, 0.96),
    "cross": (1.0, 1.0),
    "diamond": (0.8, 1.0),
}
REQUESTS = {category: all_requests(category) for category in CATEGORIES}
WORDS = {r.caption: np.array(r.caption.split() + [""] * 9)[:9] for some in REQUESTS.values() for r in some}


def satisfies(scene: Scene, request: Request) -> bool:
    """The truth, read from the scene and not from its pixels."""
    groups = []
    for thing in request.things:
        named = [o for o in scene.objects if o.shape == thing.shape and thing.color in (None, o.color)]
        if len(named) < thing.count or (request.category == "counting" and len(named) != thing.count):
            return False
        groups.append(named)
    if request.relation is None:
        return True
    boxes = [[(o.x, o.y, *(2 * o.radius * h for h in HALF[o.shape])) for o in group] for group in groups]
    return any(request.relation in directions(a, b, of_the_rest=True) for a in boxes[0] for b in boxes[1])


def another(request: Request, scene: Scene, nearest: bool, rng: np.random.Generator) -> Request:
    """A caption of the same category that the scene does not satisfy; `nearest`: one that differs in few words."""
    wrong = [r for r in REQUESTS[request.category] if not satisfies(scene, r)]
    if nearest:
        words = np.stack([WORDS[r.caption] for r in wrong])  # [requests, 9]
        different = (words != WORDS[request.caption]).sum(1)
        wrong = [wrong[i] for i in np.flatnonzero(different == different.min())]
    return wrong[rng.integers(len(wrong))]


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Request, Scene, np.ndarray]]:
    rng = np.random.default_rng(0)
    items = []
    for i in range(PICTURES):
        choices = REQUESTS[CATEGORIES[i % len(CATEGORIES)]]
        request = choices[rng.integers(len(choices))]
        scene = sample_scene(request, rng)
        items.append((request, scene, draw(scene)))
    return items


def show(*objects: Placed) -> np.ndarray:
    return draw(Scene(objects))


def stained(picture: np.ndarray, color: tuple[float, float, float], rows: slice, columns: slice) -> np.ndarray:
    picture = picture.copy()
    picture[rows, columns] = color
    return picture


RED_CIRCLE = Placed("circle", "red", 16.3, 16.6, 11.0)
BLUE_SQUARE = Placed("square", "blue", 46.2, 17.1, 11.0)


def test_truth_is_correct(drawn):
    result = score([(request, judge(picture, request)) for request, _, picture in drawn])
    print(result)
    assert set(result["categories"]) == set(CATEGORIES)
    assert min(result["categories"].values()) >= 0.99, result
    assert result["artefacts"] <= 0.01, result


@pytest.mark.parametrize("nearest", [False, True], ids=["any", "nearest"])
def test_a_different_caption_is_wrong(drawn, nearest):
    rng = np.random.default_rng(1)
    others = [(another(request, scene, nearest, rng), picture) for request, scene, picture in drawn]
    result = score([(request, judge(picture, request)) for request, picture in others])
    print(result)
    assert max(result["categories"].values()) <= 0.01, result


def test_found_objects_are_those_drawn(drawn):
    for request, scene, picture in drawn[:300]:
        found, _ = detect(picture)
        assert len(found) == len(scene.objects), request.caption
        for thing in scene.objects:
            near = min(found, key=lambda f: np.hypot(f.x - thing.x, f.y - thing.y))
            assert (near.shape, near.color) == (thing.shape, thing.color)
            assert np.hypot(near.x - thing.x, near.y - thing.y) < 0.35
            half_width, half_height = HALF[thing.shape]
            assert abs(near.width - 2 * half_width * thing.radius) < 2.1
            assert abs(near.height - 2 * half_height * thing.radius) < 2.1
            covered = (1 - draw(Scene((replace(thing, color="black"),), (1.0, 1.0, 1.0)))).sum() / (3 * 225 / 255)
            assert near.area == pytest.approx(covered, rel=0.15)  # whole pixels


@pytest.mark.parametrize("blur", [0.0, 0.7])
@pytest.mark.parametrize("ground", [(0.88, 0.9, 0.89), (1.0, 0.98, 1.0)])
def test_soft_edges_are_neither_artefacts_nor_another_colour(ground, blur):
    for shape in SHAPES:
        for color in COLORS:
            for shift in (0.0, 0.25, 0.5):
                picture = draw(Scene((Placed(shape, color, 31.5 + shift, 32.0 - shift, 9.0 + shift),), ground))
                found, artefacts = detect(gaussian_filter(picture, (blur, blur, 0)))
                assert [(f.shape, f.color) for f in found] == [(shape, color)]
                assert artefacts <= (0.02 if blur else 0), (shape, color, shift)


@pytest.mark.parametrize(
    ("sigma", "least", "most"), [(0.7, 0.95, 1.0), (1.0, 0.9, 1.0), (2.0, 0.1, 0.7), (4.0, 0.0, 0.15)]
)
def test_blur_degrades_the_score(drawn, sigma, least, most):
    blurred = [(request, gaussian_filter(picture, (sigma, sigma, 0))) for request, _, picture in drawn[:600]]
    result = score([(request, judge(picture, request)) for request, picture in blurred])
    print(result)
    assert least <= result["score"] <= most, result


@pytest.mark.parametrize(("sigma", "least", "most"), [(0.05, 0.98, 1.0), (0.1, 0.7, 0.99), (0.2, 0.0, 0.5)])
def test_noise_degrades_the_score(drawn, sigma, least, most):
    rng = np.random.default_rng(2)
    noisy = [
        (request, np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 1)) for request, _, picture in drawn[:600]
    ]
    result = score([(request, judge(picture, request)) for request, picture in noisy])
    print(result)
    assert least <= result["score"] <= most, result
    assert result["artefacts"] <= 0.02 or sigma > 0.05, result


@pytest.mark.parametrize(
    ("request_", "objects", "reason"),
    [
        (Request("single_object", (Thing("triangle"),)), (RED_CIRCLE,), "no triangle"),
        (Request("single_object", (Thing("circle"),)), (RED_CIRCLE, BLUE_SQUARE), ""),
        (Request("two_object", (Thing("circle"), Thing("ring"))), (RED_CIRCLE, BLUE_SQUARE), "no ring"),
        (Request("two_object", (Thing("square"), Thing("circle"))), (RED_CIRCLE, BLUE_SQUARE), ""),
        (
            Request("counting", (Thing("cross", count=2),)),
            tuple(Placed("cross", "green", x, y, 9.0) for x, y in ((14, 14), (14, 46), (46, 30))),
            "counted 3 crosses, asked 2",
        ),
        (
            Request("counting", (Thing("square", count=3),)),
            (BLUE_SQUARE, RED_CIRCLE),
            "counted 1 square, asked 3",
        ),
        (
            Request("counting", (Thing("square", count=2),)),
            (BLUE_SQUARE, Placed("square", "black", 46.0, 46.0, 10.0), RED_CIRCLE),
            "",
        ),
        (Request("colors", (Thing("square", "brown"),)), (BLUE_SQUARE,), "no brown square: the square is blue"),
        (
            Request("colors", (Thing("square", "red"),)),
            (BLUE_SQUARE, Placed("square", "black", 46.0, 46.0, 10.0), RED_CIRCLE),
            "no red square: the squares are blue and black",
        ),
        (Request("colors", (Thing("ring", "red"),)), (RED_CIRCLE,), "no ring"),
        (Request("colors", (Thing("square", "blue"),)), (BLUE_SQUARE, Placed("square", "red", 16, 46, 9.0)), ""),
        (
            Request("position", (Thing("square"), Thing("circle")), "left of"),
            (RED_CIRCLE, BLUE_SQUARE),
            "the square is right of the circle, asked left of",
        ),
        (
            Request("position", (Thing("circle"), Thing("square")), "below"),
            (RED_CIRCLE, Placed("square", "blue", 45.0, 46.0, 10.0)),
            "the circle is above and left of the square, asked below",
        ),
        (Request("position", (Thing("circle"), Thing("ring")), "below"), (RED_CIRCLE, BLUE_SQUARE), "no ring"),
        (
            Request("position", (Thing("circle"), Thing("square")), "below"),
            (RED_CIRCLE, BLUE_SQUARE, Placed("circle", "red", 46.0, 48.0, 10.0)),
            "",
        ),
        (
            Request("color_attr", (Thing("circle", "blue"), Thing("square", "red"))),
            (RED_CIRCLE, BLUE_SQUARE),
            "no blue circle: the circle is red",
        ),
        (
            Request("color_attr", (Thing("circle", "red"), Thing("square", "green"))),
            (RED_CIRCLE, BLUE_SQUARE),
            "no green square: the square is blue",
        ),
        (Request("color_attr", (Thing("square", "blue"), Thing("circle", "red"))), (RED_CIRCLE, BLUE_SQUARE), ""),
    ],
)
def test_reasons(request_, objects, reason):
    verdict = judge(show(*objects), request_)
    assert verdict.note == reason
    assert verdict.right == float(reason == "")


def test_a_shape_around_another_has_no_direction():
    picture = show(Placed("ring", "red", 32.0, 32.0, 28.0), Placed("circle", "blue", 32.0, 32.0, 10.0))
    request = Request("position", (Thing("ring"), Thing("circle")), "above")
    assert judge(picture, request).note == "no ring"  # 28 px is too large for this world
    picture = show(Placed("ring", "red", 32.0, 32.0, 18.0), Placed("circle", "blue", 32.0, 32.0, 7.0))
    assert judge(picture, request).note == "the ring is in the same place as the circle, asked above"


@pytest.mark.parametrize("shape", SHAPES)
def test_merged_shapes_of_one_colour_are_artefacts(shape):
    half_width = 11 * HALF[shape][0]
    pair = [Placed(shape, "green", 16 + step * 2 * (half_width - 1), 48.0, 11.0) for step in (0, 1)]
    picture = show(BLUE_SQUARE, *pair)
    found, artefacts = detect(picture)
    assert [f.shape for f in found] == ["square"]
    sizes = [(abs(show(*objects) - 0.95).max(-1) > 0.15).sum() for objects in (pair, [BLUE_SQUARE])]
    assert artefacts == pytest.approx(sizes[0] / sum(sizes), abs=0.02)


def test_touching_shapes_of_two_colours_are_separated():
    for color in COLORS:
        other = "blue" if color != "blue" else "black"
        touching = Placed("square", color, 21.5, 32.0, 12.5), Placed("square", other, 41.5, 32.0, 12.5)
        found, artefacts = detect(show(*touching))  # they share half of each pixel along 20 px
        assert {(f.shape, f.color) for f in found} == {("square", color), ("square", other)}
        assert artefacts <= 0.01, color


def test_a_spur_is_an_artefact():
    clean = show(Placed("square", "red", 26.0, 32.0, 15.0))
    picture = stained(clean, (0.86, 0.16, 0.16), slice(31, 33), slice(38, 52))
    found, artefacts = detect(picture)
    assert [(f.shape, f.color) for f in found] == [("square", "red")]
    assert found[0].width < 28
    assert artefacts == pytest.approx(2 * (14 - 1.5) / (24**2 + 28), abs=0.005)


@pytest.mark.parametrize(
    "color", [(0.55, 0.55, 0.55), (0.86, 0.16, 0.16), (0.95, 0.75, 0.75)], ids=["grey", "red", "pale"]
)
@pytest.mark.parametrize("side", [2, 5, 14])
def test_ground_stains_are_artefacts(color, side):
    clean = show(Placed("circle", "blue", 20.0, 20.0, 12.0))
    picture = stained(clean, color, slice(44, 44 + 3), slice(40, 40 + side))
    foreground = (clean.min(-1) < 0.75).sum()
    found, artefacts = detect(picture)
    assert [f.shape for f in found] == ["circle"]
    assert artefacts == pytest.approx(3 * side / (foreground + 3 * side), abs=0.01)


def test_a_stain_within_a_shape_is_an_artefact():
    clean = show(Placed("square", "red", 32.0, 32.0, 14.0))
    picture = stained(clean, (0.16, 0.35, 0.84), slice(30, 33), slice(30, 33))
    found, artefacts = detect(picture)
    assert [(f.shape, f.color) for f in found] == [("square", "red")]
    assert artefacts == pytest.approx(9 / (2 * 11.2) ** 2, abs=0.005)


HALVES = [(cut, shape) for shape in SHAPES for cut in ("left", "right", "top", "bottom")]
HALVES.remove(("bottom", "triangle"))  # the upper part of a triangle is a triangle


@pytest.mark.parametrize(("cut", "shape"), HALVES)
def test_half_shapes_are_artefacts(cut, shape):
    ground = 0.95
    whole = show(Placed(shape, "purple", 20.0, 20.0, 12.0))
    rows = {"top": slice(0, 20), "bottom": slice(20, 40)}.get(cut, slice(0, 64))
    columns = {"left": slice(0, 20), "right": slice(20, 40)}.get(cut, slice(0, 64))
    half = stained(whole, (ground,) * 3, rows, columns)
    circle = show(Placed("circle", "yellow", 48.0, 48.0, 10.0))
    picture = np.where((half < 0.9).any(-1, keepdims=True), half, circle)
    found, artefacts = detect(picture)
    assert [f.shape for f in found] == ["circle"]
    sizes = [(abs(p - ground).max(-1) > 0.15).sum() for p in (half, circle)]
    assert artefacts == pytest.approx(sizes[0] / sum(sizes), abs=0.03)


@pytest.mark.parametrize(
    ("rows", "columns", "color"),
    [
        (slice(16, 48), slice(26, 38), (0.86, 0.16, 0.16)),  # a bar
        (slice(20, 42), slice(20, 42), (0.55, 0.55, 0.55)),  # a grey square
        (slice(20, 42), slice(20, 42), (0.93, 0.60, 0.60)),  # a pale one
        (slice(29, 35), slice(29, 35), (0.86, 0.16, 0.16)),  # a square too small for this world
        (slice(0, 64), slice(0, 64), (0.86, 0.16, 0.16)),  # nothing but red
    ],
    ids=["bar", "grey", "pale", "small", "full"],
)
def test_unknown_things_are_artefacts(rows, columns, color):
    found, artefacts = detect(stained(show(), color, rows, columns))
    assert found == ()
    assert artefacts == 1.0


def test_an_empty_picture_has_no_artefacts():
    assert detect(show()) == ((), 0.0)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((SIZE, SIZE, 3), np.uint8), r"uint8"),
        (np.zeros((3, SIZE, SIZE), np.float32), r"\[3, 64, 64\]"),
        (np.full((SIZE, SIZE, 3), -1.0), r"-1 to -1"),
        (np.full((SIZE, SIZE, 3), np.nan), r"nan"),
    ],
)
def test_what_is_no_picture_is_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        detect(pixels)


def test_speed(drawn):
    taken = []
    for request, _, picture in drawn[:300]:
        start = time.process_time()
        judge(picture, request)
        taken.append(time.process_time() - start)
    milliseconds = 1e3 * float(np.median(taken))
    print(f"{milliseconds:.2f} ms per picture (median of {len(taken)})")
    assert milliseconds < 6
