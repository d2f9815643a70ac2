"""The released checkpoints' names and shapes, written out by hand from their sources, to hold the code against.

Each function gives {name: shape}; sizes are arguments, so that a test can fill the same layout at small size.
"""

from __future__ import annotations

import torch

Layout = dict[str, tuple[int, ...]]


def both(name: str, out: int, into: int) -> Layout:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def openclip(text: int, text_blocks: int, vision: int, blocks: int, patch: int, image: int, joint: int, **vocabulary):
    """open_clip's CLIP (src/open_clip/model.py, transformer.py; ViT-H-14.json): HPS_v2.1_compressed.pt's state dict."""
    words, length = vocabulary.get("words", 49408), vocabulary.get("length", 77)

    def block(place: str, width: int) -> Layout:
        return {
            **norm(f"{place}.ln_1", width),
            f"{place}.attn.in_proj_weight": (3 * width, width),
            f"{place}.attn.in_proj_bias": (3 * width,),
            **both(f"{place}.attn.out_proj", width, width),
            **norm(f"{place}.ln_2", width),
            **both(f"{place}.mlp.c_fc", 4 * width, width),
            **both(f"{place}.mlp.c_proj", width, 4 * width),
        }

    layout: Layout = {
        "positional_embedding": (length, text),
        "text_projection": (text, joint),
        "logit_scale": (),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": ((image // patch) ** 2 + 1, vision),
        "visual.proj": (vision, joint),
        "visual.conv1.weight": (vision, 3, patch, patch),
        **norm("visual.ln_pre", vision),
        **norm("visual.ln_post", vision),
        "token_embedding.weight": (words, text),
        **norm("ln_final", text),
    }
    for number in range(blocks):
        layout.update(block(f"visual.transformer.resblocks.{number}", vision))
    for number in range(text_blocks):
        layout.update(block(f"transformer.resblocks.{number}", text))
    return layout


def transformers_clip(text: int, text_blocks: int, vision: int, blocks: int, patch: int, joint: int, length: int):
    """transformers' CLIPModel: PickScore_v1's and CLIP-ViT-H-14's model.safetensors, written by transformers 4.2x.

    Those versions also saved the two `position_ids`.
    """

    def block(place: str, width: int) -> Layout:
        layout = {
            **norm(f"{place}.layer_norm1", width),
            **norm(f"{place}.layer_norm2", width),
            **both(f"{place}.mlp.fc1", 4 * width, width),
            **both(f"{place}.mlp.fc2", width, 4 * width),
        }
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            layout.update(both(f"{place}.self_attn.{part}", width, width))
        return layout

    patches = (224 // patch) ** 2
    layout: Layout = {
        "logit_scale": (),
        "text_model.embeddings.position_ids": (1, length),
        "text_model.embeddings.token_embedding.weight": (49408, text),
        "text_model.embeddings.position_embedding.weight": (length, text),
        **norm("text_model.final_layer_norm", text),
        "vision_model.embeddings.class_embedding": (vision,),
        "vision_model.embeddings.position_ids": (1, patches + 1),
        "vision_model.embeddings.patch_embedding.weight": (vision, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (patches + 1, vision),
        **norm("vision_model.pre_layrnorm", vision),
        **norm("vision_model.post_layernorm", vision),
        "visual_projection.weight": (joint, vision),
        "text_projection.weight": (joint, text),
    }
    for number in range(blocks):
        layout.update(block(f"vision_model.encoder.layers.{number}", vision))
    for number in range(text_blocks):
        layout.update(block(f"text_model.encoder.layers.{number}", text))
    return layout


def filled(layout: Layout, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights in a layout, of a size that keeps activations near 1."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout.items():
        noise = torch.randn(shape, generator=draw)
        matrix = len(shape) > 1 and "embedding" not in name and "pos_embed" not in name
        state[name] = noise * (shape[-1] ** -0.5 if matrix else 0.3)
        if name.endswith(("ln_1.weight", "ln_2.weight", "norm.weight", "LayerNorm.weight")):
            state[name] = 1 + state[name]
    return state


def on_meta(layout: Layout) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


def image_reward(
    vision: int = 1024, blocks: int = 24, patch: int = 16, image: int = 224, text: int = 768, layers: int = 12, **more
):
    """ImageReward.pt: BLIP's models/vit.py and med.py (ViT-L, med_config.json) and the MLP of ImageReward.py.

    With what is never used: BLIP's two projections, and the position ids of the transformers of the time.
    """
    words, longest = more.get("words", 30524), more.get("longest", 512)
    see, read = "blip.visual_encoder", "blip.text_encoder"
    layout: Layout = {
        f"{see}.cls_token": (1, 1, vision),
        f"{see}.pos_embed": (1, (image // patch) ** 2 + 1, vision),
        f"{see}.patch_embed.proj.weight": (vision, 3, patch, patch),
        f"{see}.patch_embed.proj.bias": (vision,),
        **norm(f"{see}.norm", vision),
        f"{read}.embeddings.position_ids": (1, longest),
        f"{read}.embeddings.word_embeddings.weight": (words, text),
        f"{read}.embeddings.position_embeddings.weight": (longest, text),
        **norm(f"{read}.embeddings.LayerNorm", text),
        **both("blip.vision_proj", 256, vision),
        **both("blip.text_proj", 256, text),
        **mlp_head("mlp.layers", text),
    }
    for number in range(blocks):
        place = f"{see}.blocks.{number}"
        layout.update({**norm(f"{place}.norm1", vision), **norm(f"{place}.norm2", vision)})
        layout.update({**both(f"{place}.attn.qkv", 3 * vision, vision), **both(f"{place}.attn.proj", vision, vision)})
        layout.update({**both(f"{place}.mlp.fc1", 4 * vision, vision), **both(f"{place}.mlp.fc2", vision, 4 * vision)})
    for number in range(layers):
        place = f"{read}.encoder.layer.{number}"
        for attention, seen in (("attention", text), ("crossattention", vision)):
            layout.update(both(f"{place}.{attention}.self.query", text, text))
            layout.update(both(f"{place}.{attention}.self.key", text, seen))
            layout.update(both(f"{place}.{attention}.self.value", text, seen))
            layout.update(both(f"{place}.{attention}.output.dense", text, text))
            layout.update(norm(f"{place}.{attention}.output.LayerNorm", text))
        layout.update(both(f"{place}.intermediate.dense", 4 * text, text))
        layout.update(both(f"{place}.output.dense", text, 4 * text))
        layout.update(norm(f"{place}.output.LayerNorm", text))
    return layout


def mlp_head(place: str, width: int, numbers: tuple[int, ...] = (0, 2, 4, 6, 7)) -> Layout:
    """Five linear layers, numbered past the dropout between them (improved-aesthetic-predictor, ImageReward)."""
    layout: Layout = {}
    for number, into, out in zip(numbers, (width, 1024, 128, 64, 16), (1024, 128, 64, 16, 1), strict=True):
        layout.update(both(f"{place}.{number}" if place else str(number), out, into))
    return layout
