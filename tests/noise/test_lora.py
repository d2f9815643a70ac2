import pytest
import torch
from torch import nn

from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.methods.finetune import LoRATune
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl, noise_objective
from hypernoise.rewards.pixel import redness
from tests.conftest import disturb
from tests.families import build_pipeline, size_of

PROMPTS = ["a red circle", "two blue rings"]


def setup(generator, seed=0):
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, *generator.noise_shape, generator=draw, dtype=torch.float64).to(generator.dtype)
    return noise, generator.encode(PROMPTS)


def test_exactly_zero_before_training_and_the_picture_is_the_bases(generator):
    noise, condition = setup(generator)
    base = generator.sample(noise, condition)
    network = LoRANoise(generator, rank=4)
    residual = network(noise, condition)
    assert residual.shape == noise.shape
    assert torch.equal(residual, torch.zeros_like(noise))
    assert torch.equal(generator.sample(noise + residual, condition), base)


def test_every_linear_and_conv_layer_is_adapted(generator):
    names = {n for n, m in generator.denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    network = LoRANoise(generator, rank=4)
    assert set(network.layers) == names


def test_residual_is_the_output_layers_update_alone(generator):
    """f = scale · B A h, with h what reaches the output layer when every other layer is adapted in full."""
    noise, condition = setup(generator)
    network = LoRANoise(generator, rank=4, alpha=8.0)
    disturb(network)
    layer = network.layers["conv_out"]
    seen = []
    hook = generator.denoiser.conv_out.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    residual = network(noise, condition)
    hook.remove()
    a, b = layer.lora_A.weight, layer.lora_B.weight
    expected = nn.functional.conv2d(nn.functional.conv2d(seen[0], a, padding=1), b) * (8.0 / 4)
    assert residual.abs().max() > 1e-3
    assert torch.allclose(residual, expected, atol=1e-12)


def test_off_equals_base_and_on_again_equals_adapted(generator):
    noise, condition = setup(generator)
    base = generator.denoise_first(noise, condition)
    network = LoRANoise(generator, rank=4)
    disturb(network)
    adapted = network(noise, condition)
    assert torch.equal(generator.denoise_first(noise, condition), base)
    assert torch.equal(network(noise, condition), adapted)
    assert (adapted - base).abs().max() > 1e-3


def test_the_output_layer_gets_a_gradient_at_the_start(generator):
    noise, condition = setup(generator)
    network = LoRANoise(generator, rank=4)
    residual = network(noise, condition)
    assert all(p.requires_grad for p in network.trainable_parameters())
    generator.sample(noise + residual, condition).sum().backward()
    out = network.layers["conv_out"]
    assert out.lora_B.weight.grad.abs().max() > 0


def test_gradient_of_the_objective_matches_finite_differences(generator):
    noise, condition = setup(generator)
    network = LoRANoise(generator, rank=4)
    disturb(network, scale=0.1)
    parameters = network.trainable_parameters()

    def loss():
        residual = network(noise, condition)
        pixels = generator.sample(noise + residual, condition)
        return noise_objective(l2_kl(residual), 10 * redness(pixels, PROMPTS), kl_weight=0.5).mean()

    gradients = torch.autograd.grad(loss(), parameters)
    h = 1e-3
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        flat = torch.randn(sum(p.numel() for p in parameters), generator=draw, dtype=torch.float64)
        pieces = (flat / flat.norm()).split([p.numel() for p in parameters])
        directions = [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
        analytic = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
        values = {}
        for place in (h, -h, 0.0):
            with torch.no_grad():
                torch._foreach_add_(parameters, directions, alpha=place)
                values[place] = loss().item()
                torch._foreach_add_(parameters, directions, alpha=-place)
        assert abs(analytic) > 0.1
        assert analytic == pytest.approx((values[h] - values[-h]) / (2 * h), rel=1e-4)


def test_every_trainable_tensor_gets_a_gradient(generator):
    noise, condition = setup(generator)
    network = LoRANoise(generator, rank=4)
    disturb(network, scale=0.1)
    residual = network(noise, condition)
    generator.sample(noise + residual, condition).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


def test_lora_is_fp32_on_a_bf16_base(sd_pipeline):
    generator = DiffusionGenerator(sd_pipeline(dtype=torch.bfloat16))
    network = LoRANoise(generator, rank=4)
    assert {p.dtype for p in network.trainable_parameters()} == {torch.float32}
    assert generator.dtype == torch.bfloat16
    noise, condition = setup(generator)
    assert torch.isfinite(network(noise, condition)).all()


def test_it_leaves_the_denoiser_as_it_is(generator):
    noise, condition = setup(generator)
    base = generator.sample(noise, condition)
    modules = {name: (module, set(vars(module))) for name, module in generator.denoiser.named_modules()}
    network = LoRANoise(generator, rank=4)
    disturb(network)
    residual = network(noise, condition)
    with pytest.raises(ZeroDivisionError), network.adapted():
        1 / 0  # noqa: B018
    assert {name: (module, set(vars(module))) for name, module in generator.denoiser.named_modules()} == modules
    assert torch.equal(generator.sample(noise, condition), base)
    assert all(len(m._forward_hooks) == 0 for m in generator.denoiser.modules())
    assert torch.equal(network(noise, condition), residual)


def test_one_seed_one_initialisation_and_no_touch_of_the_global_one(generator, sd_pipeline):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = LoRANoise(generator, rank=4, seed=7).trainable_state()
    assert torch.equal(torch.get_rng_state(), before)
    first = {name: tensor.clone() for name, tensor in first.items()}
    again = LoRANoise(DiffusionGenerator(sd_pipeline(dtype=torch.float64)), rank=4, seed=7).trainable_state()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"rank": 4.0}, {"alpha": 0.0}, {"alpha": float("nan")}, {"alpha": None}]
)
def test_bad_settings_are_refused(generator, settings):
    with pytest.raises(InputError, match="must be a"):
        LoRANoise(generator, **settings)


def test_several_networks_share_a_generator(generator):
    noise, condition = setup(generator)
    first = LoRANoise(generator, rank=4)
    disturb(first)
    residual = first(noise, condition)
    second = LoRANoise(generator, rank=2)
    assert torch.equal(second(noise, condition), torch.zeros_like(noise))
    assert torch.equal(first(noise, condition), residual)
    disturb(second)
    tuned = LoRATune(generator, rank=2)
    disturb(tuned)
    with tuned.adapted():  # f is the frozen denoiser's, whatever is on
        assert torch.equal(first(noise, condition), residual)
        assert not torch.equal(generator.denoise_first(noise, condition), residual)
    assert torch.equal(first(noise, condition), residual)


def test_a_denoiser_with_other_layers_is_refused(generator):
    noise, condition = setup(generator)
    network = LoRANoise(generator, rank=4)
    whole, generator.denoiser.conv_out = generator.denoiser.conv_out, nn.Identity()
    with pytest.raises(InputError, match="its layer 'conv_out' is missing"):
        network(noise, condition)
    generator.denoiser.conv_out = nn.Conv2d(4, 4, 3)
    with pytest.raises(InputError, match="its layer 'conv_out' has another size"):
        network(noise, condition)
    generator.denoiser.conv_out = whole
    assert not network(noise, condition).any()


def test_fused_attention_projections_are_refused(generator):
    """Calls would pass by the layers that the LoRA is on, and f be another."""
    noise, condition = setup(generator)
    network = LoRANoise(generator, rank=4)
    generator.denoiser.fuse_qkv_projections()
    with pytest.raises(InputError, match="unfuse_qkv_projections"):
        network(noise, condition)
    generator.denoiser.unfuse_qkv_projections()
    assert not network(noise, condition).any()


def test_without_depthwise_is_every_layer_but_the_grouped_convolutions(tmp_path):
    generator = DiffusionGenerator(build_pipeline("SanaSprintPipeline", tmp_path), size=size_of("SanaSprintPipeline"))
    grouped = {name for name, module in generator.denoiser.named_modules() if getattr(module, "groups", 1) > 1}
    every = set(LoRANoise(generator, rank=2).layers)
    network = LoRANoise(generator, rank=2, layers=["without-depthwise"])
    assert len(grouped) > 0
    assert set(network.layers) == every - grouped
    assert network.settings["layers"] == list(network.layers)  # names, by which an adapter is read anywhere


def test_gaussian_draws_a_from_a_normal_of_deviation_one_over_rank(generator):
    def deviations(init):
        network = LoRANoise(generator, rank=8, init=init)
        return {n: layer.lora_A.weight.std().item() for n, layer in network.layers.items()}

    gaussian, own = deviations("gaussian"), deviations("kaiming")
    large = [name for name, layer in LoRANoise(generator, rank=8).layers.items() if layer.sizes[0] >= 16]
    assert len(large) > 5
    assert all(abs(gaussian[name] * 8 - 1) < 0.25 for name in large)
    assert any(abs(own[name] * 8 - 1) > 0.25 for name in large)
