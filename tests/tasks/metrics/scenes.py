"""Objects and detections for the tests of the metrics: given ones and random ones."""

from __future__ import annotations

import numpy as np

from tasks.metrics.detections import ImageDetections
from tasks.metrics.truth import Truth

CLASSES = ("basket", "carton", "chair")


def truth_of(boxes: list, labels: list[int] | None = None, difficult: list[bool] | None = None) -> Truth:
    """Return the objects of one image. Without ``labels`` all are of the first class."""
    return (
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array([0] * len(boxes) if labels is None else labels, np.int64),
        None if difficult is None else np.array(difficult),
    )


def found_of(boxes: list, scores: list[float], labels: list[int] | None = None) -> ImageDetections:
    """Return the detections of one image. Without ``labels`` all are of the first class."""
    return ImageDetections(
        np.array(boxes, np.float32), np.array(scores), np.array([0] * len(boxes) if labels is None else labels)
    )


def random_scene(random: np.random.Generator) -> tuple[list[Truth], list[ImageDetections]]:
    """Return a few images with small whole-pixel boxes and few distinct scores.

    Overlaps of exactly a threshold, and ties, are common.
    """
    truth: list[Truth] = []
    found: list[ImageDetections] = []
    for _ in range(int(random.integers(1, 4))):
        objects, boxes = int(random.integers(0, 5)), int(random.integers(0, 9))
        corners, sides = random.integers(0, 3, (objects + boxes, 2)), random.integers(2, 7, (objects + boxes, 2))
        every = np.concatenate([corners, corners + sides], axis=1)
        difficult = random.random(objects) < 0.25 if random.random() < 0.5 else None
        truth.append((every[:objects].astype(np.float32), random.integers(0, 2, objects), difficult))
        scores = (random.integers(0, 5, boxes) / 4).astype(np.float32)
        found.append(ImageDetections(every[objects:], scores, random.integers(0, 2, boxes)))
    return truth, found
