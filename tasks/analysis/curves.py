"""Precision over recall by class, and the score at which precision and recall are best balanced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.metrics.matching import Matches
from tasks.metrics.voc import average_precision_voc10, recall_and_precision


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision over recall of one class: n points, one for each of its detections that is right or wrong, best first.

    ``recall``, ``precision`` float64 [n], from 0 to 1; ``scores`` float32 [n], that of the point's detection;
    ``envelope`` float64 [n]: the highest precision at the point's recall or beyond, the line over the area that
    ``average_precision`` is. ``objects``: those of the class that count, at least 1.
    """

    name: str
    recall: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    objects: int
    average_precision: float

    @property
    def envelope(self) -> npt.NDArray[np.float64]:
        return np.maximum.accumulate(self.precision[::-1])[::-1]

    def at(self, threshold: float) -> tuple[float, float] | None:
        """Return recall and precision of the detections with at least the score ``threshold``; None: there are none."""
        kept = int((self.scores >= threshold).sum())
        return (float(self.recall[kept - 1]), float(self.precision[kept - 1])) if kept else None


def class_curves(matches: Matches, classes: Sequence[str]) -> list[Curve]:
    """Return the curve of each class with objects. Without detections a curve has no points, and its area is 0."""
    found = []
    for label, (name, objects) in enumerate(zip(classes, matches.wanted(len(classes)), strict=True)):
        if not objects:
            continue
        rows = (matches.labels == label) & ~matches.ignored
        recall, precision = recall_and_precision(matches.right[rows], int(objects))
        area = average_precision_voc10(recall, precision)
        found.append(Curve(name, recall, precision, matches.scores[rows], int(objects), area))
    return found


def best_threshold(matches: Matches) -> float | None:
    """Return the score with the highest F1 of the detections at or above it, over all classes together.

    F1 is twice the right detections by all detections and objects that count. Of equal F1 the highest score is
    returned. None: there is no right detection.
    """
    kept = ~matches.ignored
    right, scores = matches.right[kept], matches.scores[kept]
    if not right.any():
        return None
    hits = np.cumsum(right)
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + int(matches.counted.sum()))
    last = np.append(scores[1:] != scores[:-1], True)  # a threshold lets all detections of one score through
    return float(scores[last][np.argmax(f1[last])])
