"""Where prompts come from, and which of them a training step sees."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np

from hypernoise.errors import InputError

PROMPT_SETS = {"scenes": ("hypernoise.scenes.prompts", "training_prompts")}


def read_prompts(source: str) -> list[str]:
    """The prompts of a text file, one a line, or of a named set ("scenes").

    Raises:
        InputError: no such file, not text, or no prompt in it.
    """
    if source in PROMPT_SETS:
        module, function = PROMPT_SETS[source]
        return getattr(import_module(module), function)()
    try:
        lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"prompts {source!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"prompts {source!r} is not UTF-8 text") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"prompts {source!r} holds no prompt; write one a line")
    return prompts


def prompts_of_step(prompts: list[str], step: int, batch_size: int, seed: int) -> list[str]:
    """The batch of a step: every prompt once per epoch, in an order keyed by (seed, epoch) alone."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: np.random.default_rng([seed, int(epoch)]).permutation(len(prompts))
        for epoch in np.unique(places // len(prompts))
    }
    return [prompts[orders[place // len(prompts)][place % len(prompts)]] for place in places]
