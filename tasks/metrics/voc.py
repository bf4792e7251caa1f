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
from tasks.metrics.matching import match_detections
from tasks.metrics.truth import Truth, mean_over_classes


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


def recall_and_precision(
    right: npt.NDArray[np.bool_], objects: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return recall and precision after each detection of a class, both [n]. right: bool [n], best first."""
    hits = np.cumsum(right)
    return hits / objects, hits / np.arange(1, len(hits) + 1)


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
    matches = match_detections(
        truth, detections, classes, iou=iou, score_threshold=score_threshold, max_per_class=max_per_class
    )
    wanted_of = matches.wanted(len(classes))
    per_class: dict[str, float | None] = {}
    per_class_voc07: dict[str, float | None] = {}
    recall_per_class: dict[str, float | None] = {}
    for index, name in enumerate(classes):
        if wanted_of[index] == 0:
            per_class[name] = per_class_voc07[name] = recall_per_class[name] = None
            continue
        recall, precision = recall_and_precision(matches.of_class(index), int(wanted_of[index]))
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
