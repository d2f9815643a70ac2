import numpy as np
import pytest
import torch
from scipy import stats

from hypernoise.scenes.coupling import CELLS, CHANNELS, EDGE, couple, extremes, readings
from hypernoise.scenes.judge import judge
from hypernoise.scenes.world import CATEGORIES, COLORS, GAP, SIZE, Request, Thing, all_requests, draw


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
def test_the_coupled_scene_is_what_was_asked(category):
    rng = np.random.default_rng(0)
    requests = all_requests(category)
    for z in noises(40):
        request = requests[rng.integers(len(requests))]
        scene = couple(request, z)
        verdict = judge(draw(scene), request)
        assert verdict.correct, (request.caption, verdict.reason)
        for i, a in enumerate(scene.objects):
            assert a.radius + EDGE - 1e-6 <= min(a.x, a.y)
            assert max(a.x, a.y) <= SIZE - EDGE - a.radius + 1e-6
            for b in scene.objects[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 1e-6


def test_free_colors_sizes_and_places_are_uniform():
    scenes = [couple(Request("single_object", (Thing("ring"),)), z) for z in noises(1500)]
    placed = [scene.objects[0] for scene in scenes]
    assert stats.chisquare([sum(p.color == c for p in placed) for c in COLORS]).pvalue > 1e-4
    radii = np.array([p.radius for p in placed])
    assert stats.kstest((radii - 10) / 5, "uniform").pvalue > 1e-4
    across = np.array([(p.x - p.radius - EDGE) / (SIZE - 2 * p.radius - 2 * EDGE) for p in placed])
    assert stats.kstest(across, "uniform").pvalue > 1e-4


def test_two_free_colors_differ_and_a_count_shares_one():
    for z in noises(50):
        two = couple(Request("two_object", (Thing("ring"), Thing("square"))), z)
        assert len({o.color for o in two.objects}) == 2
        four = couple(Request("counting", (Thing("ring", count=4),)), z)
        assert len({o.color for o in four.objects}) == 1


def test_free_colors_are_those_of_the_greatest_and_the_least_mean():
    z = noises(1)[0]
    z[8:] += np.linspace(-1, 1, 8)[:, None, None]  # far beyond what is there by chance
    z[:8] *= 9  # which do not count
    names = list(COLORS)
    two = couple(Request("two_object", (Thing("ring"), Thing("square"))), z)
    assert [o.color for o in two.objects] == [names[7], names[0]]
    asked = couple(Request("colors", (Thing("ring", "green"),)), z)
    assert asked.objects[0].color == "green"
    means = torch.from_numpy(noises(20)).mean((2, 3))
    assert all(
        torch.equal(a, torch.from_numpy(b)) for a, b in zip(extremes(means), extremes(means.numpy()), strict=True)
    )


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
