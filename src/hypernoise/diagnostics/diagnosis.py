"""All measurements of one noise network, and their verdict in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hypernoise.diagnostics.kl import KLReport, estimate_kl
from hypernoise.diagnostics.lipschitz import kl_gap_bound, spectral_norm
from hypernoise.diagnostics.swap import Swap, swap_control
from hypernoise.diagnostics.whiteness import Band, Check, band_powers, white_checks
from hypernoise.errors import InputError
from hypernoise.generators.base import Generator
from hypernoise.noise.base import NoiseNetwork
from hypernoise.noise.draws import DIAGNOSIS_STEP, noise_for
from hypernoise.prompts import spread
from hypernoise.rewards.base import RewardFunction

MISSED = 0.1  # share of the KL that the L2 term may miss
GENERIC = 0.2  # share of the gain that another prompt's residual must lose for f to count as prompt-specific
CERTAIN = 3.0  # standard errors
WHITE = 3.5  # standard errors: two-sided 5 % over a hundred independent statistics
CLAMP = "train with --lipschitz.mode clamp"
MORE_NOISES = "more --noises; the error falls with their square root"


@dataclass(frozen=True)
class Diagnosis:
    """The measurements. Norms and powers are per noise; KLs in nats.

    norms: ‖J‖₂ at each noise. distance: mean ‖f‖ / √d.
    bands: f's power by frequency (None for noise that is not an image). checks: of x + f against N(0, I).
    swap: None with a single prompt.
    """

    dimensions: int
    kl: KLReport
    norms: list[float]
    distance: float
    bands: list[Band] | None
    checks: list[Check]
    swap: Swap | None

    @property
    def lipschitz(self) -> float:
        """The largest measured stretch: a lower bound of Lip(f)."""
        return max(self.norms)

    @property
    def may_fold(self) -> bool:
        """Whether x + f may map two noises to one point: the KL is then a lower bound."""
        return not self.kl.own and self.lipschitz >= 1


@dataclass(frozen=True)
class Finding:
    """One line of the verdict; `advice` says what to change, if anything."""

    name: str
    good: bool
    text: str
    advice: str = ""


def diagnose(
    generator: Generator,
    network: NoiseNetwork,
    reward: RewardFunction,
    prompts: list[str],
    *,
    noises: int = 32,
    num_inference_steps: int = 1,
    seed: int = 0,
    batch: int = 16,
) -> Diagnosis:
    """Measures a noise network on `noises` noises, with prompts spaced evenly over the list.

    Args:
        num_inference_steps: denoiser calls per picture.

    Raises:
        InputError: fewer than 8 noises, or no prompt.
    """
    if noises < 8:
        raise InputError(f"a diagnosis needs at least 8 noises, not {noises}")
    if not prompts:
        raise InputError("no prompt to diagnose on")
    texts = spread(prompts, noises)
    noise = noise_for(generator, network, seed=seed, step=DIAGNOSIS_STEP, samples=range(noises))
    condition = generator.encode(texts)
    parts = [slice(start, start + batch) for start in range(0, noises, batch)]
    norms = torch.cat([spectral_norm(network, noise[part], condition[part], seed=seed) for part in parts])
    with torch.no_grad():
        residual = torch.cat([network(noise[part], condition[part]).to(noise) for part in parts])
    drawing = {"num_inference_steps": num_inference_steps, "batch": batch}
    return Diagnosis(
        dimensions=noise[0].numel(),
        kl=estimate_kl(network, noise, condition, batch=batch, seed=seed),
        norms=norms.tolist(),
        distance=(residual.flatten(1).norm(dim=1) / math.sqrt(noise[0].numel())).mean().item(),
        bands=band_powers(residual) if noise.ndim == 4 else None,
        checks=white_checks(noise + residual),
        swap=swap_control(generator, network, reward, texts, noise, **drawing) if len(set(texts)) > 1 else None,
    )


def findings(found: Diagnosis) -> list[Finding]:
    """The verdict, one line per question."""
    moved = Finding("distance", True, f"‖f‖ is {found.distance:.1%} of √d")
    return [_trust(found), _stretch(found), moved, _white(found), _prompt(found)]


def _trust(found: Diagnosis) -> Finding:
    kl, l2, gap = found.kl.kl, found.kl.l2, found.kl.gap
    if found.kl.own:
        return Finding("KL", True, f"{kl} nats, exact, as it was trained on; ½‖f‖² would be {l2}")
    least = "at least " if found.may_fold else ""
    text = f"KL {least}{kl} nats, of which ½‖f‖² is {l2.value:.4g} and the terms left out {gap}"
    if math.isinf(kl.value):
        text = "the KL is infinite, as x + f collapses noise to fewer dimensions"
    limit, error, missed = MISSED * max(kl.value, l2.value), CERTAIN * gap.error, abs(gap.value)
    if math.isinf(kl.value) or missed - error > limit:
        verdict, advice = "not trustworthy", f"{CLAMP}, or a larger --kl-weight"
    elif missed + error > limit:
        verdict, advice = "undecided", MORE_NOISES
    elif found.may_fold:
        verdict, advice = "a lower bound, as x + f may fold noises onto each other", f"{CLAMP}: below 1 nothing folds"
    else:
        verdict, advice = "trustworthy", ""
    return Finding("L2 term", not advice, f"{verdict}: {text}", advice)


def _stretch(found: Diagnosis) -> Finding:
    seen = f"{found.lipschitz:.3g} measured"
    if found.kl.own:
        return Finding("Lipschitz", True, f"{seen}; at any value x + f never folds and its KL is exact")
    if found.lipschitz < 1:
        bound = kl_gap_bound(found.dimensions, found.lipschitz)
        text = f"{seen}, below 1; if that holds everywhere, the terms left out are at most {bound:.3g}"
        return Finding("Lipschitz", True, text)
    over = sum(norm >= 1 for norm in found.norms)
    text = (
        f"{seen}, above 1 at {over} of {len(found.norms)} noises, where the theory gives no bound and x + f may fold "
        "noises onto each other"
    )
    advice = f"{CLAMP} --lipschitz.bound 0.5, a smaller --learning-rate, or a larger --kl-weight"
    return Finding("Lipschitz", False, text, advice)


def _white(found: Diagnosis) -> Finding:
    worst = max(found.checks, key=lambda check: abs(check.z))
    text = f"{worst.name} is {worst.found:.4g} where N(0, I) has {worst.expected:g}, {worst.z:+.1f} standard errors"
    if abs(worst.z) < WHITE:
        return Finding("white", True, f"{len(found.checks)} statistics do not distinguish x + f from N(0, I); {text}")
    return Finding("white", False, f"x + f is not white: {text}", "a larger --kl-weight keeps it nearer")


def _prompt(found: Diagnosis) -> Finding:
    swap = found.swap
    if swap is None:
        return Finding("prompt", True, "not tested: a swap needs at least two different prompts, but there is only one")
    own, lost = swap.own, swap.lost
    text = f"reward {own} over plain with its own prompt's f, {swap.swapped} with another's"
    if own.value <= CERTAIN * own.error:
        advice = "train longer, a smaller --kl-weight, more --noises"
        return Finding("prompt", False, f"no gain measured: {text}", advice)
    share, error = lost.value / own.value, lost.error / own.value
    if share > CERTAIN * error and share >= GENERIC:
        verdict, advice = "specific", ""
    elif share + CERTAIN * error >= GENERIC:
        verdict, advice = "undecided", MORE_NOISES
    else:
        verdict, advice = "generic", "a reward that reads the prompt, if the prompt is meant to matter"
    swapped = f"{share:.0%} ± {error:.0%} of the gain is lost when prompts are swapped"
    return Finding("prompt", not advice, f"{verdict}: {swapped}; {text}", advice)
