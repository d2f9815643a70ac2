"""Training checkpoints: an adapter, the rest of a run's state, and the SHA-256 of every file.

Noise, prompt order and torch's global random state are functions of the seed and the step, so nothing else is needed to
resume to the same numbers.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypernoise.adapters import PART, WEIGHTS
from hypernoise.errors import InputError
from hypernoise.files import UNFINISHED, atomic_folder, kept_json, write_json, writing

ABOUT, STATE, SUMS = "state.json", "training_state.pt", "sha256.json"


@contextmanager
def new_checkpoint(output: Path, step: int, *, keep: int) -> Iterator[Path]:
    """A folder to fill, which becomes `output`/checkpoint-STEP with its sums; then deletes all but the last `keep`.

    Raises:
        InputError: it cannot be written, for example on a full disk; earlier ones are intact.
    """
    folder = output / f"checkpoint-{step:06d}"
    with writing(f"checkpoint at step {step}", "the earlier checkpoints are intact"):
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one of the same step
        with atomic_folder(folder) as temporary:
            yield temporary
            write_json(temporary / SUMS, _sums(temporary))
    for old in checkpoints(output)[:-keep]:
        shutil.rmtree(old)


def tidied(output: Path) -> None:
    """Removes what a killed save left behind."""
    for name in (".checkpoint-*", f"{PART}*", f"*/{PART}*"):
        for left in output.glob(name):
            shutil.rmtree(left, ignore_errors=True)
    for file in output.glob(f".*{UNFINISHED}"):
        file.unlink(missing_ok=True)


def checkpoints(output: Path) -> list[Path]:
    """A run's checkpoints, oldest first; ignores other folders."""
    named = [folder for folder in output.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(named, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def newest_whole(output: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, and the faults of newer ones.

    Raises:
        InputError: all existing checkpoints are damaged.
    """
    broken: list[str] = []
    for folder in reversed(checkpoints(output)):
        if not (fault := damage(folder)):
            return folder, broken
        broken.append(f"{folder.name} is damaged ({fault})")
    if broken:
        raise InputError(
            f"every checkpoint in {output} is damaged: {'; '.join(broken)}; delete them, or give another --output-dir"
        )
    return None, broken


def damage(folder: Path) -> str:
    """A file of a checkpoint that is missing or changed; empty if all are intact."""
    recorded, found = kept_json(folder / SUMS) or {}, _sums(folder)
    wrong = (name for name in (STATE, ABOUT, WEIGHTS, *recorded) if found.get(name, "") != recorded.get(name))
    return next((f"{name} is not the file that {SUMS} records" for name in wrong), "")


def _sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file."""
    sums = {}
    for file in sorted(folder.glob("*")):  # nothing if it is a file itself
        if file.is_file() and file.name != SUMS:
            with file.open("rb") as opened:
                sums[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return sums
