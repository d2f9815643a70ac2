"""LoRA on grouped convolutions: SANA's depthwise ones, which PEFT refuses at most ranks."""

import pytest
import torch
from torch import nn

from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.noise.lora import LoRANoise
from tests.conftest import disturb
from tests.families import build_pipeline


@pytest.mark.parametrize("rank", [2, 40])  # 40: divided by the groups, where PEFT would put a grouped B
def test_a_depthwise_conv_gets_a_full_update_and_keeps_its_groups(rank, tmp_path):
    generator = DiffusionGenerator(build_pipeline("SanaSprintPipeline", tmp_path))
    conv = generator.denoiser.get_submodule("transformer_blocks.0.ff.conv_depth")
    assert isinstance(conv, nn.Conv2d)
    assert conv.groups == 40
    network = LoRANoise(generator, rank=rank, alpha=3.0)
    disturb(network)
    layer = network.layers["transformer_blocks.0.ff.conv_depth"]
    a, b = layer.lora_A.weight, layer.lora_B.weight
    assert (a.shape, b.shape) == ((rank, 40, 3, 3), (40, rank, 1, 1))
    assert conv.groups == 40
    x = torch.randn(1, 40, 5, 5, generator=torch.Generator().manual_seed(0))
    update = nn.functional.conv2d(nn.functional.conv2d(x, a, padding=1), b) * (3.0 / rank)
    with network.adapted():
        adapted = conv(x)
    assert torch.allclose(adapted, conv(x) + update, atol=1e-4)
    assert update.abs().max() > 0.1
    assert torch.equal(conv(x), conv.forward(x))
    assert "forward" not in vars(conv)
