"""Detection and colours on tiny random models: against transformers' own post-processing, and by hand."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from hypernoise.errors import InputError
from hypernoise.evaluation.geneval import benchmark, official
from hypernoise.evaluation.geneval import detection as models
from hypernoise.evaluation.geneval.benchmark import GenEvalJudge, by_prompt
from hypernoise.evaluation.geneval.detection import SENTENCES, ClipColors, Mask2Former, box_of
from hypernoise.evaluation.geneval.rules import COLORS, Detection, judge, kept, parse
from hypernoise.evaluation.pictures import read_picture
from hypernoise.rewards.network import CLIP_MEAN, CLIP_STD, normalise
from tests.evaluation.geneval.conftest import LABELS


def noise(height, width, seed=0):
    """Coarse patches, so that the tiny network sees something."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")[0]


def test_at_384_pixels_it_is_transformers_own_post_processing(tiny_models, monkeypatch):
    """The one size at which theirs judges masks where the benchmark's detector does."""
    monkeypatch.setattr(models, "SHORT", 384)
    detector, pixels = Mask2Former(tiny_models[0]), noise(384, 384)
    model, found = detector.model, detector(pixels)
    given = normalise(pixels[None], models.IMAGENET_MEAN, models.IMAGENET_STD)
    processor = Mask2FormerImageProcessorPil()
    segmented = processor.post_process_instance_segmentation(
        model(pixel_values=given), threshold=0, target_sizes=[(384, 384)], return_binary_maps=True
    )[0]
    theirs = sorted(
        zip(segmented["segments_info"], segmented["segmentation"], strict=True), key=lambda pair: -pair[0]["score"]
    )
    assert len(found) >= 6
    for (detection, mask), (segment, map_) in zip(found, theirs, strict=False):  # they keep as many as queries
        assert detection.score == pytest.approx(segment["score"], abs=2e-6)
        assert LABELS.index({"computer mouse": "mouse"}.get(detection.name, detection.name)) == segment["label_id"]
        assert torch.equal(mask, map_.bool())


def test_pictures_are_resized_and_padded_as_the_benchmarks_detector_does(tiny_models, monkeypatch):
    seen = {}

    def forward(pixel_values):
        seen["given"] = pixel_values
        raise StopIteration

    detector = Mask2Former(tiny_models[0])
    monkeypatch.setattr(detector.model, "forward", forward)
    for size, scaled, padded in [
        ((512, 512), (800, 800), (800, 800)),
        ((512, 768), (800, 1200), (800, 1216)),
        ((300, 900), (444, 1333), (448, 1344)),  # the long side's limit
    ]:
        with pytest.raises(StopIteration):
            detector(torch.ones(3, *size))
        given = seen["given"]
        assert given.shape == (1, 3, *padded)
        white = (1 - torch.tensor(models.IMAGENET_MEAN)) / torch.tensor(models.IMAGENET_STD)
        assert torch.allclose(given[0, :, : scaled[0], : scaled[1]], white.view(3, 1, 1), atol=1e-5)
        assert (given[0, :, scaled[0] :] == 0).all()
        assert (given[0, :, :, scaled[1] :] == 0).all()


def test_boxes_masks_and_names_at_the_pictures_own_size(tiny_models, monkeypatch):
    monkeypatch.setattr(models, "SHORT", 64)
    found = Mask2Former(tiny_models[0])(noise(40, 60))
    assert {detection.name for detection, _ in found} <= {"circle", "square", "ring", "computer mouse"}
    assert [d.score for d, _ in found] == sorted((d.score for d, _ in found), reverse=True)
    for detection, mask in found:
        assert mask.shape == (40, 60)
        left, top, right, bottom = (int(side) for side in detection.box)
        assert mask[top:bottom, left:right].sum() == mask.sum() > 0
        assert mask[top].any()
        assert mask[bottom - 1].any()
        assert mask[:, left].any()
        assert mask[:, right - 1].any()
    assert box_of(torch.ones(3, 5, dtype=torch.bool)) == (0, 0, 5, 3)


@pytest.fixture
def painter(tiny_models):
    return ClipColors(tiny_models[1])


def test_a_colour_is_the_nearest_mean_sentence_to_the_crop_on_grey(painter):
    """By hand: PIL cuts and pastes, transformers encodes, numpy averages."""
    ours, pixels = painter, noise(40, 40, seed=3)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[8:28, 10:30] = True
    mask[8:12, 10:14] = False
    detection = Detection("ring", (10, 8, 30, 28), 0.9)
    picture = Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    cut = Image.composite(picture, Image.new("RGB", (40, 40), "#999"), Image.fromarray(mask.numpy()))
    cut = cut.crop(detection.box).resize((16, 16), Image.Resampling.BICUBIC)
    given = torch.from_numpy(np.asarray(cut, np.float32) / 255).permute(2, 0, 1)[None]
    clip, tokenizer = ours.clip.network, ours.clip.tokenizer
    vision = clip.vision_model(pixel_values=normalise(given, CLIP_MEAN, CLIP_STD)).pooler_output
    seen = clip.visual_projection(vision)[0].numpy()
    cosines = []
    for color in COLORS:
        features = []
        for sentence in SENTENCES:
            ids = tokenizer(sentence.format(color=color, name="ring"), return_tensors="pt").input_ids
            feature = clip.text_projection(clip.text_model(input_ids=ids).pooler_output)[0].numpy()
            features.append(feature / np.linalg.norm(feature))
        mean = np.mean(features, 0)
        cosines.append(mean @ seen / np.linalg.norm(mean) / np.linalg.norm(seen))
    first, second = np.sort(cosines)[::-1][:2]
    assert first - second > 1e-3  # so that PIL's rounding to levels does not decide
    assert ours(pixels, detection, mask) == COLORS[int(np.argmax(cosines))]


def test_what_lies_outside_the_mask_or_the_box_does_not_matter(painter):
    ours, pixels = painter, noise(40, 40)
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[8:28, 10:30] = True
    detection = Detection("ring", (10, 8, 30, 28), 0.9)
    crops = []
    ours.clip.resize = lambda crop, real=ours.clip.resize: crops.append(crop) or real(crop)
    for background in (pixels, torch.where(mask, pixels, 1 - pixels)):
        ours(background, detection, mask)
    assert torch.equal(*crops)
    assert crops[0].shape == (1, 3, 20, 20)
    mask[8:10] = False
    ours(pixels, detection, mask)
    assert torch.allclose(crops[2][:, :, :2], torch.tensor(0.6))


def request(tag="colors", name="circle", **more):
    return parse({"tag": tag, "include": [{"class": name, "count": 1, **more}], "prompt": "a prompt"}, "here")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "00000.png"
    Image.fromarray((noise(48, 48).permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(file)
    return file


def test_from_folders_only_the_deciding_object_is_coloured(tiny_models, picture):
    official_judge = GenEvalJudge({}, *tiny_models, "cpu")
    (best, _), *_ = official_judge.objects(read_picture(picture))
    assert best.score > 0.3
    asked = request(name=best.name, color="red")
    pixels = read_picture(picture)
    found = official_judge.detect(pixels, asked)
    colored = [detection for detection in found if detection.color is not None]
    assert len(colored) == 1
    assert len(official_judge.detect(pixels, request(name=best.name))) == len(found)
    assert (not judge(asked, kept(found, asked.tag))) == (colored[0].color == "red")
    assert set(official_judge.objects.labels) == {"circle", "square", "ring", "computer mouse"}
    assert official_judge.name == "geneval by " + " + ".join(tiny_models)


def test_a_detector_without_needed_classes_is_refused(tiny_models):
    GenEvalJudge({"a": request(), "b": request(name="computer mouse")}, *tiny_models, "cpu")
    requests = {"a": request(), "b": request(name="mouse"), "c": request(name="dog")}
    with pytest.raises(InputError, match="does not know dog, mouse \\(2 of the classes .*; it knows 4, such as circle"):
        GenEvalJudge(requests, *tiny_models, "cpu")


COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
VOC = {
    "motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "potted plant": "pottedplant",
    "dining table": "diningtable", "tv": "tvmonitor",
}  # fmt: skip


@pytest.mark.parametrize(
    "labels",
    [COCO, tuple(VOC.get(name, name) for name in COCO), official.CLASSES],
    ids=["coco", "voc", "geneval"],
)
def test_either_spelling_of_cocos_classes_serves_the_official_prompts(labels, monkeypatch):
    model = torch.nn.Module()
    model.config = SimpleNamespace(id2label=dict(enumerate(labels)))
    monkeypatch.setattr(models, "pretrained", lambda *arguments: model)
    objects = Mask2Former("table")
    assert tuple(objects.labels) == official.CLASSES
    monkeypatch.setattr(benchmark, "ClipColors", lambda *arguments: SimpleNamespace(name="none"))
    requests = official.official_requests()
    assert len(requests) == 553
    GenEvalJudge(by_prompt(requests))


@pytest.mark.parametrize(("load_", "number"), [(Mask2Former, 0), (ClipColors, 1)])
def test_missing_or_misfitting_weights_are_refused(tiny_models, tmp_path, load_, number):
    with pytest.raises(InputError, match="cannot be loaded"):
        load_(str(tmp_path / "none"))
    folder = Path(shutil.copytree(tiny_models[number], tmp_path / "copy"))
    state = load_file(folder / "model.safetensors")
    lost = sorted(state)[0]
    save_file({k: v for k, v in state.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"does not fit .*: {lost}"):
        load_(str(folder))
