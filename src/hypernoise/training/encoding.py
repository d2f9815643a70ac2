"""Where a run's encoded prompts are kept, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from hypernoise.generators.base import Generator
from hypernoise.generators.text_cache import (
    Encode,
    KeptInMemory,
    KeptOnDisk,
    bytes_needed,
    encode_to_disk,
    text_encoders_aside,
)
from hypernoise.training.processes import gathered, say


@contextmanager
def encoder(
    kind: str, generator: Generator, folder: Path, accelerator: Accelerator, prompts: Sequence[str]
) -> Iterator[Encode]:
    """What gives prompts their conditions inside the block: "memory", "disk" (under `folder`) or "off".

    With "disk" the `prompts` are encoded first, each process its share, and the text encoders are aside until the block
    ends. Where the text encoders are sharded, every process encodes the union of all processes' prompts.
    """
    if kind == "off":
        yield generator.encode
        return
    if kind == "memory":
        everyones = partial(gathered, accelerator) if _sharded(generator) else list
        yield KeptInMemory(generator, prompts, everyones=everyones)
        return
    kept = KeptOnDisk(generator, folder)
    missing = kept.missing(prompts)
    for file in kept.damaged:
        say(f"embeddings: {file} is damaged; its prompts are encoded again")
    gib = bytes_needed(generator, missing) / 2**30
    say(f"embeddings: {len(missing)} of {len(set(prompts))} prompts to encode, {gib:.3g} GiB in {folder}")
    accelerator.wait_for_everyone()  # all have looked
    if accelerator.is_main_process:
        for file in kept.damaged:
            file.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    encode_to_disk(generator, folder, missing[accelerator.process_index :: accelerator.num_processes])
    accelerator.wait_for_everyone()
    kept = KeptOnDisk(generator, folder)
    with text_encoders_aside(generator):
        yield kept


def _sharded(generator: Generator) -> bool:
    """Whether the text encoders' weights are spread over the processes, as DTensors."""
    pipeline = getattr(generator, "pipeline", None)
    parts = pipeline.components.items() if pipeline is not None else ()
    encoders = [part for name, part in parts if name.startswith("text_encoder") and part is not None]
    return any(hasattr(weight, "device_mesh") for part in encoders for weight in part.parameters())
