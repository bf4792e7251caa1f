"""Answers to requests: the detections of a real detector, and requests beyond the limits."""

from __future__ import annotations

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.models.answer_request import ModelAnswers, RequestLimits, RequestRefused
from tasks.spec.detector import YoloV3TinySpec

SPEC = YoloV3TinySpec(width=96, height=64)
CLASSES = ("chair", "table")


@pytest.fixture(scope="module")
def model() -> ModelAnswers:
    return ModelAnswers(direct_detector(), CLASSES, nms_iou=0.4)


def direct_detector() -> Detector:
    return build_detector(SPEC, len(CLASSES), seed=3).eval()


def encoded(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return base64.b64encode(buffer.getvalue()).decode()


def noise(width: int, height: int, seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ask(model: ModelAnswers, images: list[str], **params: Any) -> list[dict[str, Any]]:
    return model.answer(images, **({"score_threshold": 0.0, "max_detections": 7} | params))


def test_answers_have_the_detectors_detections_in_pixels_of_each_image(model: ModelAnswers) -> None:
    images = [noise(200, 100, seed) if seed % 2 else noise(50, 90, seed) for seed in range(9)]  # two batches
    answers = ask(model, [encoded(image, "PNG") for image in images])
    assert len(answers) == 9
    detector = direct_detector()
    for image, answer in zip(images, answers, strict=True):
        pixels = np.asarray(image.resize((SPEC.width, SPEC.height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        with torch.inference_mode():
            outputs = detector(torch.from_numpy(pixels[None].copy()))
            (found,) = detector.predict(outputs, score_threshold=0.0, nms_iou=0.4, max_detections=7)
        ratio = [image.width / SPEC.width, image.height / SPEC.height] * 2
        assert len(answer["detections"]) == 7
        for item, box, score, label in zip(answer["detections"], found.boxes, found.scores, found.labels, strict=False):
            assert item["class"] == CLASSES[int(label)]
            assert item["score"] == pytest.approx(float(score), rel=1e-4)
            assert item["box"] == pytest.approx([float(side) * r for side, r in zip(box, ratio, strict=True)], abs=0.05)
    json.dumps(answers)


def test_parameters_limit_the_detections(model: ModelAnswers) -> None:
    image = encoded(noise(64, 64), "PNG")
    every = ask(model, [image], max_detections=50)[0]["detections"]
    scores = [item["score"] for item in every]
    assert scores == sorted(scores, reverse=True)
    assert ask(model, [image], max_detections=1)[0]["detections"] == every[:1]
    above = ask(model, [image], max_detections=50, score_threshold=scores[9])[0]["detections"]
    assert 0 < len(above) < len(every)
    assert min(item["score"] for item in above) >= scores[9]
    assert ask(model, [image], score_threshold=0.999)[0] == {"detections": []}


def test_line_breaks_in_base64_and_grey_images_are_accepted(model: ModelAnswers) -> None:
    grey = noise(64, 64).convert("L")
    text = encoded(grey, "PNG")
    broken = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    assert ask(model, [broken]) == ask(model, [encoded(grey.convert("RGB"), "PNG")])


@pytest.mark.parametrize(
    ("images", "params", "message"),
    [
        (
            ["", "?"],
            {},
            "row 0: image: expected an encoded image (BMP, GIF, JPEG, PNG, WEBP), found 0 bytes",
        ),
        ([encoded(noise(8, 8), "PNG"), "no?"], {}, "row 1: image: expected an encoded image as base64, found 'no?'"),
        (["x" * 99], {}, "row 0: image: expected an encoded image as base64, found '" + "x" * 37 + "...'"),
        (
            ["aGFsbG8="],
            {},
            "PNG, WEBP), found 5 bytes of no known format",
        ),
        (
            [encoded(noise(64, 64), "JPEG")[:400]],
            {},
            "PNG, WEBP), found 300 bytes that cannot be decoded",
        ),
        ([["aGFsbG8="]], {}, "row 0: image: expected base64 as text, found list"),
        ([], {"score_threshold": 1.0}, "params.score_threshold: expected at least 0 and less than 1, found 1.0"),
        (
            [],
            {"score_threshold": float("nan")},
            "params.score_threshold: expected at least 0 and less",
        ),
        ([], {"max_detections": 0}, "params.max_detections: expected 1 to 1000, found 0"),
        ([], {"max_detections": 1001}, "params.max_detections: expected 1 to 1000, found 1001"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(
    model: ModelAnswers, images: list[Any], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestRefused) as caught:
        ask(model, images, **params)
    assert not caught.value.too_large
    assert message in str(caught.value)


def bomb(width: int, height: int) -> str:
    """Return a PNG of one bit a pixel: it has few kilobytes even if ``width`` and ``height`` are huge."""
    return encoded(Image.new("1", (width, height)), "PNG")


def test_an_image_beyond_the_limit_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ModelAnswers(direct_detector(), CLASSES, nms_iou=0.4, limits=RequestLimits(pixels=5000))
    assert len(ask(small, [bomb(100, 50)])) == 1
    above, far_above = bomb(100, 51), bomb(12_000, 12_000)
    assert len(far_above) < 30_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("its pixels were decoded"))
    with pytest.raises(RequestRefused, match="row 0: image: expected at most 5000 pixels, found 100 x 51"):
        ask(small, [above])
    usual = ModelAnswers(direct_detector(), CLASSES, nms_iou=0.4)
    with pytest.raises(RequestRefused, match="expected at most 40000000 pixels, found 12000 x 12000"):
        ask(usual, [far_above])


def test_too_many_images_are_refused_before_one_is_decoded() -> None:
    two = ModelAnswers(direct_detector(), CLASSES, nms_iou=0.4, limits=RequestLimits(rows=2))
    image = encoded(noise(8, 8), "PNG")
    assert len(ask(two, [image] * 2)) == 2
    with pytest.raises(RequestRefused, match="expected at most 2 images in a request, found 3") as caught:
        ask(two, ["no image"] * 3)
    assert caught.value.too_large


def test_formats_that_need_another_program_are_not_opened(model: ModelAnswers) -> None:
    buffer = io.BytesIO()
    noise(8, 8).save(buffer, format="EPS")  # Pillow would start Ghostscript
    with pytest.raises(RequestRefused, match="of no known format"):
        ask(model, [base64.b64encode(buffer.getvalue()).decode()])


def test_only_one_request_is_computed_at_a_time(model: ModelAnswers, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[int] = []
    most: list[int] = []

    def slow(*args: Any) -> list[dict[str, Any]]:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return [{"detections": []}]

    monkeypatch.setattr(model, "_detect", slow)
    image = encoded(noise(8, 8), "PNG")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ask(model, [image]), range(8)))
    assert most == [1] * 8


def test_images_are_turned_and_scaled_as_in_training(model: ModelAnswers) -> None:
    image = noise(90, 64)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, format="PNG", exif=exif)
    turned, upright = base64.b64encode(buffer.getvalue()).decode(), encoded(image, "PNG")
    applied = ModelAnswers(model.detector, model.classes, nms_iou=0.4, exif="applied")
    assert ask(applied, [turned, upright]) == ask(model, [upright, upright])
    assert ask(model, [turned]) != ask(model, [upright])
    grey = image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert ask(model, [encoded(deep, "PNG")]) == ask(model, [encoded(grey, "PNG")])
