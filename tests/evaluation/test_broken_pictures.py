"""Damaged PNG files, one for each way in which Pillow reported random changes of their bytes."""

import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from hypernoise.errors import InputError
from hypernoise.evaluation.pictures import read_picture
from hypernoise.evaluation.records import batch_file, keep, whole
from hypernoise.files import write_json
from hypernoise.methods.base import Result, Spent


def png():
    """Noise, which takes more than one chunk of data."""
    kept = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)).save(kept, "PNG")
    return kept.getvalue()


def odd_chunk(data):
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    return data[:second] + b"\1\2\3\4" + data[second + 4 :]


def saved(picture, kind="PNG"):
    kept = io.BytesIO()
    picture.save(kept, kind)
    return kept.getvalue()


DAMAGES = {
    "no picture": lambda data: b"text",
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "a header too short": lambda data: data[:8] + b"\0\0\0\5" + data[12:],
    "an odd chunk": odd_chunk,
    "too large": lambda data: saved(Image.new("1", (6000, 6000))),
    "of 16 bits": lambda data: saved(Image.fromarray(np.full((8, 8), 40_000, np.uint16))),
    "of another format": lambda data: saved(Image.new("RGB", (8, 8)), "BMP"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_input_error(tmp_path, damage):
    file = tmp_path / "0000-0.png"
    drawn = Result(torch.rand(1, 3, 200, 200), torch.zeros(1), ["a"], None, Spent())
    keep(tmp_path, 0, drawn, [{"prompt": "a", "reward": 1.0}], [file.name])
    assert read_picture(file).shape == (3, 200, 200)
    assert whole(tmp_path, 0, [file.name])
    file.write_bytes(DAMAGES[damage](png()))
    with pytest.raises(
        InputError, match="0000-0.png (cannot be read as a picture|has 6000 x 6000 pixels|has more than 8 bits)"
    ):
        read_picture(file)
    assert not whole(tmp_path, 0, [file.name])


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0000-0.png")
    with pytest.raises(InputError, match="it is not a file"):
        read_picture(tmp_path / "0000-0.png")


@pytest.mark.parametrize(
    "record",
    [
        *(None, [], "x", {}, {"pictures": []}, {"pictures": [None]}, {"spent": 3}, {"spent": {"seconds": 1.0}}),
        *({"pictures": [{"file": "0000-0.png", name: "high"}]} for name in ("reward", "right", "kl")),
        {"sha256": None},
    ],
)
def test_a_batch_whose_record_is_damaged_is_not_whole(tmp_path, record):
    drawn = Result(torch.rand(1, 3, 8, 8), torch.zeros(1), ["a"], None, Spent())
    keep(tmp_path, 0, drawn, [{"prompt": "a", "reward": 1.0}], ["0000-0.png"])
    assert whole(tmp_path, 0, ["0000-0.png"])
    kept = json.loads(batch_file(tmp_path, 0).read_text())
    write_json(batch_file(tmp_path, 0), {**kept, **record} if record and isinstance(record, dict) else record)
    assert not whole(tmp_path, 0, ["0000-0.png"])
