"""The modules experiment, shortened: its pictures, and its table, which is read from the trained runs."""

import json

import torch

from experiments.base import main
from experiments.modules import COLOURS, KINDS, Modules, drawn


def test_each_kind_is_drawn_in_its_colour_and_shape():
    pictures, kinds = drawn(64, torch.Generator().manual_seed(0))
    assert pictures.shape == (64, 3, 16, 16)
    assert ((pictures >= 0) & (pictures <= 1)).all()
    for picture, kind in zip(pictures, kinds.tolist(), strict=True):
        colour, shape = KINDS[kind].split()
        inside = (picture - torch.tensor(COLOURS[colour])[:, None, None]).abs().amax(0) < 1e-6
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        assert (shape == "square") == bool(inside.sum() == rows * columns)  # a square fills its box, a disc does not


def test_it_trains_a_network_that_makes_an_unconditional_generator_draw_the_requested_kind(tmp_path, capsys):
    words = ["--weights", "0.01", "--updates", "150", "--lessons", "120", "--pictures", "8", "--output-dir"]
    assert main(Modules, [*words, str(tmp_path / "new")]) == 0  # pyright: ignore[reportArgumentType]
    plain, slow, fast, exact = json.loads((tmp_path / "new" / "summary.json").read_text())["results"]
    assert plain["reward"] < min(slow["reward"], fast["reward"], exact["reward"])
    assert plain["kl"] == 0
    assert fast["kl"] > fast["l2"] > 0
    assert (slow["counted"], exact["counted"]) == ("l2", "exact")
    printed = capsys.readouterr().out
    assert f"| 0.01 | 150 | 0.003 cosine | exact | {exact['right']:.3f} |" in printed
    assert exact["advice"] in printed
