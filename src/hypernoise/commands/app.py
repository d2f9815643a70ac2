"""`hypernoise app`: a browser page that draws plain and improved pictures from the same noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, NamedTuple

from hypernoise.commands.common import WithGenerator
from hypernoise.errors import InputError
from hypernoise.settings import Port, Seed, seed_in_range, whole_number

MOST = 8  # noises at once
SIDE = 192  # px of a picture on the page
FROM_HERE_ALONE = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"  # no requests to other hosts


@dataclass(frozen=True)
class App(WithGenerator):
    """Serve a page to this machine's browsers only: plain and improved pictures from the same noise, the added f,
    reward and KL. Needs gradio: pip install 'hypernoise[app]'.
    """

    ESSENTIAL: ClassVar = ("generator", "adapter", "rewards", "port")
    adapter: str = "scenes"
    """An adapter directory or Hub repository; the page can load others."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Rewards to show; default on the embedded generator: the scenes reward."""
    seed: Seed = 0
    """Initial seed of the first noise."""
    port: Port = 7860

    def run(self) -> int:
        page = self.page()
        try:
            serve(page, self.port)
        except OSError as error:
            raise InputError(f"port {self.port} is taken; give another --port") from error
        return 0

    def page(self) -> Any:
        """The gradio page. Raises InputError without gradio, or if the adapter does not fit the generator."""
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import
        try:
            import gradio
        except ImportError as error:
            raise InputError("the app needs gradio: pip install 'hypernoise[app]'") from error
        from hypernoise.methods.hypernoise import Adapter
        from hypernoise.noise.base import STRENGTHS
        from hypernoise.rewards.ensemble import WeightedSum

        generator = self.load()
        weights = self.rewards or ({"scenes": 1.0} if generator.name == "scenes" else {})
        reward = WeightedSum(weights) if weights else None
        known = cache(Adapter)
        known(self.adapter).on(generator)
        self.log_precision(generator.device)

        def shown(adapter: str, *asked: Any) -> str:
            try:
                return as_table(draw(generator, reward, known(adapter.strip()), *asked))
            except InputError as error:
                raise gradio.Error(str(error), print_exception=False) from error

        with gradio.Blocks(title="hypernoise", analytics_enabled=False) as page:
            prompt = gradio.Textbox("a red circle and a blue square", label="prompt", elem_id="prompt")
            with gradio.Row():
                seed = gradio.Number(self.seed, label="seed", precision=0, elem_id="seed")
                steps = gradio.Number(generator.least_steps, label="inference steps", precision=0)
                noises = gradio.Slider(1, MOST, 4, step=1, label="noises")
                strength = gradio.Slider(*STRENGTHS, 1.0, step=0.05, label="strength")
            adapter = gradio.Textbox(self.adapter, label="adapter", elem_id="adapter")
            button = gradio.Button("Draw", variant="primary", elem_id="draw")
            pictures = gradio.HTML(elem_id="pictures")
            asked = [adapter, prompt, seed, steps, noises, strength]
            gradio.on([button.click, prompt.submit, strength.release], shown, asked, pictures, api_name="draw")
        return page


def serve(page: Any, port: int | None, **more: Any) -> Any:
    """Serves a page on the loopback address until it is interrupted; every answer forbids requests to other hosts."""
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    async def with_policy(request: Any, answer_to: Any) -> Any:
        answer = await answer_to(request)
        answer.headers["content-security-policy"] = FROM_HERE_ALONE
        return answer

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=with_policy)]
    return page.queue(default_concurrency_limit=1).launch(
        server_name="127.0.0.1", server_port=port, share=False, ssr_mode=False, run_history=False, footer_links=[],
        app_kwargs={"middleware": middleware}, **more,
    )  # fmt: skip


class Drawn(NamedTuple):
    """One noise, drawn both ways. Without a reward, rewards are None; kl is ½‖f‖² in nats."""

    seed: int
    pictures: tuple[Any, ...]  # PIL: plain, with f, f itself
    rewards: tuple[float | None, ...]  # plain, with f
    kl: float


def draw(
    generator: Any, reward: Any, adapter: Any, prompt: str, seed: int, steps: int, noises: int, strength: float
) -> list[Drawn]:
    """Draws a prompt from the noises of `seed`, `seed + 1`, ..., plain and with `strength` · f.

    Args:
        reward: of the pictures, or None; adapter: a `methods.hypernoise.Adapter`.

    Raises:
        InputError: an empty prompt, a number out of range, or an adapter of another generator.
    """
    import torch

    from hypernoise.files import picture_of
    from hypernoise.methods.base import Problem
    from hypernoise.methods.best_of_n import Plain
    from hypernoise.methods.hypernoise import HyperNoise
    from hypernoise.objective import l2_kl

    seed_in_range(seed)
    whole_number(noises, "noises", most=MOST)
    generator.check_steps(steps)
    prompts, seeds = [prompt] * noises, list(range(seed, seed + noises))
    draws = [torch.Generator(generator.device).manual_seed(own) for own in seeds]
    noise = torch.stack([torch.randn(generator.noise_shape, generator=d, device=d.device) for d in draws])
    problem = Problem(generator, reward, steps, seeds)
    with torch.no_grad():
        better = HyperNoise(adapter.on(generator), strength=strength).generate(problem, prompts, noise)
        both = [Plain().generate(problem, prompts, noise).pixels, better.pixels]
        rewards = [reward(pixels, prompts).tolist() if reward else [None] * noises for pixels in both]
    f = better.noise - noise
    pictures = [[picture_of(one) for one in batch] for batch in (*both, as_colors(generator, f))]
    rows = zip(seeds, zip(*pictures, strict=True), zip(*rewards, strict=True), l2_kl(f).tolist(), strict=True)
    return [Drawn(*row) for row in rows]


def as_colors(generator: Any, f: Any) -> Any:
    """The first three latent channels of f as red, green and blue [B, 3, H, W]: grey where it is 0."""
    from hypernoise.noise.spectral import unpacked

    channels = unpacked(f.float(), generator.family.patch, generator.cells)[:, :3]
    return 0.5 + 0.5 * channels / channels.abs().amax().clamp_min(1e-30)


def as_table(drawn: Sequence[Drawn]) -> str:
    """HTML: a column per noise, with rows for plain, with f, and f, and their measurements."""
    from hypernoise.evaluation.page import embedded

    rows = ["<th></th>" + "".join(f"<th>seed {one.seed}</th>" for one in drawn)]
    for place, name in enumerate(("plain", "with f", "f")):
        cells = [f"<th>{name}</th>"]
        for one in drawn:
            reward = (*one.rewards, None)[place]
            note = f"½‖f‖² {one.kl:.3f} nats" if name == "f" else "" if reward is None else f"reward {reward:.3f}"
            source = embedded(one.pictures[place], "PNG")
            cells.append(f'<td><img src="{source}" alt="{name}, seed {one.seed}" width={SIDE}><br>{note}</td>')
        rows.append("".join(cells))
    return f'<table style="image-rendering: pixelated">{"".join(f"<tr>{row}</tr>" for row in rows)}</table>'
