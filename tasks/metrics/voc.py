"""Average precision as PASCAL VOC measures it: since 2010 over all points, before that over eleven.

The rules are those of the challenge's development kits (``VOCevaldet.m``, ``VOCap.m``; Everingham et al., *The PASCAL
Visual Object Classes (VOC) Challenge*, IJCV 2010, section 4.2, and *A Retrospective*, IJCV 2015, section 2.2). Boxes
span whole pixels, so a side is ``max - min + 1``. A detection is compared with the one object of its class that it
overlaps most. It is right if that overlap is at least 0.5 and no better-scored detection has claimed the object. The
two years differ only in how they compute a figure from the precision-recall curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.metrics.detections import ImageDetections
from tasks.metrics.truth import Truth, check_labels, check_lengths, checked_truth, mean_over_classes

_PAIRS = 1 << 18  # pairs of a box and an object that are compared at a time; each pair takes some 100 bytes


@dataclass(frozen=True)
class VocResult:
    """Figures of one evaluation, all from 0 to 1, or None without an object that counts.

    ``map50_voc10`` is the mean of ``per_class`` over the classes with objects (it is named for the default
    ``iou``), ``map50_voc07`` that of ``per_class_voc07``. ``recall`` is the mean of ``recall_per_class`` over the
    same classes: the part of a class's objects that a detection at or above the score threshold found.
    """

    map50_voc10: float | None
    map50_voc07: float | None
    per_class: dict[str, float | None]
    per_class_voc07: dict[str, float | None]
    recall: float | None
    recall_per_class: dict[str, float | None]


def average_precision_voc10(recall: npt.NDArray[np.floating], precision: npt.NDArray[np.floating]) -> float:
    """Return the area under precision over recall, each precision raised to the highest at this or a greater recall.

    Both [n], one value for each detection in falling order of score; n = 0 gives 0. (``VOCap.m``, VOC 2010.)
    """
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope[1:]))


def average_precision_voc07(recall: npt.NDArray[np.floating], precision: npt.NDArray[np.floating]) -> float:
    """Return the mean of the highest precision at or beyond the recalls 0, 0.1, … 1, 0 where no recall is that high.

    The arguments are as for :func:`average_precision_voc10`. (``VOCevaldet.m``, VOC 2007.) The eleven recalls are the
    nearest numbers to tenths, so that 3 objects of 10 reach 0.3. Some implementations count up in steps of 0.1; their
    point is 0.30000000000000004, which 3 objects of 10 do not reach.
    """
    highest = [precision[recall >= tenth / 10].max(initial=0.0) for tenth in range(11)]
    return float(np.mean(highest))


def evaluate_voc(
    truth: Sequence[Truth],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
    *,
    iou: float = 0.5,
    score_threshold: float,
    max_per_class: int,
) -> VocResult:
    """Score the detections of a whole test set; ``truth`` and ``detections`` run over the same images.

    Detections under ``score_threshold`` do not count. Of each image and class, only the ``max_per_class`` best count.
    Equal scores are taken in the order of (image, detection), so that detections merged from parts have exactly the
    figures of one evaluation. A difficult object need not be found, and a detection of it is not wrong. A class
    without objects has no AP (None), and a test set without objects has no mAP. Without detections, figures are 0.

    Raises:
        DataError: the sequences differ in length, a shape does not fit, or a label is not one of ``classes``.
    """
    check_lengths(len(truth), len(detections))
    scores: list[np.ndarray] = [np.zeros(0)]
    labels: list[np.ndarray] = [np.zeros(0, np.int64)]
    matches: list[np.ndarray] = [np.zeros(0, np.int64)]  # index over all objects of the test set; -1: none
    object_labels: list[np.ndarray] = [np.zeros(0, np.int64)]
    object_difficult: list[np.ndarray] = [np.zeros(0, np.bool_)]
    objects = 0
    for image, (wanted, found) in enumerate(zip(truth, detections, strict=True)):
        boxes, wanted_labels, difficult = checked_truth(wanted, len(classes), image)
        check_labels(found.labels, len(classes), f"image {image}: detections")
        kept = _best_of_each_class(found, score_threshold, max_per_class)
        best, overlap = _most_overlapped(found.boxes[kept], found.labels[kept], boxes, wanted_labels)
        scores.append(found.scores[kept])
        labels.append(found.labels[kept])
        matches.append(np.where(overlap >= iou, best + objects, -1))
        object_labels.append(wanted_labels)
        object_difficult.append(difficult)
        objects += len(boxes)
    counted = ~np.concatenate(object_difficult)
    wanted_of = np.bincount(np.concatenate(object_labels)[counted], minlength=len(classes))
    # Detections are in the order of (image, detection), and a stable sort keeps that order for equal scores.
    order = np.argsort(-np.concatenate(scores), kind="stable")
    label, match = np.concatenate(labels)[order], np.concatenate(matches)[order]

    per_class: dict[str, float | None] = {}
    per_class_voc07: dict[str, float | None] = {}
    recall_per_class: dict[str, float | None] = {}
    for index, name in enumerate(classes):
        if wanted_of[index] == 0:
            per_class[name] = per_class_voc07[name] = recall_per_class[name] = None
            continue
        right = _first_claims(match[label == index], counted)
        hits = np.cumsum(right)
        recall = hits / wanted_of[index]
        precision = hits / np.arange(1, len(hits) + 1)
        per_class[name] = average_precision_voc10(recall, precision)
        per_class_voc07[name] = average_precision_voc07(recall, precision)
        recall_per_class[name] = float(recall[-1]) if len(recall) else 0.0
    return VocResult(
        map50_voc10=mean_over_classes(per_class),
        map50_voc07=mean_over_classes(per_class_voc07),
        per_class=per_class,
        per_class_voc07=per_class_voc07,
        recall=mean_over_classes(recall_per_class),
        recall_per_class=recall_per_class,
    )


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
    if not len(boxes) or not len(wanted):
        return np.zeros(len(boxes), np.int64), np.full(len(boxes), -1.0)
    step = max(_PAIRS // len(wanted), 1)
    if len(boxes) > step:
        parts = [slice(start, start + step) for start in range(0, len(boxes), step)]
        found = [_most_overlapped(boxes[part], labels[part], wanted, wanted_labels) for part in parts]
        return np.concatenate([best for best, _ in found]), np.concatenate([overlap for _, overlap in found])
    left, right = boxes[:, None, :].astype(np.float64), wanted[None, :, :]
    with np.errstate(invalid="ignore", over="ignore"):  # a box that is not finite overlaps nothing
        width = np.minimum(left[..., 2], right[..., 2]) - np.maximum(left[..., 0], right[..., 0]) + 1
        height = np.minimum(left[..., 3], right[..., 3]) - np.maximum(left[..., 1], right[..., 1]) + 1
        shared = np.where((width > 0) & (height > 0), width * height, 0.0)
        overlap = shared / (_area(left) + _area(right) - shared)
    overlap = np.where((labels[:, None] == wanted_labels[None, :]) & np.isfinite(overlap), overlap, -1.0)
    best = np.argmax(overlap, axis=1)
    return best, overlap[np.arange(len(boxes)), best]


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0] + 1) * (boxes[..., 3] - boxes[..., 1] + 1)


def _first_claims(match: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return whether each detection of a class, best first, is right. Detections of difficult objects are left out."""
    match = match[(match < 0) | counted[match]]
    right = np.zeros(len(match), np.bool_)
    _, first = np.unique(match, return_index=True)
    right[first] = True
    return right & (match >= 0)
