"""`hypernoise app`: the numbers on the page, and the page in a browser."""

import builtins
import io
import re
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.adapters import load_adapter, save_adapter
from hypernoise.cli import main
from hypernoise.commands.app import FROM_HERE_ALONE, App, as_colors, draw, serve
from hypernoise.errors import InputError
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.generators.registry import load_generator
from hypernoise.methods.hypernoise import Adapter
from hypernoise.noise.lora import LoRANoise
from hypernoise.objective import l2_kl
from hypernoise.rewards.pixel import redness
from tests.conftest import disturb
from tests.evaluation.browser import CHROMIUM, Browser
from tests.families import build_pipeline, size_of

ASKED = ("a red ring", 3, 1, 2, 1.0)  # prompt, seed, steps, noises, strength


@pytest.fixture(scope="module")
def scenes():
    return load_generator("scenes", device="cpu")


def test_both_are_drawn_from_the_same_noises_as_generate_draws(scenes, tmp_path, capsys):
    drawn = draw(scenes, redness, Adapter("scenes"), *ASKED)
    for name, more, place in (("plain", [], 0), ("better", ["--adapter", "scenes"], 1)):
        call = ["generate", "a red ring", "--seed", "3", "--num-images-per-prompt", "2", *more]
        assert main([*call, "--device", "cpu", "--mixed-precision", "no", "--output-dir", str(tmp_path / name)]) == 0
        for one in drawn:
            with Image.open(tmp_path / name / f"000-seed{one.seed}.png") as picture:
                apart = np.abs(np.asarray(picture, int) - np.asarray(one.pictures[place], int))
            assert apart.max() <= 1
            pixels = torch.from_numpy(np.array(one.pictures[place])).permute(2, 0, 1)[None] / 255
            assert one.rewards[place] == pytest.approx(redness(pixels, ["any"]).item(), abs=0.005)
    assert [one.seed for one in drawn] == [3, 4]
    assert drawn[0].pictures[0].tobytes() != drawn[0].pictures[1].tobytes()


def test_strength_multiplies_f(scenes):
    network = load_adapter(scenes, Adapter("scenes")._folder)
    noise = torch.randn((1, *scenes.noise_shape), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = l2_kl(network(noise, scenes.encode(["a red ring"]))).item()
    none, half = (draw(scenes, None, Adapter("scenes"), *ASKED[:4], strength)[0] for strength in (0.0, 0.5))
    assert none.kl == 0
    assert none.pictures[0].tobytes() == none.pictures[1].tobytes()
    assert half.kl == pytest.approx(whole / 4, rel=1e-5)
    assert half.rewards == (None, None)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (1, -1, "seed must be from 0"),
        (2, 0, "num_inference_steps must be at least 1, not 0"),
        (3, 9, "noises must be at most 8, not 9"),
        (4, 1.6, "strength must be a number from 0 to 1.5, not 1.6"),
        (4, float("nan"), "strength must be a number from 0 to 1.5, not nan"),
        (0, " ", "empty"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(scenes, place, value, message):
    asked = [*ASKED[:place], value, *ASKED[place + 1 :]]
    with pytest.raises(InputError, match=message) as refused:
        draw(scenes, None, Adapter("scenes"), *asked)
    assert "\n" not in str(refused.value)


def test_an_adapter_of_another_family_is_refused(scenes, sd_pipeline, tmp_path):
    other = DiffusionGenerator(sd_pipeline(), name="tiny")
    save_adapter(LoRANoise(other, rank=1), tmp_path / "other")
    with pytest.raises(InputError, match="was made for 'tiny'"):
        draw(scenes, None, Adapter(str(tmp_path / "other")), *ASKED)


@pytest.mark.parametrize("family", ["FluxPipeline", "Flux2KleinPipeline"])
def test_f_is_shown_on_the_latent_grid(family, tmp_path):
    """Its first three channels, unpacked as the pipeline itself unpacks them."""
    generator = DiffusionGenerator(build_pipeline(family, tmp_path), name=family, size=size_of(family))
    network = LoRANoise(generator, rank=2)
    disturb(network)
    noise = torch.randn((1, *generator.noise_shape), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        f = network(noise, generator.encode(["a ring"]))
    if family == "FluxPipeline":
        grid = generator.pipeline._unpack_latents(f, *generator.size, generator.pipeline.vae_scale_factor)
    else:
        grid = generator.pipeline._unpatchify_latents(f)
    shown = as_colors(generator, f)
    expected = grid[:, :3]
    assert torch.allclose(shown, 0.5 + 0.5 * expected / expected.abs().max())
    assert shown.amin() >= 0
    assert shown.amax() <= 1
    assert (as_colors(generator, 0 * f) == 0.5).all()


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *more):
        if name == "gradio":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["app"]) == 2
    assert capsys.readouterr().err == "hypernoise: the app needs gradio: pip install 'hypernoise[app]'\n"


@pytest.fixture
def address(monkeypatch):
    """Of the page, served as the command serves it."""
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")  # which the app does not go by
    page = App(device="cpu", mixed_precision="no").page()
    _, found, shared = serve(page, None, prevent_thread_lock=True, quiet=True)
    assert not shared
    assert not page.analytics_enabled
    yield found
    page.close()


DRAWN = """[...document.querySelectorAll("#pictures img")].filter(i => i.naturalWidth > 0).map(i => i.alt)"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_person_draws_in_a_browser(address, tmp_path):
    """The page draws, refuses a wrong adapter with a message, and sends no request to another host."""
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    with urlopen(address) as answer:
        assert answer.headers["content-security-policy"] == FROM_HERE_ALONE
    with Browser(address, tmp_path, size=(1100, 1200)) as browser:
        browser.wait_for("document.querySelector('#draw') != null")
        browser.run("document.querySelector('#draw').click()")
        browser.wait_for(f"{DRAWN}.length == 12")
        assert browser.run(DRAWN) == [f"{name}, seed {seed}" for name in ("plain", "with f", "f") for seed in range(4)]
        notes = browser.run("document.querySelector('#pictures').innerText")
        assert len(re.findall(r"reward -?\d+\.\d{3}", notes)) == 8
        assert len(re.findall(r"½‖f‖² \d+\.\d{3} nats", notes)) == 4
        picture = Image.open(io.BytesIO(browser.screenshot()))
        assert picture.size == (1100, 1200)
        browser.run(
            "(() => { const box = document.querySelector('#adapter textarea, #adapter input'); box.value = 'nowhere';"
            "box.dispatchEvent(new Event('input', {bubbles: true})) })()"
        )
        browser.run("document.querySelector('#draw').click()")
        browser.wait_for("document.body.innerText.includes('no adapter at nowhere')")
        others = {one for one in browser.asked_for if not one.startswith((address, "data:", "blob:"))}
        assert others == set()


def test_a_taken_port_and_a_wrong_adapter_are_one_line(address, capsys):
    port = address.rstrip("/").rpartition(":")[2]
    assert main(["app", "--device", "cpu", "--port", port]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err
    assert main(["app", "--device", "cpu", "--adapter", "nowhere"]) == 2
    assert "no adapter at nowhere" in capsys.readouterr().err
