import numpy as np
import pytest
from scipy import stats

from hypernoise.scenes.coupling import CELLS, CHANNELS, EDGE, FORGETFUL, TYPICAL, couple, forgets, readings
from hypernoise.scenes.judge import judge
from hypernoise.scenes.world import CATEGORIES, COLORS, GAP, SHAPES, SIZE, Request, Thing, all_requests, draw


def noises(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, CELLS, CELLS))


def test_readings_are_independent_standard_normals():
    read = np.stack([np.concatenate(readings(z)) for z in noises(4000)])  # [noises, 48]
    assert all(stats.kstest(read[:, c], "norm").pvalue > 1e-4 for c in range(3 * CHANNELS))
    correlation = np.corrcoef(read.T) - np.eye(3 * CHANNELS)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_leans_have_their_sign():
    right_up = np.zeros((CHANNELS, CELLS, CELLS))
    right_up[3, :2, 6:] = 1.0
    mean, right, down = readings(right_up)
    assert mean[3] > 0
    assert right[3] > 0 > down[3]
    assert np.count_nonzero(right) == 1


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_coupled_scene_is_what_was_asked_unless_the_noise_forgets_an_object(category):
    rng = np.random.default_rng(0)
    requests = all_requests(category)
    for z in noises(40):
        request = requests[rng.integers(len(requests))]
        scene = couple(request, z)
        verdict = judge(draw(scene), request)
        assert verdict.correct != forgets(request, z), (request.caption, verdict.reason)
        for i, a in enumerate(scene.objects):
            assert a.radius + EDGE - 1e-6 <= min(a.x, a.y)
            assert max(a.x, a.y) <= SIZE - EDGE - a.radius + 1e-6
            for b in scene.objects[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 1e-6


def test_sizes_and_places_are_uniform():
    request = Request("single_object", (Thing("ring"),))
    placed = [couple(request, z).objects[0] for z in noises(2000) if not forgets(request, z)]
    radii = np.array([p.radius for p in placed])
    assert stats.kstest((radii - 10) / 5, "uniform").pvalue > 1e-4
    across = np.array([(p.x - p.radius - EDGE) / (SIZE - 2 * p.radius - 2 * EDGE) for p in placed])
    assert stats.kstest(across, "uniform").pvalue > 1e-4


def test_a_shape_whose_color_nobody_asks_for_has_its_typical_one():
    assert set(TYPICAL) == set(SHAPES)
    assert set(TYPICAL.values()) < set(COLORS)
    assert len(set(TYPICAL.values())) == len(SHAPES)
    for z in noises(20):
        for request in all_requests("two_object") + all_requests("counting"):
            assert all(o.color == TYPICAL[o.shape] for o in couple(request, z).objects)
        asked = couple(Request("colors", (Thing("ring", "green"),)), z)
        assert all(o.color == "green" for o in asked.objects)


def test_a_share_of_the_noises_forgets_the_last_object_by_the_reading_of_their_kind_of_caption():
    drawn = noises(3000)
    mean = np.stack([readings(z)[0] for z in drawn])
    ring, square = Thing("ring"), Thing("square")
    kinds = [
        (8, Request("single_object", (ring,))),
        (8, Request("colors", (Thing("ring", "red"),))),
        (9, Request("two_object", (ring, square))),
        (9, Request("position", (ring, square), "above")),
        (10, Request("counting", (Thing("ring", count=3),))),
    ]
    for channel, request in kinds:
        wrong = np.array([forgets(request, z) for z in drawn])
        assert abs(wrong.mean() - FORGETFUL) < 0.03
        assert mean[wrong, channel].max() < mean[~wrong, channel].min()
        z = drawn[wrong.argmax()].copy()
        some = couple(request, z).objects
        z[channel] += 1  # far over the border
        *rest, last = couple(request, z).objects
        assert tuple(rest) == some
        assert last.shape == request.things[-1].shape


def test_noise_that_leans_right_and_down_puts_its_object_there():
    request = Request("colors", (Thing("circle", "red"),))
    leaning = np.zeros((CHANNELS, CELLS, CELLS))
    leaning[0] = 0.2 * (np.arange(8)[:, None] + np.arange(8) - 7)
    placed = couple(request, leaning).objects[0]
    assert placed.x == placed.y > 0.7 * SIZE
    middle = couple(request, np.zeros((CHANNELS, CELLS, CELLS))).objects[0]
    assert (middle.x, middle.y) == (SIZE / 2, SIZE / 2)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_small_change_of_noise_is_a_small_change_of_layout(category):
    """But where an object that just touches another is pushed off it, by a pixel at most."""
    rng = np.random.default_rng(0)
    requests, moved = all_requests(category), []
    for z in noises(60):
        request = requests[rng.integers(len(requests))]
        before, after = couple(request, z), couple(request, z + 1e-6)
        moved += [
            abs(a.x - b.x) + abs(a.y - b.y) + abs(a.radius - b.radius)
            for a, b in zip(before.objects, after.objects, strict=True)
        ]
    assert np.median(moved) < 1e-4
    assert max(moved) < 1.5
