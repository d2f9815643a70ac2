"""Prompts encoded once: kept in memory, or on disk in memory-mapped safetensors with the text encoders set aside.

A prompt's embedding is a function of its text and the text encoder alone, whatever batch it is asked for in.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from hypernoise.errors import InputError
from hypernoise.files import atomic_file, output_folder, writing
from hypernoise.generators.base import Condition, Generator
from hypernoise.generators.diffusion import DiffusionGenerator
from hypernoise.training.processes import gathered, say

MEMORY = 2**30  # bytes of embeddings that are kept in memory
SHARD = 2**28  # bytes of a file on disk
LAST_CALLS = {"padding": None, "truncation": None}  # of a fast tokenizer's state: they change with every call


class Encoded:
    """The conditions of prompts; this one keeps none and encodes every batch."""

    def __init__(self, generator: Generator):
        self.generator = generator

    def __call__(self, prompts: list[str]) -> Condition:
        """One row per prompt, on the generator's device."""
        return self.generator.encode(prompts)


class KeptInMemory(Encoded):
    """Each prompt is encoded when it is first seen, and kept; as long as all of them fit into `limit` bytes.

    Prompts whose embeddings differ in length are not kept. `everyones` gives those that all processes ask for at
    once, where each must encode what any of them does.
    """

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[str],
        limit: int = MEMORY,
        everyones: Callable[[list[str]], list[str]] = list,
    ):
        super().__init__(generator)
        self.everyones = everyones
        self.rows: dict[str, Condition] = {}
        self.limit, self.count = limit, len(set(prompts))
        self.fits = True

    def __call__(self, prompts: list[str]) -> Condition:
        asked = list(dict.fromkeys(self.everyones(prompts)))
        for prompt in asked:
            if self.fits and prompt not in self.rows:
                self.rows[prompt] = self.generator.encode([prompt]).to("cpu")
                self.fits = self.count * size_of(self.rows[prompt]) <= self.limit
        if not (self.fits and _alike([self.rows[prompt] for prompt in asked])):
            self.fits = False
            self.rows.clear()
            return self.generator.encode(prompts)
        return _joined([self.rows[prompt] for prompt in prompts]).to(self.generator.device)


class KeptOnDisk(Encoded):
    """All prompts' embeddings in safetensors files under `folder`, read as they are needed.

    Files are named by what encodes and what is encoded, so that runs may share a folder and add to it. Those that are
    not what was written are `damaged` and not used.

    Raises:
        InputError: a prompt is not there.
    """

    def __init__(self, generator: Generator, folder: Path):
        super().__init__(generator)
        self.places: dict[str, tuple[Any, int]] = {}
        self.folder = folder
        self.damaged: list[Path] = []
        for file in sorted(folder.glob(f"{fingerprint(generator)}-*.safetensors")):
            opened, texts = _whole(file)
            if opened is None:
                self.damaged.append(file)
            self.places |= {text: (opened, row) for row, text in enumerate(texts)}

    def __call__(self, prompts: list[str]) -> Condition:
        rows = []
        for prompt in prompts:
            if _key(prompt) not in self.places:
                raise InputError(
                    f"{prompt!r} is not among the embeddings in {self.folder}; if nodes do not share it, "
                    "give each its own --embeddings-folder or take --embeddings memory"
                )
            opened, row = self.places[_key(prompt)]
            rows.append({name: opened.get_slice(name)[row : row + 1] for name in opened.keys()})  # noqa: SIM118
        tensors = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return Condition(tensors).to(self.generator.device)

    def __contains__(self, prompt: str) -> bool:
        return _key(prompt) in self.places

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are yet to be encoded, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self]


def _whole(file: Path) -> tuple[Any, list[str]]:
    """A file of embeddings, opened, and the keys of its rows; (None, []) if it is not what was written."""
    try:
        opened: Any = safe_open(file, "pt")
        about = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if about["sha256"] == _sum(tensors, about["texts"]):
            return opened, json.loads(about["texts"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        pass
    return None, []


def _sum(tensors: Mapping[str, torch.Tensor], texts: str) -> str:
    found = hashlib.sha256(texts.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def missing_from(generator: Generator, folder: Path, prompts: Sequence[str]) -> list[str]:
    """The prompts that are yet to be encoded, each once."""
    return KeptOnDisk(generator, folder).missing(prompts)


def bytes_needed(generator: Generator, prompts: Sequence[str]) -> int:
    """What the embeddings of these prompts will take on disk."""
    return size_of(generator.encode([prompts[0]])) * len(prompts) if prompts else 0


def encode_to_disk(generator: Generator, folder: Path, prompts: Sequence[str]) -> None:
    """Adds the embeddings of prompts, file by file, each whole or not at all.

    Raises:
        InputError: too little room, or embeddings that differ in length.
    """
    if not prompts:
        return
    output_folder(folder)
    needed, free = bytes_needed(generator, prompts), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{len(prompts)} prompts take {needed / 2**30:.2f} GiB as embeddings, {folder} has {free / 2**30:.2f} "
            "GiB left; give another --embeddings-folder, or take --embeddings off"
        )
    per_file = max(1, SHARD // (needed // len(prompts)))
    encoders = fingerprint(generator)
    for start in range(0, len(prompts), per_file):
        texts = prompts[start : start + per_file]
        encoded = [generator.encode([text]).to("cpu") for text in texts]
        if not _alike(encoded):
            raise InputError(f"{generator.name!r} gives embeddings of differing lengths; take --embeddings off")
        rows = _joined(encoded)
        keys = [_key(text) for text in texts]
        digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        file = folder / f"{encoders}-{digest}.safetensors"
        with writing("embeddings", "those written before are whole"), atomic_file(file) as temporary:
            tensors = {name: tensor.contiguous() for name, tensor in rows.tensors.items()}
            told = json.dumps(keys)
            save_file(tensors, temporary, metadata={"texts": told, "sha256": _sum(tensors, told)})


def size_of(condition: Condition) -> int:
    """Bytes of a condition's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in condition.tensors.values())


def fingerprint(generator: Generator) -> str:
    """What the embeddings depend on besides the text: encoders, tokenizers and their settings, and the precision.

    Of the encoders' weights, names, shapes and three values of each are looked at; of the tokenizers all but the
    padding and truncation of their last call; of the pipeline's call what its `encode_prompt` takes.
    """
    found = hashlib.sha256(generator.name.encode() if not isinstance(generator, DiffusionGenerator) else b"")
    resting = generator.resting_encoders if isinstance(generator, DiffusionGenerator) else {}
    for name, part in sorted({**_parts(generator), **resting}.items()):
        found.update(name.encode() + type(part).__name__.encode())
        if isinstance(part, nn.Module):
            config: Any = getattr(part, "config", None)
            found.update(json.dumps(config.to_dict() if config is not None else None, default=str).encode())
            for own, weight in part.named_parameters():
                flat = weight.detach().flatten()
                values = [float(flat[i]) for i in (0, len(flat) // 2, -1)]
                found.update(f"{own} {list(weight.shape)} {weight.dtype} {values}".encode())
        else:
            fast = getattr(part, "backend_tokenizer", None)
            words = {**json.loads(fast.to_str()), **LAST_CALLS} if fast is not None else part.get_vocab()
            found.update(f"{part.model_max_length} {json.dumps(words, sort_keys=True)}".encode())
    if isinstance(generator, DiffusionGenerator):
        taken = inspect.signature(generator.pipeline.encode_prompt).parameters
        asked = {name: value for name, value in generator.call(1).items() if name in taken}
        found.update(json.dumps(asked, sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]


@contextmanager
def text_encoders_aside(generator: Generator) -> Iterator[None]:
    """Inside the block the pipeline has no text encoders; their weights wait in the CPU's memory."""
    if not isinstance(generator, DiffusionGenerator):
        yield
        return
    device = generator.device
    encoders = {name: part for name, part in _parts(generator).items() if isinstance(part, nn.Module)}
    for name, encoder in encoders.items():
        setattr(generator.pipeline, name, None)
        encoder.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        for name, encoder in encoders.items():
            setattr(generator.pipeline, name, encoder.to(device))


def _parts(generator: Generator) -> Mapping[str, Any]:
    """The pipeline's text encoders and tokenizers, by their names in it."""
    if not isinstance(generator, DiffusionGenerator):
        return {}
    components = generator.pipeline.components.items()
    return {
        name: part for name, part in components if name.startswith(("text_encoder", "tokenizer")) and part is not None
    }


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def _alike(rows: Sequence[Condition]) -> bool:
    """Whether the tensors of conditions have the same names and shapes."""
    shapes = [{name: tensor.shape for name, tensor in row.tensors.items()} for row in rows]
    return all(own == shapes[0] for own in shapes)


def _joined(rows: Sequence[Condition]) -> Condition:
    """Conditions of one prompt each, and alike, as one."""
    return Condition({name: torch.cat([row.tensors[name] for row in rows]) for name in rows[0].tensors})


@contextmanager
def encoder(
    kind: str, generator: Generator, folder: Path, accelerator: Accelerator, prompts: Sequence[str]
) -> Iterator[Encoded]:
    """What gives prompts their conditions inside the block: "memory", "disk" (under `folder`) or "off".

    With "disk" `prompts` are encoded first, their share by each process, the size told beforehand, and the text
    encoders are aside until the block ends.
    """
    if kind != "disk":
        together = getattr(generator, "encodes_together", False)
        everyones = partial(gathered, accelerator) if together else list
        yield KeptInMemory(generator, prompts, everyones=everyones) if kind == "memory" else Encoded(generator)
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
