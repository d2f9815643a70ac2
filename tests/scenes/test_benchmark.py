import numpy as np
import pytest
import torch

from hypernoise.evaluation.picture_sheet import before_after
from hypernoise.generators.base import Condition
from hypernoise.noise.residual import ResidualNoise
from hypernoise.rewards.pixel import redness
from hypernoise.scenes.benchmark import evaluate
from hypernoise.scenes.prompts import evaluation_requests
from hypernoise.scenes.world import CATEGORIES, all_requests, draw, sample_scene

BY_CAPTION = {r.caption: r for c in CATEGORIES for r in all_requests(c)}


class Truth:
    """A generator that draws each caption right, or always the first one, reading nothing but a noise's sum."""

    name, noise_shape, device = "truth", (2, 2), torch.device("cpu")

    def __init__(self, right=True):
        self.right = right

    def encode(self, prompts):
        self.captions = prompts
        return Condition({"index": torch.arange(len(prompts))})

    def sample(self, noise, condition, *, num_inference_steps=1, seed=None):
        requests = [BY_CAPTION[c] for c in self.captions] if self.right else [BY_CAPTION["a ring"]] * len(noise)
        seeds = (1000 * noise.sum((1, 2)).abs()).long().tolist()
        scenes = [sample_scene(r, np.random.default_rng(s)) for r, s in zip(requests, seeds, strict=True)]
        return torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)


def test_truth_scores_one_and_one_picture_for_all_does_not():
    requests = evaluation_requests(5)
    right = evaluate(Truth(), None, requests, redness, seeds=2, steps=4)
    assert right.row["score"] >= 0.98
    assert right.row["artefacts"] < 0.02
    assert right.pixels.shape == (60, 3, 64, 64)
    assert (right.row["denoiser_forwards"], right.row["kl"], right.row["steps"]) == (4, 0.0, 4)
    low, high = right.row["score_ci95"]
    assert low <= right.row["score"] <= high
    wrong = evaluate(Truth(right=False), None, requests, redness, seeds=2)
    assert wrong.row["score"] < 0.3
    assert right.row["reward"] == pytest.approx(redness(right.pixels, []).mean().item(), abs=1e-6)


def test_a_network_is_counted_and_its_kl_reported():
    network = ResidualNoise((2, 2), depth=0)
    with torch.no_grad():
        network.network[-1].bias.fill_(1.0)
    row = evaluate(Truth(), network, evaluation_requests(1), redness, seeds=1).row
    assert row["method"] == "hypernoise"
    assert row["kl"] == pytest.approx(2.0)  # ½ · 4 · 1²
    assert row["denoiser_forwards"] == 2
    assert row["diversity"] is None


def test_diversity_is_zero_for_one_picture_and_positive_for_many():
    class Same(Truth):
        def sample(self, noise, condition, *, num_inference_steps=1, seed=None):
            return super().sample(torch.zeros_like(noise), condition)

    assert evaluate(Same(), None, evaluation_requests(1), redness, seeds=3).row["diversity"] == pytest.approx(
        0, abs=1e-3
    )
    assert evaluate(Truth(), None, evaluation_requests(1), redness, seeds=3).row["diversity"] > 0.05


def test_contact_sheet_frames_right_and_wrong():
    pictures = torch.ones(2, 3, 8, 8)
    sheet = before_after(["a ring", "a cross"], [("base", pictures, [True, False])], "title")
    colors = {color for _, color in sheet.getcolors(1 << 20)}
    assert {(30, 140, 60), (200, 50, 40)} <= colors
