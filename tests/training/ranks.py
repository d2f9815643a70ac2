"""A function in several processes that know of each other, as a launcher would start them, forked: nothing is imported
again."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

from accelerate.state import AcceleratorState, GradientState

FORK = multiprocessing.get_context("fork")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(count: int, function: Callable[[], Any]) -> tuple[list[BaseProcess], Any]:
    """The processes, and the queue that gets (rank, answer or traceback) from each."""
    answers, port, ranks = FORK.SimpleQueue(), free_port(), []
    for rank in range(count):
        process = FORK.Process(target=_run, args=(rank, count, port, function, answers))
        process.start()
        ranks.append(process)
    return ranks, answers


def on_ranks(count: int, function: Callable[[], Any]) -> list[Any]:
    """What `function` returns in each of `count` processes, by rank."""
    ranks, answers = start_ranks(count, function)
    found = dict(answers.get() for _ in ranks)
    for process in ranks:
        process.join(60)
    for answer in found.values():
        assert not isinstance(answer, str), answer
    return [found[rank] for rank in range(count)]


def _run(rank: int, count: int, port: int, function: Callable[[], Any], answers: Any) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"})
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        answers.put((rank, function()))
    except BaseException:
        answers.put((rank, traceback.format_exc()))
