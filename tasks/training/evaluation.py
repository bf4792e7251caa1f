"""Run a model on test images in evaluation mode, in which BatchNorm uses its running statistics unchanged."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.data.batches import Batch
from tasks.data.samples import ImageSample
from tasks.data.transfer import moved_together
from tasks.detectors.base import Detections, Detector
from tasks.errors import ModelDiverged
from tasks.metrics.detections import ImageDetections
from tasks.spec.data_parts import UNLABELLED_SCORE
from tasks.spec.training import EvaluationSpec
from tasks.training.found_regions import with_found_regions
from tasks.training.targets import targets_of


@dataclass(frozen=True)
class PartResult:
    """The result for one part of a test set: detections by image index, and losses.

    ``batch_losses`` holds, for each batch, the loss times the number of images. Their exact sum (``math.fsum``) is the
    same however the batches were spread.
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
    unlabelled_score: float = UNLABELLED_SCORE,
) -> PartResult:
    """Return losses and detections of the images in ``batches``, with boxes in pixels of the original images.

    ``samples`` is the whole test set, which a batch's indices refer to. Detections of a class that was not annotated in
    an image are left out, because nobody knows which of them are right.

    The loss follows the rule of training for unlabelled classes, with the model itself in the place of the round's.
    Where it detects one with a score above ``unlabelled_score``, it is not asked to find nothing. So the loss is the
    one from which a turn on these images would start.

    Raises:
        ModelDiverged: a loss is NaN or infinite; the message names the batch.
    """
    torch_device = torch.device(device)
    detector.to(torch_device).eval()
    batch_losses: list[float] = []
    images = 0
    detections: dict[int, ImageDetections] = {}
    started = time.perf_counter()
    for batch in batches:
        outputs = detector(batch.images.to(torch_device, non_blocking=True))
        if detector.needs_unlabelled_regions and batch.labelled is not None:
            unlabelled = detector.predict(
                outputs,
                score_threshold=unlabelled_score,
                nms_iou=spec.nms_iou,
                max_detections=spec.max_detections,
            )
            batch = with_found_regions(batch, unlabelled)
        terms = detector.loss(outputs, targets_of(batch).to(torch_device))
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
        for index, item in zip(batch.indices, on_host(found), strict=True):
            sample = samples[index]
            if sample.labelled is not None:
                item = of_classes(item, torch.from_numpy(sample.labelled))
            detections[index] = in_original_pixels(item, detector, width=sample.width, height=sample.height)
    return PartResult(batch_losses, images, detections, time.perf_counter() - started)


def on_host(found: Sequence[Detections]) -> list[Detections]:
    """Return a batch's detections on the CPU. From a GPU they come in one copy."""
    if all(item.boxes.device.type == "cpu" for item in found):
        return list(found)
    return copied(found)


def copied(found: Sequence[Detections]) -> list[Detections]:
    """Return copies of a batch's detections on the CPU, made in one copy."""
    fields = ("boxes", "scores", "labels")
    tensors = [getattr(item, name) for item in found for name in fields]
    moved = iter(moved_together(tensors, torch.device("cpu")))
    return [Detections(*(next(moved) for _ in fields)) for _ in found]


def of_classes(found: Detections, labelled: Tensor) -> Detections:
    """Return the detections of the classes that ``labelled``, bool [classes], marks."""
    kept = labelled.to(found.labels.device)[found.labels]
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def in_original_pixels(found: Detections, detector: Detector, *, width: int, height: int) -> ImageDetections:
    """Convert detections in the detector's input to pixels of the ``width`` x ``height`` image stretched to it."""
    ratio = np.array([width / detector.width, height / detector.height] * 2, dtype=np.float32)
    return ImageDetections(
        boxes=found.boxes.cpu().numpy() * ratio,
        scores=found.scores.cpu().numpy(),
        labels=found.labels.cpu().numpy(),
    )
