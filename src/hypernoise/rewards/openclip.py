"""Maps OpenCLIP's weight names to transformers' (HPSv2.1 is published under OpenCLIP's).

OpenCLIP keeps query, key and value in one matrix, and its projections transposed; everything else
differs only in its name (github.com/mlfoundations/open_clip, src/open_clip/model.py and transformer.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

TOWERS = {"visual.": "vision_model", "": "text_model"}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
NAMES = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' own spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
PROJECTIONS = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
UNUSED = {"attn_mask"}  # the causal mask, which older versions save


def from_openclip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for `transformers.CLIPModel`; names that are not OpenCLIP's stay and are refused later."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = BLOCK.fullmatch(name)
        if block:
            converted.update(_in_block(block, name, tensor))
        elif name in PROJECTIONS:
            converted[PROJECTIONS[name]] = tensor.T.contiguous()
        elif name not in UNUSED:
            converted[NAMES.get(name, name)] = tensor
    return converted


def _in_block(block: re.Match[str], name: str, tensor: Tensor) -> dict[str, Tensor]:
    tower, number, rest = block.groups()
    place = f"{TOWERS[tower or '']}.encoder.layers.{number}"
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.rpartition("_")[2]
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{place}.self_attn.{letter}_proj.{kind}": third.contiguous() for letter, third in thirds}
    part, _, kind = rest.rpartition(".")
    return {f"{place}.{BLOCK_NAMES[part]}.{kind}" if part in BLOCK_NAMES else name: tensor}
