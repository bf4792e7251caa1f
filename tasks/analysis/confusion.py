"""The confusion matrix of a detector: which class the objects of each class are detected as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.metrics.detections import ImageDetections
from tasks.metrics.matching import Matches, overlaps, rows_by_image
from tasks.metrics.truth import Truth

BACKGROUND, MISSED = "background", "missed"


@dataclass(frozen=True, eq=False)
class Confusion:
    """Numbers of objects and detections, int64 [classes + 1, classes + 1].

    Row i < classes: the objects of class i, by the class of their detection; the last column has those without one.
    Last row: detections without an object, by their class. Only detections with at least the score ``threshold`` count.
    """

    classes: tuple[str, ...]
    counts: npt.NDArray[np.int64]
    threshold: float

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Each row as parts of its sum, from 0 to 1; NaN in a row without any."""
        with np.errstate(invalid="ignore"):
            return self.counts / self.counts.sum(axis=1, keepdims=True)


def confusion_matrix(
    matches: Matches,
    truth: Sequence[Truth],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
    *,
    threshold: float,
    iou: float = 0.5,
) -> Confusion:
    """Return the confusion matrix of the detections with at least the score ``threshold``.

    In each image the detections, best first, take the object of any class that they overlap most among those that are
    free, if the overlap is at least ``iou``. Difficult objects do not count; a detection that overlaps one by at least
    ``iou``, and has no other object, is left out.

    matches: those of ``truth`` and ``detections``; they say which detections count, and in which order.
    """
    size = len(classes)
    counts = np.zeros((size + 1, size + 1), np.int64)
    starts = np.searchsorted(matches.object_images, np.arange(len(truth)))
    for image, rows in enumerate(rows_by_image(matches, matches.scores >= threshold, len(truth))):
        boxes = np.asarray(truth[image][0], np.float64).reshape(-1, 4)
        numbers = starts[image] + np.arange(len(boxes))
        labels, counted = matches.object_labels[numbers], matches.counted[numbers]
        free = counted.copy()
        for part, overlap in overlaps(detections[image].boxes[matches.places[rows]], boxes):
            for row, given in zip(rows[part], overlap, strict=True):
                near = np.where(free, given, -1.0)
                best = int(near.argmax()) if len(near) else -1
                if best >= 0 and near[best] >= iou:
                    free[best] = False
                    counts[labels[best], matches.labels[row]] += 1
                elif not (given[~counted] >= iou).any():
                    counts[size, matches.labels[row]] += 1
        np.add.at(counts[:, size], labels[free], 1)
    return Confusion(tuple(classes), counts, threshold)
