"""GenEval's detection: objects by transformers' Mask2Former, and their colours by CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad
from transformers import CLIPModel, Mask2FormerForUniversalSegmentation

from hypernoise.evaluation.geneval.rules import COLORS, Detection
from hypernoise.rewards.clip import ClipReward
from hypernoise.rewards.network import IMAGENET_MEAN, IMAGENET_STD, normalise
from hypernoise.rewards.weights import load_tokenizer, pretrained

SENTENCES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
GREY = 0x99 / 255
SHORT, LONG, MULTIPLE = 800, 1333, 32  # px
BEST = 100  # pairs of query and class
RENAMED = {  # detectors' names that differ from the benchmark's: COCO's, and VOC's, which many keep
    "mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard", "motorbike": "motorcycle",
    "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant", "diningtable": "dining table",
    "tvmonitor": "tv", "hair dryer": "hair drier",
}  # fmt: skip


class Mask2Former:
    """Detects all objects in a picture, with masks; prepares pictures and results as the benchmark's detector does.

    That is mmdet's mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco: the short side is 800 pixels (the long one at most
    1333), sides are padded to multiples of 32, masks are judged at the picture's own size, the 100 best pairs of query
    and class are kept at any score, and overlaps are not suppressed. transformers' own postprocessing shrinks masks to
    384 x 384 first, so boxes would be coarser.

    Raises InputError for weights, of a Hub repository or a folder, that cannot be loaded or do not fit.
    """

    def __init__(self, source: str, device: torch.device | str = "cpu"):
        self.name = source
        self.model = pretrained(Mask2FormerForUniversalSegmentation, source, f"detector {source}").to(device)
        names: dict[int, str] = self.model.config.id2label
        self.labels = [RENAMED.get(names[i], names[i]) for i in range(len(names))]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> list[tuple[Detection, Tensor]]:
        """Detections in pixels [3, H, W] in [0, 1], the most confident first, with masks [H, W], on the CPU."""
        height, width = pixels.shape[-2:]
        scale = min(LONG / max(height, width), SHORT / min(height, width))
        rows, columns = int(height * scale + 0.5), int(width * scale + 0.5)
        device = next(self.model.parameters()).device
        resized = interpolate(pixels[None].to(device).float(), (rows, columns), mode="bilinear", align_corners=False)
        given = pad(normalise(resized, IMAGENET_MEAN, IMAGENET_STD), (0, -columns % MULTIPLE, 0, -rows % MULTIPLE))
        answer: Any = self.model(pixel_values=given)
        certainty = answer.class_queries_logits[0].float().softmax(-1)[:, :-1]  # [queries, classes]
        best = certainty.flatten().topk(min(BEST, certainty.numel()))
        found = []
        for sure, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            query, label = divmod(place, certainty.shape[1])
            mask = answer.masks_queries_logits[0, query].float()[None, None]
            mask = interpolate(mask, given.shape[-2:], mode="bilinear", align_corners=False)[..., :rows, :columns]
            mask = interpolate(mask, (height, width), mode="bilinear", align_corners=False)[0, 0]
            inside = mask > 0
            if inside.any():
                score = sure * mask[inside].sigmoid().mean().item()
                found.append((Detection(self.labels[label], box_of(inside), score), inside.cpu()))
        return sorted(found, key=lambda pair: -pair[0].score)


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) in pixels around the True values in [H, W]; right and bottom are exclusive."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


class ClipColors:
    """The colour of an object by CLIP: zero-shot over the benchmark's ten, on its crop, masked with grey.

    As in its evaluate_images.py (github.com/djghosh13/geneval): everything but the object is #999, the crop is the
    object's box, and a colour's text feature is the normalised mean of three sentences' unit features.

    Raises InputError for weights, of a Hub repository or a folder, that cannot be loaded or do not fit.
    """

    def __init__(self, source: str, device: torch.device | str = "cpu"):
        model = pretrained(CLIPModel, source, f"CLIP {source}").to(device)
        self.name, self.clip = source, ClipReward("colors", model, load_tokenizer(source))

    @torch.no_grad()
    def __call__(self, pixels: Tensor, detection: Detection, mask: Tensor) -> str:
        """The colour, from pixels [3, H, W] in [0, 1] and the object's mask [H, W]."""
        left, top, right, bottom = (round(side) for side in detection.box)
        alone = torch.where(mask, pixels, GREY)[None, :, top:bottom, left:right]
        seen = self.clip.pictures(self.clip.resize(alone.to(self.clip.device)))
        sentences = [text.format(color=color, name=detection.name) for color in COLORS for text in SENTENCES]
        features = torch.stack(self.clip.texts(sentences)).unflatten(0, (len(COLORS), len(SENTENCES)))
        return COLORS[int((seen @ normalize(features.mean(1), dim=-1).T).argmax())]
