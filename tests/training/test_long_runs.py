"""2,000 tiny steps over 10,000 prompts, each encoded once: memory, file handles and rows do not grow with the steps."""

import os
import sys
from pathlib import Path

import pytest
import torch

from hypernoise.generators.module import ModuleGenerator
from hypernoise.noise.residual import ResidualNoise
from hypernoise.rewards.ensemble import WeightedSum
from hypernoise.training.config import TrainConfig
from hypernoise.training.loop import train

STEPS, PROMPTS = 2000, [f"prompt {i}" for i in range(10_000)]
SETTLED = 1400  # by then 8 prompts a step are all encoded and kept


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_grows_with_the_steps(tmp_path):
    decoder = torch.nn.Sequential(torch.nn.Linear(4, 48), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (3, 4, 4)))
    encoded, seen = [], {}

    def embed(prompts):
        encoded.extend(prompts)
        return torch.tensor([[float(len(prompt)), 1.0] for prompt in prompts])

    def watched(pixels, prompts):
        step = 1 + watched.calls
        watched.calls += 1
        if step in (SETTLED, STEPS):
            log = (tmp_path / "metrics.jsonl").read_text().splitlines()
            seen[step] = resident(), len(os.listdir("/proc/self/fd")), max(map(len, log[-100:]))
        return pixels.flatten(1).mean(1)

    watched.calls = 0
    generator = ModuleGenerator(decoder, noise_shape=(4,), embed=embed)
    network = ResidualNoise((4,), condition_size=2, width=8, depth=1)
    settings = TrainConfig(max_train_steps=STEPS, train_batch_size=8, learning_rate=1e-3, kl_limit=0)
    reward = WeightedSum({"own": 1.0}, {"own": watched})
    result = train(generator, network, reward, PROMPTS, settings, output_dir=tmp_path, progress=False)
    assert result.finished
    assert len(set(encoded)) == len(PROMPTS)
    assert len(encoded) <= len(PROMPTS) + 10  # and a few to begin with
    (memory, handles, row), (later_memory, later_handles, later_row) = seen[SETTLED], seen[STEPS]
    print(f"resident {memory / 2**20:.1f} -> {later_memory / 2**20:.1f} MiB, {handles} -> {later_handles} handles")
    assert later_memory - memory < 8 * 2**20  # the rows in memory are under 1 MiB
    assert later_handles == handles
    assert abs(later_row - row) < 0.1 * row
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
