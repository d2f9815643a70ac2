"""The configurations kept in the package give the networks that their authors describe."""

import pytest
import torch

from hypernoise.generators.presets import PRESETS
from hypernoise.planning.configurations import CONFIGURATIONS
from hypernoise.planning.estimate import _build, estimate, lora_parameters, meta_network, planned_generator

PUBLISHED = {  # denoisers, in millions, as their papers and model cards say
    "sd-turbo": 866,  # Stable Diffusion 2.1's UNet
    "sdxl-turbo": 2_600,  # SDXL, table 1
    "sana-sprint-0.6b": 600,
    "sana-sprint-1.6b": 1_600,
    "flux-schnell": 12_000,
    "sd3.5-large-turbo": 8_100,
    "pixart-dmd": 610,  # PixArt-α, section 3
    "z-image-turbo": 6_000,
    "flux2-klein-4b": 4_000,
    "qwen-image-lightning": 20_000,
}


def test_every_preset_from_the_hub_can_be_planned():
    assert set(CONFIGURATIONS) == set(PUBLISHED) == {name for name, preset in PRESETS.items() if preset.repository}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_denoisers_have_their_published_size(name):
    denoiser = _build(CONFIGURATIONS[name].denoiser, torch.bfloat16)
    assert sum(p.numel() for p in denoiser.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], rel=0.04)


def test_lora_on_sana_sprint_is_mostly_on_depthwise_convs():
    """As counted on the released adapter: 206 of 315 million at rank 128."""
    planned = planned_generator("sana-sprint-0.6b", dtype=torch.bfloat16)
    counts = lora_parameters(meta_network(planned, rank=128, alpha=256.0, dtype=torch.bfloat16))
    assert counts["depthwise conv"] / 1e6 == pytest.approx(206, abs=0.5)
    assert sum(counts.values()) / 1e6 == pytest.approx(315, abs=0.5)


def test_a_step_of_a_published_model_runs_without_data():
    planned = planned_generator("pixart-dmd", dtype=torch.bfloat16)
    network = meta_network(planned, rank=4, alpha=4.0, dtype=torch.bfloat16)
    found = estimate(planned, network, batch=1)
    assert found.parts["denoiser"] == 2 * sum(
        p.numel() for n, p in planned.generator.denoiser.named_parameters() if ".lora_" not in n
    )
    # a multiply-add per weight and token is 2 FLOP: 256·2 patches of 32 x 32 tokens
    assert found.flops["generator"] == pytest.approx(2 * 611e6 * 1024, rel=0.25)
    assert found.flops["backward"] > 1.5 * found.flops["generator"]
