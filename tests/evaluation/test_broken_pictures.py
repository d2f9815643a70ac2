"""Damaged files, in each way in which Pillow was seen to report them when a PNG's bytes were changed at random."""

import io

import numpy as np
import pytest
from PIL import Image

from hypernoise.errors import InputError
from hypernoise.evaluation.pictures import read_picture
from hypernoise.evaluation.records import batch_file, whole


def png():
    """Noise, which takes more than one chunk of data."""
    kept = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)).save(kept, "PNG")
    return kept.getvalue()


def odd_chunk(data):
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    return data[:second] + b"\1\2\3\4" + data[second + 4 :]


def huge(data):
    """A bitmap of 100,000 pixels on a side, by its header."""
    kept = io.BytesIO()
    Image.new("1", (1, 1)).save(kept, "BMP")
    header = bytearray(kept.getvalue())
    header[18:26] = (100_000).to_bytes(4, "little") * 2
    return bytes(header)


DAMAGES = {
    "no picture": lambda data: b"text",
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "a header too short": lambda data: data[:8] + b"\0\0\0\5" + data[12:],
    "an odd chunk": odd_chunk,
    "too large": huge,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_input_error(tmp_path, damage):
    file = tmp_path / "0000-0.png"
    batch_file(tmp_path, 0).write_text("{}")
    file.write_bytes(png())
    assert read_picture(file).shape == (3, 200, 200)
    assert whole(tmp_path, 0, [file.name])
    file.write_bytes(DAMAGES[damage](png()))
    with pytest.raises(InputError, match="0000-0.png cannot be read as a picture"):
        read_picture(file)
    assert not whole(tmp_path, 0, [file.name])


@pytest.mark.parametrize("text", ["", '{"pictures": ['])
def test_a_batch_whose_record_is_damaged_is_not_whole(tmp_path, text):
    (tmp_path / "0000-0.png").write_bytes(png())
    batch_file(tmp_path, 0).write_text(text)
    assert not whole(tmp_path, 0, ["0000-0.png"])
