"""How torch's threads wait for each other. Call before importing torch, which reads the setting once.

By default libgomp's threads spin for some milliseconds before they sleep, which occupies the cores.
Two torch processes on two cores slow each other down tens of times (docs/performance.md).
"""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Lets waiting threads sleep at once, in this process and its children, unless the user has configured it."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
