"""Compare the detections of an exported network with the detector's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.detectors.base import Detections, Detector
from tasks.spec.training import EvaluationSpec

# Two detections are the same if they have one label, and their scores and the sides of their boxes differ by no more.
SCORE, PIXELS = 0.01, 1.0
# Runtimes round differently. A score at the threshold, or an overlap at suppression's limit, may then fall on the other
# side: about one box in a thousand of an untrained network, whose scores lie close together, and none of a trained one.
MOST_UNMATCHED = 0.01


@dataclass(frozen=True)
class Agreement:
    """The result over ``images`` images.

    boxes: detections of both networks. unmatched: those of one network that the other lacks. score, pixels: the largest
    differences between detections that are the same.
    """

    images: int = 0
    boxes: int = 0
    unmatched: int = 0
    score: float = 0.0
    pixels: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the networks differ by rounding alone."""
        return self.unmatched <= MOST_UNMATCHED * self.boxes

    def __str__(self) -> str:
        images = f"{self.images} image{'' if self.images == 1 else 's'}"
        return (
            f"{images}, {self.boxes - self.unmatched} of {self.boxes} boxes the same, scores to {self.score:.1g}, "
            f"sides to {self.pixels:.1g} pixels"
        )


@torch.no_grad()
def agreement(
    detector: Detector, run: Callable[[Tensor], Detections], images: Iterable[Tensor], rules: EvaluationSpec
) -> Agreement:
    """Compare the detections of ``run`` with the detector's on ``images``, each [1, 3, H, W]."""
    total = Agreement()
    for image in images:
        outputs = detector(image)
        (expected,) = detector.predict(
            outputs,
            score_threshold=rules.score_threshold,
            nms_iou=rules.nms_iou,
            max_detections=rules.max_detections,
        )
        one = compared(expected, run(image))
        total = Agreement(
            total.images + 1,
            total.boxes + one.boxes,
            total.unmatched + one.unmatched,
            max(total.score, one.score),
            max(total.pixels, one.pixels),
        )
    return total


def compared(expected: Detections, found: Detections) -> Agreement:
    """Compare the detections in one image. Each is matched at most once, with the nearest that is the same."""
    free = torch.ones(len(found.scores), dtype=torch.bool)
    scores, pixels, matched = 0.0, 0.0, 0
    for box, score, label in zip(expected.boxes, expected.scores, expected.labels, strict=True):
        apart = (found.boxes - box).abs().amax(dim=1)
        differs = (found.scores - score).abs()
        same = free & (found.labels == label) & (differs <= SCORE) & (apart <= PIXELS)
        if not bool(same.any()):
            continue
        best = int(torch.where(same, apart, torch.inf).argmin())
        free[best] = False
        matched += 1
        scores, pixels = max(scores, float(differs[best])), max(pixels, float(apart[best]))
    boxes = len(expected.scores) + len(found.scores)
    return Agreement(1, boxes, boxes - 2 * matched, scores, pixels)
