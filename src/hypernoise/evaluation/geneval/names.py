"""What detectors call a class that the benchmark calls otherwise."""

from __future__ import annotations

from collections.abc import Collection

RENAMED = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",  # from here on VOC's words, which many COCO detectors kept
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}


def benchmark_name(name: str, among: Collection[str]) -> str:
    """The benchmark's name of a detector's class; its own if `among` the detector's classes stands the benchmark's."""
    renamed = RENAMED.get(name, name)
    return name if renamed in among else renamed
