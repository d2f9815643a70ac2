"""Options that save memory: the same numbers, and really less memory."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES
from hypernoise.generators.memory import Memory
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl
from tests.conftest import disturb
from tests.families import build_pipeline, size_of

PROMPTS = ["a red circle", "two blue rings and a cross"]


def step(family, folder, memory, seed=0):
    """The pixels of a training step and the gradient of every LoRA tensor."""
    generator = DiffusionGenerator(build_pipeline(family, folder), size=size_of(family), memory=memory)
    network = LoRANoise(generator, rank=2, alpha=2.0)
    disturb(network, scale=0.2)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, *generator.noise_shape, generator=draw)
    condition = generator.encode(PROMPTS)
    residual = network(noise, condition)
    pixels = generator.sample(noise + residual, condition)
    (l2_kl(residual).sum() + pixels.square().sum()).backward()
    return pixels.detach(), [p.grad for p in network.trainable_parameters()]


def close(found, expected):
    (pixels, gradients), (wanted, right) = found, expected
    assert (pixels - wanted).abs().max() <= 1e-5
    assert [g is None for g in gradients] == [g is None for g in right]
    for g, r in zip(gradients, right, strict=True):
        if g is not None:
            assert torch.allclose(g, r, rtol=1e-3, atol=1e-4 * float(r.abs().max()) + 1e-6)
    assert sum(g is not None and bool(g.any()) for g in gradients) > len(right) / 2


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_checkpointing_slices_and_offloading_change_no_number(family, tmp_path):
    saving = Memory(gradient_checkpointing=True, decode_slice=1, text_encoders="offload")
    close(step(family, tmp_path, saving), step(family, tmp_path, Memory()))


def test_blocks_that_the_user_checkpoints_are_computed_again_as_they_were(sd_pipeline):
    gradients = []
    for checkpointed in (False, True):
        pipeline = sd_pipeline()
        if checkpointed:
            pipeline.unet.enable_gradient_checkpointing()
        generator = DiffusionGenerator(pipeline)
        network = LoRANoise(generator, rank=2)
        disturb(network)
        condition, draw = generator.encode(["a ring"]), torch.Generator().manual_seed(0)
        loss = network(torch.randn(1, 4, 8, 8, generator=draw), condition).square().sum()
        with ThreadPoolExecutor(1) as threads:  # as a device's backward pass, in a thread of its own
            threads.submit(loss.backward).result()
        gradients.append([parameter.grad for parameter in network.trainable_parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is again is None or torch.allclose(plain, again, rtol=1e-3, atol=1e-5)


def saved_bytes(family, folder, memory):
    """Bytes that autograd keeps for the backward pass of one step."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    generator = DiffusionGenerator(build_pipeline(family, folder), size=size_of(family), memory=memory)
    network = LoRANoise(generator, rank=2)
    weights = {
        p.untyped_storage().data_ptr()
        for part in (generator.denoiser, generator.pipeline.vae)
        for p in part.parameters()
    }
    noise = torch.randn(2, *generator.noise_shape)
    condition = generator.encode(PROMPTS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pixels = generator.sample(noise + network(noise, condition), condition)
    assert pixels.requires_grad
    return sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("family", ["StableDiffusionPipeline", "SanaSprintPipeline", "FluxPipeline"])
def test_checkpointing_keeps_less(family, tmp_path):
    assert saved_bytes(family, tmp_path, Memory(gradient_checkpointing=True)) < 0.5 * saved_bytes(
        family, tmp_path, Memory()
    )


def test_the_decoder_sees_so_many_pictures_at_once(tmp_path):
    pipeline = build_pipeline("SanaSprintPipeline", tmp_path)
    generator = DiffusionGenerator(pipeline, size=(32, 32), memory=Memory(decode_slice=2))
    seen = []
    pipeline.vae.decoder.register_forward_hook(lambda module, arguments, output: seen.append(len(output)))
    with torch.no_grad():
        generator.sample(torch.randn(5, *generator.noise_shape), generator.encode(["a ring"] * 5))
    assert seen == [2, 2, 1]
    assert "decode" not in vars(pipeline.vae)


def test_offloaded_encoders_rest_outside_the_pipeline(tmp_path):
    pipeline = build_pipeline("FluxPipeline", tmp_path)
    expected = DiffusionGenerator(pipeline, size=(16, 16)).encode(PROMPTS).tensors
    generator = DiffusionGenerator(pipeline, size=(16, 16), memory=Memory(text_encoders="offload"))
    assert pipeline.text_encoder is None
    assert pipeline.text_encoder_2 is None
    found = generator.encode(PROMPTS).tensors
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert pipeline.text_encoder is None


def test_out_of_memory_while_decoding_raises_even_for_sana(tmp_path, monkeypatch):
    """Its pipeline alone only warns."""
    pipeline = build_pipeline("SanaSprintPipeline", tmp_path)
    generator = DiffusionGenerator(pipeline, size=(32, 32))

    def refuse(*arguments):
        raise torch.OutOfMemoryError("no more")

    condition = generator.encode(["a ring"])
    monkeypatch.setattr(pipeline.vae.decoder, "forward", refuse)
    with pytest.raises(InputError, match="out of memory while decoding 1 pictures; set memory.decode_slice: 1"):
        generator.sample(torch.randn(1, *generator.noise_shape), condition)


def test_offloaded_encoders_are_frozen_and_in_eval_mode_too(sd_pipeline):
    pipeline = sd_pipeline()
    encoder = pipeline.text_encoder.train()
    DiffusionGenerator(pipeline, memory=Memory(text_encoders="offload"))
    assert pipeline.text_encoder is None
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
