"""Files from the Hugging Face Hub, asked for by name, with refusals that say what to do about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
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

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def fetch(repository: str, file: str, revision: str | None = None) -> Path:
    """A repository's file, from the local Hub cache or downloaded. InputError says why it cannot be had."""
    with explained(repository, revision, file):
        return Path(hf_hub_download(repository, file, revision=revision))


@contextmanager
def explained(repository: str, revision: str | None, wanted: str) -> Iterator[None]:
    """The Hub's errors in the block as one line: gated, missing, offline and not cached, refused."""
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
    except (HfHubHTTPError, HFValidationError, ConnectionError) as error:
        raise InputError(f"{repository} cannot be downloaded: {first_line(error)}") from error
