import numpy as np
import pytest

from dev.scenes.drawing import draw, sample_scene
from hypernoise.scenes.judge import judge
from hypernoise.scenes.prompts import ScenesRewriter, evaluation_requests
from hypernoise.scenes.world import Request, Thing


def test_turned_round_first_then_colours():
    rewrite = ScenesRewriter()
    wordings = rewrite("a ring left of a square", 7)
    assert wordings[0] == "a square right of a ring"
    assert len(set(wordings)) == 7
    assert all("ring" in text and "square" in text for text in wordings)
    assert rewrite("a ring left of a square", 3) == wordings[:3]
    assert rewrite("a red ring and a blue square", 7) == ["a blue square and a red ring"]
    assert rewrite("a red ring", 7) == []
    assert rewrite("a dog", 7) == []
    assert len(rewrite("three rings", 20)) == 8  # one per colour
    assert "three red rings" in rewrite("three rings", 20)


@pytest.mark.parametrize("category", ["single_object", "two_object", "counting", "position", "color_attr"])
def test_a_true_picture_of_a_rewrite_is_right_for_the_prompt(category):
    """A true picture of the rewritten request, judged by the original."""
    rng = np.random.default_rng(0)
    request = next(r for r in evaluation_requests(1) if r.category == category)
    wordings = ScenesRewriter()(request.caption, 5)
    assert wordings
    for text in wordings:
        scene = sample_scene(_parsed(text, request), rng)
        assert judge(draw(scene), request).right, (request.caption, text)


def _parsed(text, like):
    """The request that a wording names, read from its words."""
    relation = next((r for r in ("left of", "right of", "above", "below") if f" {r} " in text), None)
    numbers = {"two": 2, "three": 3, "four": 4}
    things = []
    for part in text.split(f" {relation or 'and'} "):
        first, *words = part.split()
        count = numbers.get(first, 1)
        shape = words[-1] if count == 1 else {"crosses": "cross"}.get(words[-1], words[-1].removesuffix("s"))
        things.append(Thing(shape, words[0] if len(words) > 1 else None, count))
    request = Request(like.category, tuple(things), relation)
    assert request.caption == text
    return request
