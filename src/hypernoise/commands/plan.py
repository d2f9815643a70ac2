"""`hypernoise train --dry-run`: what a recipe will take, before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hypernoise.training.config import Recipe

if TYPE_CHECKING:
    from hypernoise.planning.estimate import Planned
    from hypernoise.planning.rows import Plans


def plan(recipe: Recipe, output_dir: Path) -> int:
    """Prints parameters, peak memory, arithmetic, and what each memory option would save, and writes summary.json.

    The generator is built from its published configuration, or that of a local directory, without data, and the
    training step is run on it. Memory leaves out rewards that are not counted, kernels' workspaces and the framework's
    own few hundred MB.
    """
    from hypernoise.commands.common import write_summary
    from hypernoise.files import output_folder
    from hypernoise.planning.estimate import lora_parameters
    from hypernoise.planning.rows import plan_generator, plan_rows, planned_network

    folder = output_folder(output_dir)
    planned = plan_generator(recipe)
    network = planned_network(recipe, planned)
    trained = lora_parameters(network)
    network.remove()
    found = plan_rows(recipe)
    print(page(recipe, planned, trained, found))
    rows = [
        {
            "option": name,
            "training_peak_bytes": train.peak,
            "training_bytes": train.parts,
            "kept_bytes": train.kept,
            "flops_per_step": {k: v * recipe.gradient_accumulation_steps for k, v in train.flops.items()},
        }
        for name, train in found.training.items()
    ]
    more = {
        "trained_parameters": trained,
        "drawing_peak_bytes": found.drawing.peak,
        "drawing_bytes": found.drawing.parts,
        "overhead": found.overhead,
        "reward_parameters": found.rewards.parameters,
        "revision": _revision(recipe, planned),
    }
    write_summary(folder, "train", recipe, "meta", rows, **more)
    return 0


def page(recipe: Recipe, planned: Planned, trained: dict[str, int], found: Plans) -> str:
    import torch

    from hypernoise.precision import resolve

    generator, as_asked = planned.generator, found.training["as in the recipe"]
    frozen = sum(p.numel() for n, p in generator.denoiser.named_parameters() if ".lora_" not in n)
    autoencoder = sum(p.numel() for p in generator.pipeline.vae.parameters())
    kinds = ", ".join(f"{kind} {_millions(count)}" for kind, count in sorted(trained.items(), key=lambda kv: -kv[1]))
    rewards, published = found.rewards.parameters, planned.preset.repository
    licence = f"licence      to be accepted first, at https://huggingface.co/{published}"
    per = recipe.train_batch_size // recipe.gradient_accumulation_steps
    lines = [
        f"{recipe.generator} at {generator.size[1]} x {generator.size[0]}, "
        f"{resolve(recipe.mixed_precision, torch.device('meta')).line}; "
        f"{recipe.train_batch_size} pictures a step, {per} at once; rank {recipe.lora.rank}",
        *([f"weights      {published}, revision {_revision(recipe, planned)}"] if published else []),
        *([licence] if planned.preset.gated else []),
        f"parameters   frozen: denoiser {_millions(frozen)}, autoencoder {_millions(autoencoder)}, text encoders "
        f"{_millions(planned.text_parameters)}",
        f"             trained: {_millions(sum(trained.values()))} ({kinds})",
        f"training     {_gigabytes(as_asked.peak)} at the peak: {_parts(as_asked.parts)}",
        f"             kept for the gradient by: {_parts(as_asked.kept)}",
        f"drawing      {_gigabytes(found.drawing.peak)} at the peak, one picture, {found.steps} steps: "
        f"{_parts(found.drawing.parts)}",
        "arithmetic   TFLOP a picture in training: "
        + ", ".join(f"{name} {flops / per / 1e12:.3g}" for name, flops in as_asked.flops.items()),
        f"overhead     one extra call: +{100 * found.overhead[1]:.0f} % at 1 step"
        + "".join(f", +{100 * value:.0f} % at {n}" for n, value in found.overhead.items() if n > 1),
        "rewards      "
        + (", ".join(f"{n} {_millions(c) if c else 'not counted'}" for n, c in rewards.items()) or "no networks")
        + (f", on {recipe.reward_device}: not counted" if recipe.reward_device and rewards else ""),
        "to save memory in training:",
    ]
    for name, other in found.training.items():
        if name != "as in the recipe":
            saved = as_asked.peak - other.peak
            lines.append(f"  {name:<26}{_gigabytes(other.peak):>10}  ({_gigabytes(saved)} less)")
    return "\n".join(lines)


def _revision(recipe: Recipe, planned: Planned) -> str:
    """What will be loaded: the revision asked for, the pinned one, or the newest."""
    return recipe.revision or planned.preset.revision or "main (the newest; none is pinned)"


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items())


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} M"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e8 else f"{size / 1e6:.1f} MB"
