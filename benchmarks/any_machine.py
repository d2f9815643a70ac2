"""`hypernoise quickstart` on two cores with only AVX2, like most CPUs: alone, and next to other work.

    python -m benchmarks.any_machine                                     # the targets: 5 minutes, and 2.5 times that
    python -m benchmarks.any_machine -- --judged 2                       # anything after -- goes to quickstart
    python -m benchmarks.any_machine --waiting 5                         # what sleeping threads cost and gain, a minute

ONEDNN_MAX_CPU_ISA=AVX2 and ATEN_CPU_CAPABILITY=avx2 restrict any x86 machine to AVX2. The other work is one
process that never waits. Prints the seconds, their ratio, and PASS or FAIL; exits with 1 on FAIL.

`--waiting` measures a separate torch job, six convolutions on two threads for so many seconds, with libgomp's default
waiting, with OMP_WAIT_POLICY=PASSIVE, and on one thread, each alone and next to the other work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
CORES = 2
JOB = """
import sys, time, torch
torch.manual_seed(0)
layers = torch.nn.Sequential(*(torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(6)))
pixels = torch.randn(4, 32, 32, 32)
with torch.no_grad():
    layers(pixels)
    began = time.perf_counter()
    calls = 0
    while time.perf_counter() - began < float(sys.argv[1]):
        layers(pixels)
        calls += 1
print(calls / (time.perf_counter() - began))
"""
WAYS = {
    "two threads, libgomp's default": {"OMP_NUM_THREADS": "2"},
    "two threads, PASSIVE": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@contextmanager
def busy(cores: set[int]) -> Iterator[None]:
    """A process on these cores that never waits."""
    process = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {cores})\nwhile True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def environment(**more: str) -> dict[str, str]:
    """The user's environment with only AVX2, without their thread settings."""
    words = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    return {**{name: value for name, value in os.environ.items() if name not in words}, **AVX2, **more}


def quickstart(arguments: list[str]) -> float:
    """Seconds of the command from scratch, in its own folder."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "hypernoise.cli", "quickstart", "--device", "cpu", *arguments]
        began = time.perf_counter()
        subprocess.run(call, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def calls_per_second(seconds: float, settings: dict[str, str]) -> float:
    call = [sys.executable, "-c", JOB, str(seconds)]
    return float(subprocess.run(call, env=environment(**settings), check=True, capture_output=True, text=True).stdout)


def waiting(seconds: float, cores: set[int]) -> None:
    """Prints a row per way of waiting: calls per second alone, and next to the other work."""
    print(f"{'calls per second':<32}{'alone':>8}{'beside':>8}")
    for name, settings in WAYS.items():
        alone = calls_per_second(seconds, settings)
        with busy(cores):
            print(f"{name:<32}{alone:>8.1f}{calls_per_second(seconds, settings):>8.1f}", flush=True)


def verdict(alone: float, beside: float, most: float, ratio: float) -> str:
    """PASS, or FAIL with the exceeded limits."""
    over = [f"{alone:.0f} s alone is over {most:.0f} s"] if alone > most else []
    over += [f"{beside / alone:.2f} times next to other work is over {ratio:g}"] if beside > ratio * alone else []
    return "FAIL: " + "; ".join(over) if over else "PASS"


def main(arguments: list[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, passed = arguments[:end], arguments[end + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--most", type=float, default=300, help="most seconds alone (default: 300)")
    parser.add_argument("--ratio", type=float, default=2.5, help="most times as long next to other work (default: 2.5)")
    parser.add_argument("--waiting", type=float, default=0, metavar="SECONDS", help="only measure how threads wait")
    config = parser.parse_args(own)
    cores = set(sorted(os.sched_getaffinity(0))[:CORES])
    os.sched_setaffinity(0, cores)
    if config.waiting:
        waiting(config.waiting, cores)
        return 0
    alone = quickstart(passed)
    print(f"alone   {alone:8.1f} s", flush=True)
    with busy(cores):
        beside = quickstart(passed)
    found = verdict(alone, beside, config.most, config.ratio)
    print(f"beside  {beside:8.1f} s\nratio   {beside / alone:8.2f}\n{found}")
    return 0 if found == "PASS" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
