"""Trackers, with their packages; skipped where these are not installed."""

import pytest

from hypernoise.training.metrics import rows_of
from tests.training.test_resume import quick


def test_tensorboard_shows_the_rows(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    quick(tmp_path, max_train_steps=3, report_to=("tensorboard",))
    (events,) = (tmp_path / "hypernoise").glob("events.out.tfevents.*")
    found = accumulator.EventAccumulator(str(events)).Reload()
    for name in ("loss", "reward", "reward/redness", "kl", "gradient_norm", "images_per_second", "memory_gib"):
        shown = [(event.step, event.value) for event in found.Scalars(name)]
        assert shown == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows_of(tmp_path)]


def test_trackio_receives_the_rows(tmp_path, monkeypatch):
    """Into its own folder, with nothing sent anywhere."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    quick(tmp_path / "run", max_train_steps=3, report_to=("trackio",))
    (database,) = (tmp_path / "trackio").glob("*.db")
    assert database.stat().st_size > 0
