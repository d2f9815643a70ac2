import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from hypernoise.errors import InputError
from hypernoise.evaluation import features
from hypernoise.evaluation.features import Dino, kernel_distance, pairwise_similarity
from hypernoise.rewards.preprocess import normalise


def test_similarity_is_the_mean_cosine_of_pairs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5))
    pairs = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i in range(4) for j in range(i)]
    assert pairwise_similarity(x) == pytest.approx(np.mean(pairs))
    assert pairwise_similarity(np.ones((3, 2))) == pytest.approx(1)


def test_the_kernel_distance_is_unbiased_and_by_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)) + 1

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (a, b)]
    across = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * across)
    same = [kernel_distance(rng.normal(size=(20, 3)), rng.normal(size=(20, 3))) for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20  # about 0, from both sides
    assert min(same) < 0 < max(same)


def tiny_dino():
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    return Dinov2Model(config).eval()


def test_dinos_features_are_its_class_token():
    model = tiny_dino()
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seen = model(pixel_values=normalise(pictures, features.IMAGENET_MEAN, features.IMAGENET_STD)).last_hidden_state[
        :, 0
    ]
    found = Dino(model)(pictures)
    assert torch.allclose(found, seen, atol=1e-5)
    assert (found[0] - found[1]).norm() > 1e-3
    assert Dino(model)(torch.rand(1, 3, 30, 50)).shape == (1, 16)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        features.load(str(tmp_path / "nowhere"), "cpu")
