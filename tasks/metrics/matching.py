"""Compare the detections of a test set with its objects by PASCAL VOC's rule (see :mod:`tasks.metrics.voc`).

All measures that count right and wrong detections start from :func:`match_detections`: average precision by VOC's
rules, the curves of precision over recall, the types of errors and the confusion matrix. A detection is right or wrong
whatever the other images hold. So a sample of images, as a bootstrap draws it, needs no new comparison: repeat the
detections and the objects of each drawn image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.metrics.detections import ImageDetections
from tasks.metrics.truth import Truth, check_labels, check_lengths, checked_truth

_PAIRS = 1 << 18  # pairs of a box and an object that are compared at a time; each pair takes some 100 bytes


@dataclass(frozen=True, eq=False)
class Matches:
    """The n detections of a test set that count, best first, and its m objects, in the order of the images.

    Of detections: ``scores`` float32 [n]; ``labels`` int64 [n]; ``images`` int64 [n], index of the image; ``places``
    int64 [n], index in the image's detections; ``objects`` int64 [n], index of the object of its class that the
    detection overlaps most, -1 if that overlap is under the threshold; ``right`` bool [n]; ``ignored`` bool [n]: it is
    a detection of a difficult object, neither right nor wrong.

    Of objects: ``object_labels``, ``object_images`` int64 [m]; ``counted`` bool [m]: the object is not difficult;
    ``found`` bool [m]: a right detection claims it.
    """

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    objects: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    object_labels: npt.NDArray[np.int64]
    object_images: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_]
    found: npt.NDArray[np.bool_]

    def wanted(self, classes: int) -> npt.NDArray[np.int64]:
        """Return the number of objects of each class, [classes], without difficult ones."""
        return np.bincount(self.object_labels[self.counted], minlength=classes)

    def of_class(self, label: int) -> npt.NDArray[np.bool_]:
        """Return for each right or wrong detection of a class, best first, whether it is right."""
        return self.right[(self.labels == label) & ~self.ignored]


def match_detections(
    truth: Sequence[Truth],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
    *,
    iou: float = 0.5,
    score_threshold: float,
    max_per_class: int,
) -> Matches:
    """Compare the detections of a whole test set; ``truth`` and ``detections`` run over the same images.

    Detections under ``score_threshold`` do not count. Of each image and class, only the ``max_per_class`` best count.
    Equal scores are taken in the order of (image, detection), so that detections merged from parts give exactly the
    result of one evaluation.

    Raises:
        DataError: the sequences differ in length, a shape does not fit, or a label is not one of ``classes``.
    """
    check_lengths(len(truth), len(detections))
    scores: list[np.ndarray] = [np.zeros(0, np.float32)]
    labels: list[np.ndarray] = [np.zeros(0, np.int64)]
    images: list[np.ndarray] = [np.zeros(0, np.int64)]
    places: list[np.ndarray] = [np.zeros(0, np.int64)]
    objects: list[np.ndarray] = [np.zeros(0, np.int64)]
    object_labels: list[np.ndarray] = [np.zeros(0, np.int64)]
    object_images: list[np.ndarray] = [np.zeros(0, np.int64)]
    object_difficult: list[np.ndarray] = [np.zeros(0, np.bool_)]
    before = 0
    for image, (wanted, found) in enumerate(zip(truth, detections, strict=True)):
        boxes, wanted_labels, difficult = checked_truth(wanted, len(classes), image)
        check_labels(found.labels, len(classes), f"image {image}: detections")
        kept = _best_of_each_class(found, score_threshold, max_per_class)
        best, overlap = _most_overlapped(found.boxes[kept], found.labels[kept], boxes, wanted_labels)
        scores.append(found.scores[kept])
        labels.append(found.labels[kept])
        images.append(np.full(len(kept), image, np.int64))
        places.append(kept)
        objects.append(np.where(overlap >= iou, best + before, -1))
        object_labels.append(wanted_labels)
        object_images.append(np.full(len(boxes), image, np.int64))
        object_difficult.append(difficult)
        before += len(boxes)
    # Detections are in the order of (image, detection), and a stable sort keeps that order for equal scores.
    order = np.argsort(-np.concatenate(scores), kind="stable")
    match, counted = np.concatenate(objects)[order], ~np.concatenate(object_difficult)
    ignored = np.zeros(len(match), np.bool_)
    ignored[match >= 0] = ~counted[match[match >= 0]]
    right = _first_claims(match) & ~ignored
    found_objects = np.zeros(before, np.bool_)
    found_objects[match[right]] = True
    return Matches(
        scores=np.concatenate(scores)[order],
        labels=np.concatenate(labels)[order],
        images=np.concatenate(images)[order],
        places=np.concatenate(places)[order],
        objects=match,
        right=right,
        ignored=ignored,
        object_labels=np.concatenate(object_labels),
        object_images=np.concatenate(object_images),
        counted=counted,
        found=found_objects,
    )


def rows_by_image(matches: Matches, chosen: npt.NDArray[np.bool_], images: int) -> list[npt.NDArray[np.int64]]:
    """Return the rows of the ``chosen`` detections, bool [n], of each of the ``images``, best first."""
    rows = np.flatnonzero(chosen)
    rows = rows[np.argsort(matches.images[rows], kind="stable")]
    return np.split(rows, np.searchsorted(matches.images[rows], np.arange(1, images)))[:images]


def overlaps(boxes: np.ndarray, objects: np.ndarray) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
    """Yield the IoU of ``boxes`` [n, 4] with ``objects`` [m, 4], for a slice of the boxes at a time: [slice, m].

    Boxes span whole pixels. A box that is not finite overlaps nothing. The slices bound the memory.
    """
    step = max(_PAIRS // max(len(objects), 1), 1)
    right = objects[None, :, :].astype(np.float64)
    for start in range(0, len(boxes), step):
        part = slice(start, min(start + step, len(boxes)))
        left = boxes[part, None, :].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            width = np.minimum(left[..., 2], right[..., 2]) - np.maximum(left[..., 0], right[..., 0]) + 1
            height = np.minimum(left[..., 3], right[..., 3]) - np.maximum(left[..., 1], right[..., 1]) + 1
            shared = np.where((width > 0) & (height > 0), width * height, 0.0)
            overlap = shared / (_area(left) + _area(right) - shared)
        yield part, np.where(np.isfinite(overlap), overlap, -1.0)


def _best_of_each_class(found: ImageDetections, score_threshold: float, most: int) -> np.ndarray:
    """Return the indices, ascending, of the detections that count. A NaN score is under every threshold."""
    above = np.flatnonzero(found.scores >= score_threshold)
    if len(above) <= most:
        return above
    ranked = above[np.lexsort((-found.scores[above], found.labels[above]))]  # lexsort is stable
    ranked_labels = found.labels[ranked]
    rank = np.arange(len(ranked)) - np.searchsorted(ranked_labels, ranked_labels, side="left")
    return np.sort(ranked[rank < most])


def _most_overlapped(
    boxes: np.ndarray, labels: np.ndarray, wanted: np.ndarray, wanted_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each box, the object of its class that it overlaps most (the first of equals), and their IoU."""
    best, most = np.zeros(len(boxes), np.int64), np.full(len(boxes), -1.0)
    if not len(wanted):
        return best, most
    for part, overlap in overlaps(boxes, wanted):
        overlap = np.where(labels[part, None] == wanted_labels[None, :], overlap, -1.0)
        best[part] = np.argmax(overlap, axis=1)
        most[part] = overlap[np.arange(len(overlap)), best[part]]
    return best, most


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def _first_claims(match: np.ndarray) -> np.ndarray:
    """Return whether each detection, best first, is the first of its object. ``match``: as :attr:`Matches.objects`."""
    right = np.zeros(len(match), np.bool_)
    _, first = np.unique(match, return_index=True)
    right[first] = True
    return right & (match >= 0)
