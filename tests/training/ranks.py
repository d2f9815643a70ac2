"""A function in several processes of one group, as a launcher would start them, forked: nothing is imported
again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState

FORK = multiprocessing.get_context("fork")
LIMIT = 300  # seconds that the ranks of a test may take


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(count: int, function: Callable[[], Any], answers: Path | None = None) -> list[BaseProcess]:
    """The processes; each writes the result of `function`, or its traceback, to a file under `answers`."""
    port, ranks = free_port(), []
    for rank in range(count):
        process = FORK.Process(target=_run, args=(rank, count, port, function, answers), daemon=True)
        process.start()
        ranks.append(process)
    return ranks


def kill(ranks: list[BaseProcess]) -> None:
    for process in ranks:
        process.kill()
    for process in ranks:
        process.join()


def on_ranks(count: int, function: Callable[[], Any]) -> list[Any]:
    """What `function` returns in each of `count` processes, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        ranks, until = start_ranks(count, function, Path(folder)), time.monotonic() + LIMIT
        files = [Path(folder) / str(rank) for rank in range(count)]
        try:
            while any(process.is_alive() for process in ranks) and time.monotonic() < until:
                if any(process.exitcode for process in ranks):  # the others may wait for it for ever
                    break
                time.sleep(0.02)
        finally:
            kill(ranks)
        found = [pickle.loads(file.read_bytes()) if file.exists() else (False, "no answer") for file in files]
    for good, answer in found:
        assert good, answer
    return [answer for _, answer in found]


def _run(rank: int, count: int, port: int, function: Callable[[], Any], answers: Path | None) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"})
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        answer = True, function()
    except BaseException:
        answer = False, traceback.format_exc()
        print(answer[1], file=sys.stderr, flush=True)
    if answers is not None:
        (answers / f".{rank}").write_bytes(pickle.dumps(answer))
        (answers / f".{rank}").rename(answers / str(rank))
    os._exit(0 if answer[0] else 1)  # without what the parent would do at its end
