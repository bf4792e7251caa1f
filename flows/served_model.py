"""The registered model as MLflow loads it: a *model from code* over a model file, without any pickle.

MLflow copies this file and the package ``tasks`` into the model, so it is served where fedbench is not installed. In
goes the column ``image`` (base64 of a JPEG, PNG, …); out come, for each image, its detections, best first: class,
score and box (xmin, ymin, xmax, ymax in pixels of that image).
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image, UnidentifiedImageError

from tasks.data.loading import to_input
from tasks.data.pixels import UNREADABLE, read_rgb
from tasks.detectors.base import Detector
from tasks.model_file import ModelCard, load_model
from tasks.spec.data import Exif
from tasks.training.evaluation import in_original_pixels

IMAGES_AT_ONCE = 8  # of a request's images; it bounds memory


class ServedDetector(PythonModel):
    """``model_config``: ``nms_iou``. ``params``: ``score_threshold`` and ``max_detections`` an image."""

    detector: Detector
    card: ModelCard
    nms_iou: float

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model file, once a process.

        Raises:
            DataError: it is damaged.
        """
        self.detector, self.card = load_model(Path(context.artifacts["model"]))
        self.nms_iou = context.model_config["nms_iou"]

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """One mapping ``{"detections": [...]}`` an image; MLflow has filled in the signature's default ``params``.

        Raises:
            MlflowException: an image or a parameter cannot be used (HTTP 400); names the row or parameter.
        """
        if params is None:
            raise _bad_input("params: expected those of the signature, found none")
        score_threshold, max_detections = params["score_threshold"], params["max_detections"]
        if not 0 <= score_threshold < 1:
            raise _bad_input(f"params.score_threshold: expected at least 0 and less than 1, found {score_threshold}")
        if max_detections < 1:
            raise _bad_input(f"params.max_detections: expected at least 1, found {max_detections}")
        images = [_decoded(row, text, self.card.exif) for row, text in enumerate(model_input["image"])]
        answers: list[dict[str, Any]] = []
        for start in range(0, len(images), IMAGES_AT_ONCE):
            answers += self._detect(images[start : start + IMAGES_AT_ONCE], score_threshold, max_detections)
        return answers

    @torch.inference_mode()
    def _detect(
        self, images: list[Image.Image], score_threshold: float, max_detections: int
    ) -> list[dict[str, list[dict[str, Any]]]]:
        width, height = self.detector.width, self.detector.height
        inputs = np.stack([to_input(image, width=width, height=height) for image in images])
        found = self.detector.predict(
            self.detector(torch.from_numpy(inputs)),
            score_threshold=score_threshold,
            nms_iou=self.nms_iou,
            max_detections=max_detections,
        )
        answers = []
        for image, item in zip(images, found, strict=True):
            placed = in_original_pixels(item, self.detector, width=image.width, height=image.height)
            # Before, the limit was for each class; scores are in descending order.
            rows = zip(placed.labels.tolist(), placed.scores.tolist(), placed.boxes.tolist(), strict=True)
            detections = [{"class": self.card.classes[label], "score": score, "box": box} for label, score, box in rows]
            answers.append({"detections": detections[:max_detections]})
        return answers


def _decoded(row: int, text: object, exif: Exif) -> Image.Image:
    """RGB, read as training read it."""
    if not isinstance(text, str):
        raise _bad_input(f"row {row}: image: expected base64 as text, found {type(text).__name__}")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad_input(
            f"row {row}: image: expected an encoded image as base64, found {_shown(text)}: {error}"
        ) from None
    try:
        return read_rgb(data, exif)
    except UNREADABLE as error:
        why = "of no known format" if isinstance(error, UnidentifiedImageError) else f"that cannot be decoded: {error}"
        raise _bad_input(
            f"row {row}: image: expected an encoded image (JPEG, PNG), found {len(data)} bytes {why}"
        ) from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _bad_input(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(ServedDetector())
