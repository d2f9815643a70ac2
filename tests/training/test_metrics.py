"""A step's row in the log and the trackers."""

import pytest
from PIL import Image

from hypernoise.errors import InputError
from hypernoise.training.metrics import check_trackers, rows_of
from tests.training.test_resume import quick


def test_sample_grids_have_two_rows_of_the_validation_prompts(tmp_path):
    quick(tmp_path, max_train_steps=4, validation_steps=4, validation_prompts=("a ring", "a cross"))
    assert Image.open(tmp_path / "samples" / "step-000004.png").size == (2 * 4, 2 * 4)


def test_missing_trackers_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tracker wandb is not installed: pip install 'hypernoise\[wandb\]'"):
        check_trackers(("wandb",), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(InputError, match="tracker wandb needs an output_dir"):
        check_trackers(("wandb",), None)


def test_rows_reach_the_trackers_through_accelerate(tmp_path, monkeypatch):
    """A tracker of accelerate's own class under a known name, so that no package is needed."""
    from accelerate import accelerator
    from accelerate.tracking import GeneralTracker

    kept = []

    class Kept(GeneralTracker):
        name, requires_logging_directory = "kept", False

        def __init__(self, run_name, **settings):
            super().__init__()

        tracker = None

        def store_init_configuration(self, values):
            kept.append(values)

        def log(self, values, step=None, **more):
            kept.append((step, values))

        def finish(self):
            kept.append("finished")

    monkeypatch.setattr("hypernoise.training.run.check_trackers", lambda names, folder: None)
    monkeypatch.setattr(accelerator, "filter_trackers", lambda log_with, logging_dir: [Kept("run")])
    _, result = quick(tmp_path, max_train_steps=2, report_to=("tensorboard",))
    settings, first, second, last = kept
    assert settings["learning_rate"] == 0.01
    assert (first[0], second[0], last) == (1, 2, "finished")
    assert first[1]["reward"] == result.history[0]["reward"]
    assert "step" not in first[1]


@pytest.mark.parametrize("value", ['"high"', "null", "[1]", "{}", "true", "NaN", "1e400", "9" * 400, "9" * 5000])
def test_damaged_values_of_a_log_are_left_out(tmp_path, value):
    lines = [
        f'{{"step": 1, "reward": {value}, "kl": 0.5}}',
        f'{{"step": {value}}}',
        "[" * 100_000,
        value,
        '{"step": 2, "r',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert rows_of(tmp_path) == [{"step": 1, "kl": 0.5}]
