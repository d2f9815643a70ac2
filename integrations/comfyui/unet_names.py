"""Names of a UNet's layers in diffusers, and in ComfyUI, which keeps those of the original checkpoints."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

ALONE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
IN_A_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
IN_THE_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def ldm_name(name: str, res_blocks: Sequence[int], modules: Container[str]) -> str:
    """ComfyUI's name of a layer that diffusers calls `name`; `name` itself if it is not a UNet's.

    Args:
        res_blocks: residual blocks per resolution in the down path, such as [2, 2, 2, 2]; one more in the up path.
        modules: the model's module names, which show where an upsampler is in its block.
    """
    if name in ALONE:
        return ALONE[name]
    if middle := IN_THE_MIDDLE.fullmatch(name):
        kind, number, rest = middle.groups()
        return (
            f"middle_block.{2 * int(number)}.{RESNET.get(rest, rest)}"
            if kind == "resnets"
            else f"middle_block.1.{rest}"
        )
    if not (inner := IN_A_BLOCK.fullmatch(name)):
        return name
    way, level, kind, number, rest = inner.groups()
    sizes = [count + 1 for count in (res_blocks if way == "down" else list(reversed(res_blocks)))]
    first = sum(sizes[: int(level)])
    if kind == "downsamplers":
        return f"input_blocks.{first + sizes[int(level)]}.0.op"
    if kind == "upsamplers":
        block = f"output_blocks.{first + sizes[int(level)] - 1}"
        return f"{block}.{2 if f'{block}.2.conv' in modules else 1}.conv"
    block = f"input_blocks.{first + 1 + int(number)}" if way == "down" else f"output_blocks.{first + int(number)}"
    return f"{block}.0.{RESNET.get(rest, rest)}" if kind == "resnets" else f"{block}.1.{rest}"
