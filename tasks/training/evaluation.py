"""Scoring a model on test images, in evaluation mode: BatchNorm uses its running statistics and learns nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tasks.data.loading import Batch
from tasks.data.samples import ImageSample
from tasks.detectors.base import Detections, Detector, Targets
from tasks.errors import ModelDiverged
from tasks.metrics.detections import ImageDetections
from tasks.spec.training import EvaluationSpec


@dataclass(frozen=True)
class PartResult:
    """One part of a test set: what was detected, by image index, and the losses.

    ``batch_losses`` holds, for each batch, the loss times its images: their exact sum (``math.fsum``) is the same
    however the batches were spread.
    """

    batch_losses: list[float]
    images: int
    detections: dict[int, ImageDetections]
    seconds: float


@torch.inference_mode()
def evaluate(
    detector: Detector,
    batches: Iterable[Batch],
    samples: Sequence[ImageSample],
    spec: EvaluationSpec,
    *,
    device: str,
) -> PartResult:
    """Losses and detections of the images in ``batches``; boxes come back in pixels of the original images.

    ``samples`` is the whole test set: a batch's indices point into it.

    Raises:
        ModelDiverged: a loss is NaN or infinite; names the batch.
    """
    place = torch.device(device)
    detector.to(place).eval()
    batch_losses: list[float] = []
    images = 0
    detections: dict[int, ImageDetections] = {}
    started = time.perf_counter()
    for batch in batches:
        outputs = detector(batch.images.to(place, non_blocking=True))
        terms = detector.loss(outputs, Targets(batch.boxes, batch.labels).to(place))
        count = batch.images.shape[0]
        loss = float(torch.stack(list(terms.values())).sum().double())
        if not math.isfinite(loss):
            raise ModelDiverged(f"test loss is {loss} at batch {len(batch_losses) + 1}: the model has diverged")
        batch_losses.append(loss * count)
        images += count
        found = detector.predict(
            outputs,
            score_threshold=spec.score_threshold,
            nms_iou=spec.nms_iou,
            max_detections=spec.max_detections,
        )
        for index, item in zip(batch.indices, found, strict=True):
            sample = samples[index]
            detections[index] = in_original_pixels(item, detector, width=sample.width, height=sample.height)
    return PartResult(batch_losses, images, detections, time.perf_counter() - started)


def in_original_pixels(found: Detections, detector: Detector, *, width: int, height: int) -> ImageDetections:
    """What was found in the detector's input, in pixels of the image, ``width`` x ``height``, stretched to it."""
    ratio = np.array([width / detector.width, height / detector.height] * 2, dtype=np.float32)
    return ImageDetections(
        boxes=found.boxes.cpu().numpy() * ratio,
        scores=found.scores.cpu().numpy(),
        labels=found.labels.cpu().numpy(),
    )
