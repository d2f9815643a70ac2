"""`hypernoise prompts fetch SET`: a benchmark's prompts as a file, only when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import tyro

from hypernoise.errors import InputError, unknown

SETS = ("geneval",)


@dataclass(frozen=True)
class Prompts:
    """Write a benchmark's prompt file, checked against its SHA-256.

    geneval: evaluation_metadata.jsonl, made here by its published recipe from its published seed; nothing is
    downloaded.
    """

    action: Annotated[str, tyro.conf.Positional]
    """fetch."""
    name: Annotated[str, tyro.conf.Positional]
    """geneval."""
    output: Path = Path("geneval.jsonl")
    """The file to write."""

    @classmethod
    def parse(cls, arguments: list[str]) -> Self:
        return tyro.cli(cls, args=arguments, prog="hypernoise prompts")

    def run(self) -> int:
        if self.action != "fetch":
            raise unknown("action", self.action, ["fetch"])
        if self.name not in SETS:
            raise unknown("prompt set", self.name, SETS)
        if self.output.is_dir():
            raise InputError(f"{self.output} is a folder; --output names the file to write")
        from hypernoise.evaluation.geneval.official import SHA256, metadata
        from hypernoise.files import output_folder, write_text

        text = metadata()
        output_folder(self.output.parent)
        write_text(self.output, text)
        print(f"{self.output}: {len(text.splitlines())} prompts, SHA-256 {SHA256}")
        return 0
