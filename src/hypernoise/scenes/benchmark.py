"""The scenes world as a benchmark: held-out captions, and the judge that decides each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hypernoise.errors import InputError
from hypernoise.evaluation.benchmarks import Benchmark
from hypernoise.evaluation.records import Judgement
from hypernoise.scenes.judge import judge
from hypernoise.scenes.prompts import EVALUATION_VERSION, ScenesRewriter, digest, evaluation_requests
from hypernoise.scenes.world import Request

COUNT = 50  # captions per category


def benchmark(file: str = "", count: int = 0, judge: str = "", colors: str = "") -> Benchmark:
    """`count` held-out captions per category (0: 50)."""
    if file:
        raise InputError(f"--prompts scenes takes no file, not {file!r}")
    if judge or colors:
        raise InputError("--prompts scenes has a judge of its own: leave out --judge and --colors")
    requests = evaluation_requests(count or COUNT)
    about = {"version": EVALUATION_VERSION, "count": len(requests), "sha256": digest(requests)}
    return benchmark_of(requests, about)


def benchmark_of(requests: Sequence[Request], about: Mapping[str, Any]) -> Benchmark:
    """These requests' captions, judged without a trained model."""
    by_caption = {request.caption: request for request in requests}

    def scenes_judge(picture: np.ndarray, prompt: str) -> Judgement:
        return judge(picture, by_caption[prompt])

    scenes_judge.name = "scenes"  # pyright: ignore[reportFunctionMemberAccess]
    return Benchmark(
        prompts=[request.caption for request in requests],
        categories=[request.category for request in requests],
        load_judge=lambda device: scenes_judge,
        about=about,
        rewards={"scenes": 1.0},
        rewriter=ScenesRewriter(),
    )
