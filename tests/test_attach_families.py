"""`attach` on a tiny pipeline of every family: the user's call, drawn from the noise plus f."""

import pytest
import torch
from accelerate import cpu_offload_with_hook

from hypernoise.adapters import save_adapter
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.families import FAMILIES
from hypernoise.noise.lora import LoRANoise
from hypernoise.pipeline import attach, detach
from tests.conftest import disturb
from tests.families import build_pipeline, size_of

family = pytest.mark.parametrize("family", sorted(FAMILIES))


class Case:
    """A pipeline with a disturbed noise network, attached, and the same call by hand."""

    def __init__(self, family, folder):
        self.generator = DiffusionGenerator(build_pipeline(family, folder), size=size_of(family))
        self.network = LoRANoise(self.generator, rank=2, alpha=2.0)
        disturb(self.network, scale=0.2)

    @property
    def size(self):
        return dict(height=self.generator.size[0], width=self.generator.size[1])

    def attached(self, prompts, steps, **call):
        pipe = attach(self.generator.pipeline, self.network)
        try:
            call = {**self.generator.call(steps), **call}
            return pipe(prompt=prompts, output_type="pt", return_dict=False, **call)[0]
        finally:
            detach(pipe)

    @torch.no_grad()
    def by_hand(self, prompts, noise, steps):
        condition = self.generator.encode(prompts)
        return self.generator.sample(noise + self.network(noise, condition), condition, num_inference_steps=steps)

    def resized(self, height, width):
        """The same networks at another size."""
        other = DiffusionGenerator(self.generator.pipeline, size=(height, width))
        self.generator, self.network._generator = other, (other,)


def noise(shape, seeds=(0, 1)):
    """As diffusers draws it from a list of generators."""
    return torch.cat([torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def as_pipeline(generator, drawn):
    """Noise [B, C, H, W] drawn by the pipeline, in the layout it takes as `latents`."""
    family = generator.family
    if family.layout == "grid":
        return drawn
    b, c, h, w = drawn.shape
    return drawn.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def drawn_shape(generator):
    """[C, H, W] in which the pipeline itself draws noise."""
    if generator.family.layout == "grid":
        return generator.noise_shape
    scale = generator.pipeline.vae_scale_factor
    return (generator.noise_shape[1] // 4, generator.size[0] // scale, generator.size[1] // scale)


@family
def test_given_latents_one_two_and_four_steps(family, tmp_path):
    case = Case(family, tmp_path)
    x = noise(case.generator.noise_shape)
    prompts = ["a ring", "two blue crosses"]
    for steps in (1, 2, 4):
        torch.manual_seed(1)
        drawn = case.attached(list(prompts), steps, latents=x.clone())
        torch.manual_seed(1)
        expected = case.by_hand(prompts, x, steps)
        assert (drawn - expected).abs().max() <= 1e-5
    plain = case.generator.sample(x, case.generator.encode(prompts), num_inference_steps=1)
    improved = case.by_hand(prompts, x, 1)
    assert (improved - plain).abs().max() > 1e-3


@family
def test_images_per_prompt_and_a_list_of_generators(family, tmp_path):
    case = Case(family, tmp_path)
    seeds = (3, 4, 5, 6)
    drawn = case.attached(
        [
            "a ring",
            "a cross",
        ],  # of one length: SANA-Sprint orders the masks of further images wrongly (diffusers 0.42.1)
        1,
        num_images_per_prompt=2,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    )
    x = as_pipeline(case.generator, noise(drawn_shape(case.generator), seeds))
    expected = case.by_hand(["a ring", "a ring", "a cross", "a cross"], x, 1)
    assert drawn.shape[0] == 4
    if family != "StableDiffusionXLPipeline":  # its ancestral step adds noise of its own from the generators
        assert (drawn - expected).abs().max() <= 1e-5
    alone = case.attached("a cross", 1, generator=torch.Generator().manual_seed(6))
    assert (drawn[3:] - alone).abs().max() <= 1e-5


@family
def test_not_square(family, tmp_path):
    case = Case(family, tmp_path)
    height, width = case.generator.size
    case.resized(height, 2 * width)
    x = noise(case.generator.noise_shape, (0,))
    drawn = case.attached("a ring", 1, latents=x.clone())
    assert drawn.shape[-2:] == (height, 2 * width)
    assert (drawn - case.by_hand(["a ring"], x, 1)).abs().max() <= 1e-5


GUIDED = {
    "StableDiffusionPipeline": {"guidance_scale": 4.0, "negative_prompt": "a cross"},
    "StableDiffusionXLPipeline": {"guidance_scale": 4.0, "negative_prompt": "a cross"},
    "StableDiffusion3Pipeline": {"guidance_scale": 4.0, "negative_prompt": "a cross"},
    "PixArtAlphaPipeline": {"guidance_scale": 4.0, "negative_prompt": "a cross"},
    "FluxPipeline": {"true_cfg_scale": 4.0, "negative_prompt": "a cross"},
    "QwenImagePipeline": {"true_cfg_scale": 4.0, "negative_prompt": "a cross"},
    "ZImagePipeline": {"guidance_scale": 4.0, "negative_prompt": "a cross"},
    "Flux2KleinPipeline": {"guidance_scale": 4.0},
    "Krea2Pipeline": {"guidance_scale": 4.0, "negative_prompt": "a cross"},
}


@pytest.mark.parametrize("family", sorted(GUIDED))
def test_under_guidance_f_is_the_prompts_own(family, tmp_path):
    """The guided call from the given noise equals the bare guided call from the noise plus f of the prompt."""
    case = Case(family, tmp_path)
    pipeline, x = case.generator.pipeline, noise(case.generator.noise_shape, (0,))
    if family == "Flux2KleinPipeline":
        pipeline.register_to_config(is_distilled=False)  # guidance is for those that are not
    with torch.no_grad():
        better = x + case.network(x, case.generator.encode(["a ring"]))
    drawn = case.attached("a ring", 1, latents=x.clone(), **GUIDED[family])
    call = {**case.generator.call(1), **case.size, **GUIDED[family], "output_type": "pt", "return_dict": False}
    expected = pipeline(prompt="a ring", latents=better, **call)[0]
    unguided = case.by_hand(["a ring"], x, 1)
    assert (drawn - expected).abs().max() <= 2e-5
    assert (drawn - unguided).abs().max() > 5e-5  # Qwen-Image keeps the norm of its answer under guidance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "whole"),
    [("SanaSprintPipeline", True), ("SanaSprintPipeline", False)]
    + [(name, True) for name in ("StableDiffusionXLPipeline", "QwenImagePipeline", "ZImagePipeline")],
)
def test_a_compiled_denoiser(family, whole, tmp_path):
    """Wrapped, or compiled in place, with a backend that only traces. One family for each way of calling:
    a UNet, a transformer, packed tokens, a list of pictures."""
    case = Case(family, tmp_path)
    pipeline, x = case.generator.pipeline, noise(case.generator.noise_shape, (0,))
    expected = case.attached("a ring", 1, latents=x.clone())
    name, denoiser = case.generator.family.denoiser, case.generator.denoiser
    if whole:
        setattr(pipeline, name, torch.compile(denoiser, backend="eager"))
        assert case.generator.denoiser is denoiser
    else:
        denoiser.compile(backend="eager")
    assert (case.attached("a ring", 1, latents=x.clone()) - expected).abs().max() <= 1e-5
    torch._dynamo.reset()


@family
def test_attached_to_a_pipeline_that_offloads_already(family, tmp_path):
    """The adapter comes from its directory onto modules that carry accelerate's hooks."""
    case = Case(family, tmp_path)
    x = noise(case.generator.noise_shape, (0,))
    expected = case.attached("a ring", 1, latents=x.clone())
    save_adapter(case.network, tmp_path / "adapter")
    fresh = build_pipeline(family, tmp_path)
    for part in fresh.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload_with_hook(part, "cpu")
    call = {**case.generator.call(1), **case.size, "output_type": "pt", "return_dict": False}
    drawn = attach(fresh, tmp_path / "adapter")(prompt="a ring", latents=x.clone(), **call)[0]
    assert (drawn - expected).abs().max() <= 1e-5
