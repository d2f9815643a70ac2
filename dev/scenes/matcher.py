"""The matcher that the scenes reward is: words that look at a picture, BLIP's image-text matching at miniature size."""

from __future__ import annotations

from typing import Any

from transformers import BlipConfig, BlipForImageTextRetrieval, BlipTextConfig, BlipVisionConfig, CLIPTokenizer

from hypernoise.scenes.scorers import LONGEST
from hypernoise.scenes.world import SIZE

WIDTH, PATCH = 128, 8
PLACES_SEEN = 10  # times the usual start of the position embeddings, which a patch's colours would drown


def build_matcher(tokenizer: CLIPTokenizer, layers: int = 2) -> BlipForImageTextRetrieval:
    """Words that attend to the picture's patches, and a matched-or-not head (BLIP's ITM, arXiv 2201.12086)."""
    size = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = BlipTextConfig(
        **size,
        num_hidden_layers=3,
        encoder_hidden_size=WIDTH,
        vocab_size=len(tokenizer),
        max_position_embeddings=LONGEST,
        is_decoder=True,  # what gives BLIP's layers their attention to the picture; the words still see each other
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **_marks(tokenizer),
    )
    vision = BlipVisionConfig(
        **size,
        num_hidden_layers=layers,
        image_size=SIZE,
        patch_size=PATCH,
        initializer_range=0.02,  # the default, 1e-10, is for weights that are loaded, and hardly trains
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_text_hidden_size=WIDTH)
    model = BlipForImageTextRetrieval(config)
    model.vision_model.embeddings.position_embedding.data.mul_(PLACES_SEEN)
    return model


def _marks(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
