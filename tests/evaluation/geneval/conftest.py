"""A tiny Mask2Former and a tiny CLIP with random weights, from transformers' real classes."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from hypernoise.evaluation.geneval.detection import SENTENCES
from hypernoise.evaluation.geneval.rules import COLORS

LABELS = ["circle", "square", "ring", "mouse"]
LINES = [  # of a metadata file
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
    {"tag": "counting", "include": [{"class": "ring", "count": 2}], "exclude": [{"class": "ring", "count": 3}],
     "prompt": "two rings"},
    {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": "a red circle"},
]  # fmt: skip


def build_mask2former():
    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages)
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=32, num_queries=6,
        num_labels=len(LABELS), id2label=dict(enumerate(LABELS)),
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config).eval().requires_grad_(False)
    model.class_predictor.weight.normal_()  # else every class is as likely as any other
    return model


def build_clip(tokenizer):
    torch.manual_seed(0)
    layers = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 12}
    marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**layers, **marks, "hidden_size": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    vision = {**layers, "hidden_size": 16, "image_size": 16, "patch_size": 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    for parameter in model.parameters():  # the usual start is so small that pictures hardly matter
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter.shape[-1] ** -0.5)
    return model.requires_grad_(False)


def build_tokenizer():
    """Words, between CLIP's two marks."""
    words = " ".join([*SENTENCES, *COLORS, *LABELS, "computer"]).replace("{color}", "").replace("{name}", "")
    pieces = [piece for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(words)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<start>", "<end>", "<unk>", *pieces]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of a detector and of a CLIP, as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("tiny")
    build_mask2former().save_pretrained(folder / "detector")
    tokenizer = build_tokenizer()
    build_clip(tokenizer).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    return str(folder / "detector"), str(folder / "clip")
