import numpy as np
import pytest
import torch

from dev.scenes.drawing import draw, sample_scene
from hypernoise.errors import InputError
from hypernoise.evaluation.benchmarks import load_benchmark
from hypernoise.evaluation.engine import compare
from hypernoise.generators.base import Condition, Generator
from hypernoise.methods.best_of_n import Plain
from hypernoise.rewards.pixel import redness
from hypernoise.scenes.prompts import evaluation_requests
from hypernoise.scenes.world import CATEGORIES, all_requests

BY_CAPTION = {r.caption: r for c in CATEGORIES for r in all_requests(c)}


class Truth(Generator):
    """A generator that draws each caption right, or always the first one, and uses only the noise's sum."""

    name, noise_shape, device = "truth", (2, 2), torch.device("cpu")

    def __init__(self, right=True):
        self.right, self.module = right, torch.nn.Identity()  # whose calls are counted

    def describe(self):
        return {"name": self.name, "right": self.right}

    def encode(self, prompts):
        self.captions = prompts
        return Condition({"index": torch.arange(len(prompts))})

    def sample(self, noise, condition, *, num_inference_steps=1, seed=None):
        requests = [BY_CAPTION[c] for c in self.captions] if self.right else [BY_CAPTION["a ring"]] * len(noise)
        seeds = (1000 * noise.sum((1, 2)).abs()).long().tolist()
        scenes = [sample_scene(r, np.random.default_rng(s)) for r, s in zip(requests, seeds, strict=True)]
        return torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)


def judged(generator):
    asked = load_benchmark("scenes", 5)
    (row,) = compare(
        generator,
        [Plain()],
        asked.prompts,
        redness,
        num_images_per_prompt=2,
        judge=asked.load_judge("cpu"),
        categories=asked.categories,
    ).rows
    return row


def test_truth_scores_one_and_one_picture_for_all_does_not():
    right = judged(Truth())
    assert right["score"] >= 0.98
    assert right["artefacts"] < 0.02
    assert set(right["categories"]) == set(CATEGORIES)
    low, high = right["score_ci95"]
    assert low <= right["score"] <= high
    assert judged(Truth(right=False))["score"] < 0.3


def test_the_benchmark_names_its_captions_and_says_what_is_wrong():
    asked = load_benchmark("scenes", 2)
    assert asked.prompts == [request.caption for request in evaluation_requests(2)]
    assert asked.about["count"] == 12
    assert len(load_benchmark("scenes").prompts) == 300
    verdict = asked.load_judge("cpu")(np.full((64, 64, 3), 0.95, np.float32), asked.prompts[0])
    assert (verdict.right, verdict.note) == (0.0, f"no {asked.prompts[0].split()[-1]}")
    with pytest.raises(InputError, match="--prompts scenes takes no file"):
        load_benchmark("scenes:file")
