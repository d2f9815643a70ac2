"""The pictures that the generator learns from satisfy their captions."""

import numpy as np

from dev.scenes.drawing import draw
from dev.scenes.layout import JITTER, LINES, taught_scene
from hypernoise.scenes.judge import judge
from hypernoise.scenes.prompts import evaluation_requests


def test_the_judge_finds_every_taught_scene_right():
    rng = np.random.default_rng(3)
    taught = [taught_scene(rng) for _ in range(150)]
    assert {request.category for request, _ in taught} == {request.category for request in evaluation_requests(1)}
    assert all(judge(draw(scene), request).right for request, scene in taught)


def test_objects_stand_on_the_grid_and_no_caption_is_an_evaluation_caption():
    rng = np.random.default_rng(4)
    held_out = {request.caption for request in evaluation_requests(50)}
    for _ in range(100):
        request, scene = taught_scene(rng)
        assert request.caption not in held_out
        for placed in scene.objects:
            for place in (placed.x, placed.y):
                assert min(abs(place - line) for line in LINES) <= JITTER
