"""The embedded generator's parts: real diffusers and transformers classes at miniature size."""

from __future__ import annotations

# diffusers annotates tuples of any length as tuples of one, and optional layers without narrowing
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
import json
from pathlib import Path

import numpy as np
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hypernoise.scenes.world import COLORS, NUMBERS, SHAPES, plural

CELLS, CHANNELS = 8, 4
WIDTH = 128  # of the text encoder
SIGMAS = (0.002, 14.6146)  # at t = 0 and t = 999
MAX_TOKENS = 24  # with the start and the end mark
FILLERS = """a an and of the left right above below to picture photo drawing with on in small large
top bottom under over next beside between no not many any other same each"""
WORDS = [
    *SHAPES,
    *(plural(shape) for shape in SHAPES),
    *COLORS,
    *NUMBERS.values(),
    *FILLERS.split(),
]


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer in which each of the world's words is one token, and any other text is spelt out."""
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = [chr(c) for c in range(33, 127)]
    merges = _merges(sorted(set(WORDS), key=lambda word: (len(word), word)))
    tokens = [*letters, *(c + "</w>" for c in letters), *dict.fromkeys(a + b for a, b in merges), *marks]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS, pad_token=marks[1]
    )


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, in rank order, under which every word ends as one piece.

    Each word is first split by the merges so far, then its pieces are joined from the left; later merges
    rank lower, so they never change how an earlier word is built.
    """
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = _split([*word[:-1], word[-1] + "</w>"], merges)
        merges += [("".join(pieces[:i]), pieces[i]) for i in range(1, len(pieces))]
    return merges


def _split(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    for a, b in merges:
        i = 0
        while i < len(pieces) - 1:
            if pieces[i] == a and pieces[i + 1] == b:
                pieces = [*pieces[:i], a + b, *pieces[i + 2 :]]
            i += 1
    return pieces


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    """Convolutions at 8 x 8; at 4 x 4, where the picture is laid out, attention to the caption too."""
    unet = UNet2DConditionModel(
        sample_size=CELLS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 96),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        # With a guidance input the pipeline never runs classifier-free guidance of its own: its default
        # guidance_scale of 7.5 costs no second call and, the input's weights being zero, changes nothing.
        time_cond_proj_dim=32,
    )
    unet.time_embedding.cond_proj.weight.data.zero_()
    unet.time_embedding.cond_proj.requires_grad_(False)
    return unet


def build_scheduler() -> EulerDiscreteScheduler:
    """Trailing, so that one step starts at t = 999, at SD-Turbo's sigma of 14.6; v-prediction.

    Sigma is a rectified flow's u / (1 - u), u growing evenly with t.
    """
    first, last = (sigma / (1 + sigma) for sigma in SIGMAS)
    u = np.linspace(first, last, 1000)
    kept = 1 / (1 + (u / (1 - u)) ** 2)
    betas = 1 - kept / np.concatenate([[1], kept[:-1]])
    return EulerDiscreteScheduler(
        trained_betas=betas.tolist(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # what diffusers expects of Stable Diffusion; trailing does not use it
    )


def build_pipeline(
    autoencoder: AutoencoderTiny, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
