"""A served model's answer to one request: images as base64 in, detections out, within limits on the request's cost."""

from __future__ import annotations

import base64
import binascii
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tasks.data.image_cache import to_input
from tasks.data.pixels import UNREADABLE, read_rgb
from tasks.detectors.base import Detector
from tasks.errors import FedbenchError
from tasks.spec.data import Exif
from tasks.training.evaluation import in_original_pixels

# Formats whose decoders need no other program, and no more memory than the size in the header implies.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
SCORE_THRESHOLD = 0.3  # as in predict and the sheets
MAX_DETECTIONS = 100
MOST_DETECTIONS = 1000
IMAGES_AT_ONCE = 8  # images of a forward pass; only their inputs are in memory then


@dataclass(frozen=True)
class RequestLimits:
    """Limits on the cost of one request: its images (``rows``), and the pixels of one image."""

    rows: int = 32
    pixels: int = 40_000_000


class RequestRefused(FedbenchError):
    """A request cannot be answered. The message names the row or parameter.

    ``too_large`` is True if the request exceeds a limit on its size.
    """

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class ModelAnswers:
    """A detector that answers requests from any number of threads, one request at a time."""

    def __init__(
        self,
        detector: Detector,
        classes: Sequence[str],
        *,
        nms_iou: float,
        exif: Exif = "as-stored",
        limits: RequestLimits | None = None,
    ) -> None:
        """exif: how training read the images' orientations."""
        self.detector = detector.eval()
        self.classes = tuple(classes)
        self.nms_iou = nms_iou
        self.exif = exif
        self.limits = limits or RequestLimits()
        self._one_at_a_time = threading.Lock()

    def answer(
        self,
        images: Sequence[object],
        *,
        score_threshold: float = SCORE_THRESHOLD,
        max_detections: int = MAX_DETECTIONS,
    ) -> list[dict[str, Any]]:
        """Return one mapping ``{"detections": [...]}`` an image, best first: class, score, box in the image's pixels.

        ``images`` are base64 texts of encoded images. They are decoded one by one, so that a request takes no more
        memory than its largest image.

        Raises:
            RequestRefused: an image or a parameter cannot be used, or a limit is exceeded.
        """
        if not 0 <= score_threshold < 1:
            raise RequestRefused(
                f"params.score_threshold: expected at least 0 and less than 1, found {score_threshold}"
            )
        if not 1 <= max_detections <= MOST_DETECTIONS:
            raise RequestRefused(f"params.max_detections: expected 1 to {MOST_DETECTIONS}, found {max_detections}")
        if len(images) > self.limits.rows:
            raise RequestRefused(
                f"expected at most {self.limits.rows} images in a request, found {len(images)}", too_large=True
            )
        answers: list[dict[str, Any]] = []
        with self._one_at_a_time:
            for start in range(0, len(images), IMAGES_AT_ONCE):
                part = [self._input(row, images[row]) for row in range(start, min(start + IMAGES_AT_ONCE, len(images)))]
                answers += self._detect(part, score_threshold, max_detections)
        return answers

    def _input(self, row: int, text: object) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Return the detector's input, and the size of the image that it was made from."""
        data = _decoded(row, text)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # the header only
                if image.width * image.height > self.limits.pixels:
                    raise RequestRefused(
                        f"row {row}: image: expected at most {self.limits.pixels} pixels, found "
                        f"{image.width} x {image.height}"
                    )
            colours = read_rgb(data, self.exif)
            return to_input(colours, width=self.detector.width, height=self.detector.height), colours.size
        except UNREADABLE as error:
            unknown = isinstance(error, UnidentifiedImageError)
            why = "of no known format" if unknown else f"that cannot be decoded: {error}"
            raise RequestRefused(
                f"row {row}: image: expected an encoded image ({', '.join(FORMATS)}), found {len(data)} bytes {why}"
            ) from None

    @torch.inference_mode()
    def _detect(
        self, part: list[tuple[NDArray[np.uint8], tuple[int, int]]], score_threshold: float, max_detections: int
    ) -> list[dict[str, Any]]:
        inputs = torch.from_numpy(np.stack([pixels for pixels, _ in part]))
        found = self.detector.predict(
            self.detector(inputs),
            score_threshold=score_threshold,
            nms_iou=self.nms_iou,
            max_detections=max_detections,
        )
        answers = []
        for (_, (width, height)), item in zip(part, found, strict=True):
            placed = in_original_pixels(item, self.detector, width=width, height=height)
            # predict applied the limit to each class; here it applies to all. Scores are in descending order.
            rows = zip(placed.labels.tolist(), placed.scores.tolist(), placed.boxes.tolist(), strict=True)
            detections = [{"class": self.classes[label], "score": score, "box": box} for label, score, box in rows]
            answers.append({"detections": detections[:max_detections]})
        return answers


def _decoded(row: int, text: object) -> bytes:
    if not isinstance(text, str):
        raise RequestRefused(f"row {row}: image: expected base64 as text, found {type(text).__name__}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestRefused(
            f"row {row}: image: expected an encoded image as base64, found {_shown(text)}: {error}"
        ) from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
