import numpy as np
import pytest
from scipy import stats

from hypernoise.scenes.coupling import CELLS, CHANNELS, couple, read_fields, read_means
from hypernoise.scenes.judge import judge
from hypernoise.scenes.world import CATEGORIES, COLORS, SIZE, Request, Thing, all_requests, draw


def noises(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, CHANNELS, CELLS, CELLS))


def test_channel_means_are_independent_standard_normals():
    means = np.stack([read_means(z) for z in noises(4000)])
    assert all(stats.kstest(means[:, c], "norm").pvalue > 1e-4 for c in range(CHANNELS))
    correlation = np.corrcoef(means.T) - np.eye(CHANNELS)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_fields_have_unit_variance_inside():
    fields = np.stack([read_fields(z) for z in noises(4000)])
    assert fields[:, :, 2:6, 2:6].var() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_coupled_scene_is_what_was_asked(category):
    rng = np.random.default_rng(0)
    requests = all_requests(category)
    for z in noises(25):
        request = requests[rng.integers(len(requests))]
        verdict = judge(draw(couple(request, z, rng)), request)
        assert verdict.correct, (request.caption, verdict.reason)


def test_the_noise_alone_decides_sizes_colors_and_ground():
    request = Request("two_object", (Thing("ring"), Thing("square")))
    for z in noises(5):
        first, second = (couple(request, z, np.random.default_rng(seed)) for seed in (1, 2))
        assert first.ground == second.ground
        for a, b in zip(first.objects, second.objects, strict=True):
            assert (a.shape, a.color, a.radius) == (b.shape, b.color, b.radius)


def test_free_colors_and_sizes_are_uniform():
    request = Request("single_object", (Thing("ring"),))
    scenes = [couple(request, z, np.random.default_rng(0)) for z in noises(1500)]
    counts = [sum(s.objects[0].color == c for s in scenes) for c in COLORS]
    assert stats.chisquare(counts).pvalue > 1e-4
    radii = np.array([s.objects[0].radius for s in scenes])
    assert stats.kstest((radii - 10) / 5, "uniform").pvalue > 1e-4


def test_an_object_goes_where_its_field_is_high():
    request = Request("colors", (Thing("circle", "red"),))
    z = noises(1)[0] * 0.1
    z[[0, 4, 8, 12], 2:4, 5:7] += 2.0  # the channels that the first object's field mixes, up and to the right
    placed = couple(request, z, np.random.default_rng(0)).objects[0]
    assert placed.x == pytest.approx(6 / 8 * SIZE, abs=5)
    assert placed.y == pytest.approx(3 / 8 * SIZE, abs=5)
