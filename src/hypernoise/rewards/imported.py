"""A user's reward by its import path, "module:name": a function, or a class constructed without arguments."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import cast

from hypernoise.errors import no_traceback, unknown
from hypernoise.rewards.base import RewardFunction, check_callable


def imported(path: str) -> RewardFunction:
    """The reward at "module:name"; searches the working directory first, as `python -m` does.

    Importing a module runs it: only name modules that you would run.

    Raises:
        InputError: no such module or name, or something that is not callable.
    """
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    with no_traceback(f"reward {path!r}: module {module_name!r} cannot be imported from {here}"):
        module = import_module(module_name)
    if not hasattr(module, name):
        raise unknown(f"name in {module_name}", name, [known for known in vars(module) if not known.startswith("_")])
    found = getattr(module, name)
    if isinstance(found, type):
        with no_traceback(f"reward {path!r}: the class cannot be constructed without arguments"):
            found = found()
    check_callable(found, f"reward {path!r}")
    return cast("RewardFunction", found)
