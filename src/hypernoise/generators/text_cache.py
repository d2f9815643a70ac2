"""The one place where encoded prompts are kept: in memory, or on disk in memory-mapped safetensors.

A prompt's embedding is a function of its text and the text encoder alone, whatever batch it is asked for in.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from hypernoise.errors import InputError
from hypernoise.files import atomic_file, output_folder, writing
from hypernoise.generators.base import Condition, Generator

REMEMBERED = 100_000  # prompts; 400 MB of fp32 features at 1024 numbers and a window each
MEMORY = 2**30  # bytes of embeddings that are kept in memory
SHARD = 2**28  # bytes of a file on disk
LAST_CALLS = {"padding": None, "truncation": None}  # of a fast tokenizer's state: they change with every call

Encode = Callable[[list[str]], Condition]  # one row per prompt, on the generator's device
Made = TypeVar("Made")


class Remembered(Generic[Made]):
    """What `encode` makes of each prompt, made once; the oldest of more than `REMEMBERED` are forgotten."""

    def __init__(self, encode: Callable[[list[str]], Sequence[Made]]):
        self.encode = encode
        self.made: dict[str, Made] = {}

    def __call__(self, prompts: list[str]) -> list[Made]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.made]
        fresh = dict(zip(new, self.encode(new), strict=True)) if new else {}
        found = [fresh[prompt] if prompt in fresh else self.made[prompt] for prompt in prompts]
        self.made.update(fresh)
        while len(self.made) > REMEMBERED:
            self.made.pop(next(iter(self.made)))
        return found

    def clear(self) -> None:
        self.made.clear()


class KeptInMemory:
    """Encodes each prompt when it is first seen and keeps it, as long as all of them fit into `limit` bytes.

    Prompts whose embeddings differ in length are not kept. `everyones` gives the prompts that all processes ask for at
    the same time, where each must encode what any of them does.
    """

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[str],
        limit: int = MEMORY,
        everyones: Callable[[list[str]], list[str]] = list,
    ):
        self.generator, self.everyones = generator, everyones
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
        return joined([self.rows[prompt] for prompt in prompts]).to(self.generator.device)


class KeptOnDisk:
    """Reads prompts' embeddings from the safetensors files under `folder`.

    Files are named by what encodes and what is encoded, so that runs may share a folder and add to it. Files that are
    not what was written are listed in `damaged` and not used.

    Raises:
        InputError: a prompt is not there.
    """

    def __init__(self, generator: Generator, folder: Path):
        self.generator, self.folder = generator, folder
        self.places: dict[str, tuple[Any, int]] = {}
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
            rows.append(Condition({name: opened.get_slice(name)[row : row + 1] for name in opened.keys()}))  # noqa: SIM118
        return joined(rows).to(self.generator.device)

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are yet to be encoded, each once."""
        return [prompt for prompt in dict.fromkeys(prompts) if _key(prompt) not in self.places]


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
        tensors = {name: tensor.contiguous() for name, tensor in joined(encoded).tensors.items()}
        keys = [_key(text) for text in texts]
        written = json.dumps(keys)
        digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:16]
        file = folder / f"{encoders}-{digest}.safetensors"
        with writing("embeddings", "those written before are whole"), atomic_file(file) as temporary:
            save_file(tensors, temporary, metadata={"texts": written, "sha256": _sum(tensors, written)})


def size_of(condition: Condition) -> int:
    """Bytes of a condition's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in condition.tensors.values())


def fingerprint(generator: Any) -> str:
    """What the embeddings depend on besides the text: encoders, tokenizers and their settings, and the precision.

    Of the encoders' weights it sees names, shapes and three values of each; of the tokenizers all but the padding and
    truncation of their last call; of the pipeline's call what its `encode_prompt` takes.
    """
    pipeline = getattr(generator, "pipeline", None)
    if pipeline is None:
        return hashlib.sha256(generator.name.encode()).hexdigest()[:16]
    found = hashlib.sha256()
    for name, part in sorted({**_text_parts(pipeline), **generator.resting_encoders}.items()):
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
    taken = inspect.signature(pipeline.encode_prompt).parameters
    asked = {name: value for name, value in generator.call(1).items() if name in taken}
    found.update(json.dumps(asked, sort_keys=True, default=str).encode())
    return found.hexdigest()[:16]


class RestingEncoders:
    """A pipeline's text encoders, on the CPU and out of the pipeline while they are not needed.

    The pipeline's own attributes are None meanwhile, as diffusers has it for encoders that were never loaded.
    """

    def __init__(self, pipeline: Any):
        parts = _text_parts(pipeline).items()
        self.pipeline = pipeline
        self.encoders: dict[str, nn.Module] = {name: part for name, part in parts if isinstance(part, nn.Module)}
        self.rest()

    def rest(self) -> None:
        for name, encoder in self.encoders.items():
            encoder.to("cpu")
            setattr(self.pipeline, name, None)

    def wake(self, device: torch.device) -> None:
        for name, encoder in self.encoders.items():
            setattr(self.pipeline, name, encoder.to(device))

    @contextmanager
    def awake(self, device: torch.device) -> Iterator[None]:
        """Inside the block the encoders are on the device and in the pipeline."""
        self.wake(device)
        try:
            yield
        finally:
            self.rest()


@contextmanager
def text_encoders_aside(generator: Any) -> Iterator[None]:
    """Inside the block the pipeline has no text encoders; their weights wait in the CPU's memory."""
    pipeline = getattr(generator, "pipeline", None)
    if pipeline is None:
        yield
        return
    device, aside = generator.device, RestingEncoders(pipeline)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        aside.wake(device)


def separate(condition: Condition) -> list[Condition]:
    """Each row by itself, on the CPU and in memory of its own."""
    rows = [condition[row : row + 1] for row in range(len(condition))]
    return [Condition({name: tensor.to("cpu", copy=True) for name, tensor in row.tensors.items()}) for row in rows]


def joined(rows: Sequence[Condition]) -> Condition:
    """Conditions of one prompt each as one; rows that differ in length are padded with 0."""
    names = rows[0].tensors
    if _alike(rows):
        return Condition({name: torch.cat([row.tensors[name] for row in rows]) for name in names})
    return Condition({n: pad_sequence([row.tensors[n][0] for row in rows], batch_first=True) for n in names})


def _text_parts(pipeline: Any) -> dict[str, Any]:
    """The pipeline's text encoders and tokenizers, by their names in it."""
    components = pipeline.components.items()
    return {
        name: part for name, part in components if name.startswith(("text_encoder", "tokenizer")) and part is not None
    }


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def _alike(rows: Sequence[Condition]) -> bool:
    """Whether the tensors of conditions have the same names and shapes."""
    shapes = [{name: tensor.shape for name, tensor in row.tensors.items()} for row in rows]
    return all(own == shapes[0] for own in shapes)
