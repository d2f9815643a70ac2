"""Files from the Hugging Face Hub, with error messages that say what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import constants, errors, hf_hub_download, snapshot_download

from hypernoise.errors import InputError, first_line, out_of_memory

TRANSPORT: type[Exception] = errors.HfHubHTTPError.__mro__[1]  # the base error of the Hub's HTTP client
UNREACHABLE = (ConnectionError, TimeoutError, TRANSPORT)
HUB_ERRORS = (*UNREACHABLE, errors.EntryNotFoundError, errors.HFValidationError)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def fetch(repository: str, *files: str, revision: str | None = None) -> Path:
    """The first of these files that a repository has, from the local Hub cache or downloaded. InputError explains a
    failure."""
    with explained(repository, revision, " or ".join(files)):
        for file in files[:-1]:
            with suppress(errors.EntryNotFoundError):  # also if it is not cached and the Hub is unreachable
                return Path(hf_hub_download(repository, file, revision=revision))
        return Path(hf_hub_download(repository, files[-1], revision=revision))


@contextmanager
def explained(repository: str, revision: str | None, wanted: str, what: str = "") -> Iterator[None]:
    """Turns a Hub error in the block, or behind a loading library's error there, into one line that says what to do;
    every other error too, if `what` names the thing that is loaded from the repository or folder."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HUB_ERRORS):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise InputError(_advice(cause, repository, revision, wanted)) from error
        if not what:
            raise
        get = f" (files may be missing in the local cache: {_download(repository, revision)})"
        message = f"{what} could not be loaded from {repository}: {first_line(error)}"
        raise InputError(message + ("" if os.path.isdir(repository) else get)) from error


def _advice(error: Exception, repository: str, revision: str | None, wanted: str) -> str:
    login = "log in with hf auth login"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated: accept its licence at https://huggingface.co/{repository}, then {login}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no repository {repository} on the Hub, or it is private: check the name, or {login}"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        get = _download(repository, revision)
        return f"{repository}: {wanted} is not in the local cache and {why}; with a network connection, run: {get}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repository} has no {wanted}"
    return f"{repository} cannot be downloaded: {first_line(error)}"


def _download(repository: str, revision: str | None) -> str:
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")


def fetch_adapter(repository: str, revision: str | None = None) -> Path:
    """An adapter's top-level safetensors and JSON files, as a local directory; downloads those that are not cached.
    Raises InputError if the repository cannot be downloaded, or has no safetensors adapter."""
    kept = ["*.safetensors", "*.json"]
    with explained(repository, revision, "an adapter"):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=kept, ignore_patterns=["*/*"]))
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{repository} holds no safetensors adapter; a pickled one is not read")
    return folder
