import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from hypernoise.errors import InputError
from hypernoise.evaluation.measures import load_features, pairwise_similarity
from hypernoise.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise


def test_similarity_is_the_mean_cosine_of_pairs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 5))
    pairs = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i in range(4) for j in range(i)]
    assert pairwise_similarity(x) == pytest.approx(np.mean(pairs))
    assert pairwise_similarity(np.ones((3, 2))) == pytest.approx(1)


def tiny_dino():
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2
    )
    return Dinov2Model(config).eval()


def test_dinos_features_are_its_class_token(tmp_path):
    model = tiny_dino()
    model.save_pretrained(tmp_path)
    dino = load_features(str(tmp_path), "cpu")
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seen = model(pixel_values=normalise(pictures, IMAGENET_MEAN, IMAGENET_STD)).last_hidden_state[:, 0]
    found = dino(pictures)
    assert torch.allclose(found, seen, atol=1e-5)
    assert (found[0] - found[1]).norm() > 1e-3
    assert dino(torch.rand(1, 3, 30, 50)).shape == (1, 16)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_features(str(tmp_path / "nowhere"), "cpu")
