"""What needs packages of the extras, with the packages themselves; skipped, with the reason, where they are not."""

import json

import pytest

from hypernoise.errors import InputError
from hypernoise.prompts import read_prompts
from hypernoise.training.metrics import rows_of
from tests.training.test_resume import quick


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"id": [1, 2, 3], "caption": ["a ring", None, " a cross"]}), file)
    assert read_prompts(str(file)) == ["a ring", "a cross"]
    parquet.write_table(pyarrow.table({"id": [1, 2]}), file)
    with pytest.raises(InputError, match="has no column prompt, caption, text; its columns: id"):
        read_prompts(str(file))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="p.parquet' is not a parquet file: "):
        read_prompts(str(file))
    with pytest.raises(InputError, match="nowhere.parquet' cannot be read: No such file"):
        read_prompts(str(tmp_path / "nowhere.parquet"))


def test_a_dataset_is_streamed(tmp_path):
    """A folder of files is a dataset too, and is read as one from the Hub would be."""
    pytest.importorskip("datasets")
    folder = tmp_path / "captions"
    folder.mkdir()
    for split, shape in (("train", "ring"), ("test", "cross")):
        rows = [{"id": i, "caption": f"{i} {shape}", "other": shape} for i in range(3)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_prompts(f"hf:{folder}") == ["0 ring", "1 ring", "2 ring"]
    assert read_prompts(f"hf:{folder}:test:other") == ["cross"] * 3
    with pytest.raises(InputError, match="has no column 'title'; its columns: id, caption, other"):
        read_prompts(f"hf:{folder}:train:title")
    with pytest.raises(InputError, match="captions:dev' cannot be read: "):
        read_prompts(f"hf:{folder}:dev")
    with pytest.raises(InputError, match="nowhere' cannot be read: "):
        read_prompts(f"hf:{tmp_path / 'nowhere'}")


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
