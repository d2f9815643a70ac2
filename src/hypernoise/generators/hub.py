"""Files from the Hugging Face Hub, with error messages that say what to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hypernoise.errors import InputError, first_line

TRANSPORT: type[Exception] = HfHubHTTPError.__mro__[1]  # the base error of the Hub's HTTP client
UNREACHABLE = (ConnectionError, TimeoutError, TRANSPORT)
HUB_ERRORS = (*UNREACHABLE, EntryNotFoundError, HFValidationError)
ADAPTER_FILES = (".safetensors", ".json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def fetch(repository: str, file: str, revision: str | None = None) -> Path:
    """A repository's file, from the local Hub cache or downloaded. InputError explains a failure."""
    with explained(repository, revision, file):
        return Path(hf_hub_download(repository, file, revision=revision))


@contextmanager
def explained(repository: str, revision: str | None, wanted: str) -> Iterator[None]:
    """Turns the Hub's errors in the block into one line: gated, missing, offline and not cached, refused."""
    at = f" --revision {revision}" if revision else ""
    get = f"hf download {repository}{at}"
    try:
        yield
    except GatedRepoError as error:
        raise InputError(
            f"{repository} is gated: accept its licence at https://huggingface.co/{repository}, then log in with "
            "hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{repository} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"there is no repository {repository} on the Hub, or it is private: check the name, or log in with "
            "hf auth login"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise InputError(
            f"{repository}: {wanted} is not in the local cache and {why}; where there is a network, run: {get}"
        ) from error
    except EntryNotFoundError as error:
        raise InputError(f"{repository} has no {wanted}") from error
    except (*UNREACHABLE, HFValidationError) as error:
        raise InputError(f"{repository} cannot be downloaded: {first_line(error)}") from error


def hub_cause(error: BaseException) -> Exception | None:
    """The Hub's error behind a loading library's error, if any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HUB_ERRORS):
        cause = cause.__cause__ or cause.__context__
    return cause


def fetch_adapter(repository: str, revision: str | None = None) -> Path:
    """An adapter's top-level safetensors and JSON files, as a local directory.

    Downloads uncached files, after printing their size to stderr.

    Raises:
        InputError: the repository cannot be downloaded, or has no safetensors adapter.
    """
    kept = [f"*{suffix}" for suffix in ADAPTER_FILES]
    files = _listed(repository, revision)
    if files is not None:
        top = [f for f in files if "/" not in f.rfilename and f.rfilename.endswith(ADAPTER_FILES)]
        wanted = {f.rfilename: f.size or 0 for f in top}
        if not any(name.endswith(".safetensors") for name in wanted):
            raise InputError(
                f"{repository} holds no safetensors adapter; a pickled one is only read from a directory: "
                f"hf download {repository} --local-dir DIR, then name DIR"
            )
        if not all(cached(repository, name, revision) for name in wanted):
            print(f"downloading {repository}: {sum(wanted.values()) / 1e6:.1f} MB", file=sys.stderr)
        kept = list(wanted)
    with explained(repository, revision, "an adapter"):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=kept, ignore_patterns=["*/*"]))


def _listed(repository: str, revision: str | None) -> list[Any] | None:
    """A repository's files with their sizes; None if the Hub is unreachable, so that the cache is used."""
    if constants.HF_HUB_OFFLINE:
        return None
    with explained(repository, revision, "an adapter"):
        try:
            return HfApi().model_info(repository, revision=revision, files_metadata=True).siblings or []
        except HfHubHTTPError:  # it responded
            raise
        except UNREACHABLE:
            return None


def cached(repository: str, file: str, revision: str | None) -> bool:
    """Whether the file is in the local Hub cache."""
    return isinstance(try_to_load_from_cache(repository, file, revision=revision), str)
