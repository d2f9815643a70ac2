"""An answer is held to the scene that it all but draws, and no colour is taken by all."""

import numpy as np
import pytest
import torch

from hypernoise.scenes.coupling import CELLS, CHANNELS, couple
from hypernoise.scenes.settling import PALETTE, STEP, Settling
from hypernoise.scenes.world import COLORS, SHAPES, Placed, Request, Scene, Thing, draw

NAMES = list(COLORS)


def noise_of(seed):
    return np.random.default_rng(seed).standard_normal((CHANNELS, CELLS, CELLS)).astype(np.float32)


def recolored(scene, *colors):
    parts = zip(scene.objects, colors, strict=True)
    return Scene(tuple(Placed(o.shape, c, o.x, o.y, o.radius) for o, c in parts), scene.ground)


def mixed(scene, one, other, share):
    return (1 - share) * draw(recolored(scene, *one)) + share * draw(recolored(scene, *other))


@pytest.mark.parametrize(("share", "taken"), [(0.45, ("orange", "blue")), (0.55, ("yellow", "purple"))])
def test_of_a_blend_the_nearer_colors_are_taken(share, taken):
    request = Request("two_object", (Thing("ring"), Thing("square")))
    noise = noise_of(0)
    scene = couple(request, noise)
    picture = mixed(scene, ("orange", "blue"), ("yellow", "purple"), share)
    assert Settling(0).choose(request, noise, scene, picture) == recolored(scene, *taken)


def test_a_colour_far_behind_in_the_noise_is_not_taken():
    request = Request("single_object", (Thing("circle"),))
    noise = noise_of(1)
    scene = couple(request, noise)
    mean = noise.mean((1, 2))[-8:] * CELLS
    order = np.argsort(-mean)
    own, next_one = NAMES[order[0]], NAMES[order[1]]
    assert scene.objects[0].color == own
    apart = np.linalg.norm(PALETTE[order[0]] - PALETTE[order[1]])
    least = apart / (mean[order[0]] - mean[order[1]])  # where the price of being behind is the whole distance
    picture = draw(recolored(scene, next_one))
    assert Settling(0.95 * least).choose(request, noise, scene, picture).objects[0].color == next_one
    assert Settling(1.05 * least).choose(request, noise, scene, picture).objects[0].color == own


def test_colors_asked_for_stay_and_a_count_shares_one():
    asked = Request("color_attr", (Thing("ring", "red"), Thing("square", "blue")))
    scene = couple(asked, noise_of(2))
    assert Settling(0).choose(asked, noise_of(2), scene, draw(recolored(scene, "black", "black"))) == scene
    three = Request("counting", (Thing("cross", count=3),))
    scene = couple(three, noise_of(3))
    picture = draw(recolored(scene, "green", "green", "purple"))
    assert {o.color for o in Settling(0).choose(three, noise_of(3), scene, picture).objects} == {"green"}


def test_two_free_colors_differ():
    request = Request("position", (Thing("ring"), Thing("square")), "above")
    scene = couple(request, noise_of(4))
    chosen = Settling(0).choose(request, noise_of(4), scene, draw(recolored(scene, "yellow", "yellow")))
    assert sorted({o.color for o in chosen.objects} - {"yellow"}) == ["orange"]  # the nearest to yellow


def test_prices_give_every_color_its_share_of_a_generator_that_draws_one():
    """Pictures that lean to yellow, however little, would all be held to it; at a price they are shared out."""
    request = Request("single_object", (Thing("circle"),))
    free, priced = Settling(0), Settling(0)
    taken = {"free": [], "priced": []}
    for seed in range(600):
        noise = noise_of(seed)
        scene = couple(request, noise)
        picture = mixed(scene, [scene.objects[0].color], ["yellow"], 0.85)
        free.prices.zero_()
        taken["free"].append(free.choose(request, noise, scene, picture).objects[0].color)
        taken["priced"].append(priced.choose(request, noise, scene, picture).objects[0].color)
    assert set(taken["free"]) == {"yellow"}
    shares = np.array([taken["priced"][100:].count(color) for color in COLORS]) / 500
    assert shares.min() > 0.08
    assert shares.max() < 0.17
    same = [color == couple(request, noise_of(i)).objects[0].color for i, color in enumerate(taken["priced"])]
    assert np.mean(same[100:]) > 0.4  # and which of them is still the noise's to say: one in eight by chance


def test_a_price_moves_for_the_shape_and_place_it_was_taken_in_alone():
    settling = Settling(0)
    request = Request("two_object", (Thing("ring"), Thing("square")))
    scene = couple(request, noise_of(5))
    settling.choose(request, noise_of(5), scene, draw(recolored(scene, "red", "blue")))
    moved = settling.prices.nonzero()[:, :2].unique(dim=0).tolist()
    shapes = list(SHAPES)
    assert moved == sorted([[shapes.index("ring"), 0], [shapes.index("square"), 1]])
    assert settling.prices.sum().abs() < 1e-6
    assert settling.prices[shapes.index("ring"), 0, NAMES.index("red")] == pytest.approx(STEP * 7 / 8)
    assert torch.equal(settling.state_dict()["prices"], settling.prices)  # saved, and so resumed, with the training
