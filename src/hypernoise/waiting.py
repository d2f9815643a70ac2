"""How torch's threads wait for each other. To be called before torch is imported; imports nothing itself.

By default the threads of libgomp spin for some milliseconds before they sleep, and keep other processes off the cores
in the meantime. Two torch processes on two cores slow each other tens of times by it (docs/performance.md).
"""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Has waiting threads sleep at once, in this process and those it starts, unless the user has said how they wait.

    libgomp reads the environment once, when torch is imported: later it changes nothing.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
