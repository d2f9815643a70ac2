import json
from importlib import import_module

import pytest

from experiments.base import main


@pytest.fixture
def tiny(sd_pipeline, tmp_path):
    """A recipe of two pictures a batch on a tiny pipeline, whose pictures the judge finds nothing in."""
    sd_pipeline().save_pretrained(tmp_path / "tiny")
    recipe = tmp_path / "tiny.yaml"
    lines = [f"generator: {tmp_path / 'tiny'}", "prompts: scenes", "rewards: {redness: 20}", "kl_weight: 0.5"]
    lines += ["lora: {rank: 2, alpha: 4}", "max_train_steps: 2", "train_batch_size: 2", "learning_rate: 1e-2"]
    recipe.write_text("\n".join(lines))
    return recipe


@pytest.fixture
def run(tiny, tmp_path):
    """Runs an experiment by the tiny recipe, and reads its summary."""

    def run(name, *flags):
        where = ["--recipe", str(tiny), "--judged", "1", "--device", "cpu", "--output-dir", str(tmp_path / "out")]
        module = import_module(f"experiments.{name}")
        assert main(getattr(module, name.capitalize()), [*where, *flags]) == 0
        return json.loads((tmp_path / "out" / "summary.json").read_text())

    return run
