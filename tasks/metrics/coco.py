"""Average precision as COCO measures it (Lin et al., arXiv 1405.0312; cocodataset.org/#detection-eval).

It is computed by pycocotools. Each detection, best first, takes the object of its class that it overlaps most among
those still free. Boxes span from edge to edge (no pixel is added). The area is that under the envelope at the 101
recalls 0, 0.01, … 1. So the figures differ from PASCAL VOC's in more than the area: if two detections both overlap two
objects, the second may take the object that the first left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import coco as coco_api
from pycocotools import cocoeval

from tasks.metrics.detections import ImageDetections
from tasks.metrics.truth import Truth, check_labels, check_lengths, checked_truth, mean_over_classes


@dataclass(frozen=True)
class CocoResult:
    """Figures of one evaluation, all from 0 to 1, or None without an object that counts.

    ``map50_coco`` is the mean of ``per_class_50`` (AP at IoU 0.5) over the classes with objects, ``map_coco`` that
    of ``per_class`` (the mean of the APs at IoU 0.50, 0.55, … 0.95). pycocotools adds 2e-16 to the denominator of
    each precision, so a perfect detector's figures are a few 1e-16 under 1.
    """

    map50_coco: float | None
    map_coco: float | None
    per_class: dict[str, float | None]
    per_class_50: dict[str, float | None]


def _print_nothing(*_: object) -> None:
    pass


# pycocotools prints its steps. Here print is replaced in its modules alone, because redirecting sys.stdout would also
# swallow the output of other threads.
coco_api.print = cocoeval.print = _print_nothing


def evaluate_coco(
    truth: Sequence[Truth],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
    *,
    score_threshold: float,
    max_per_class: int,
) -> CocoResult:
    """Score the detections of a whole test set; ``truth`` and ``detections`` run over the same images.

    Detections under ``score_threshold`` do not count. Of each image and class, only the ``max_per_class`` best count.
    Equal scores are taken in the order of (image, detection). Objects of every size count.

    Difficult objects are passed as ``iscrowd``, the only flag by which pycocotools ignores an object (it overwrites
    ``ignore``). As by VOC's rule, a difficult object need not be found, and no detection of it counts as wrong. Other
    than by VOC's rule, a detection is one of a difficult object if the part of *its own* area inside the object is at
    least the IoU threshold and no object that counts takes it.

    Raises:
        DataError: the sequences differ in length, a shape does not fit, or a label is not one of ``classes``.
    """
    check_lengths(len(truth), len(detections))
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for image, (wanted, given) in enumerate(zip(truth, detections, strict=True)):
        boxes, labels, difficult = checked_truth(wanted, len(classes), image)
        check_labels(given.labels, len(classes), f"image {image}: detections")
        objects += _annotations(image, boxes, labels, len(objects), "iscrowd", difficult.astype(np.int64))
        kept = given.scores >= score_threshold  # false for a score that is NaN
        # pycocotools takes a NaN overlap for a match. A box without area overlaps nothing.
        finite = np.where(np.isfinite(given.boxes).all(axis=1, keepdims=True), given.boxes, 0.0)
        found += _annotations(image, finite[kept], given.labels[kept], len(found), "score", given.scores[kept])

    evaluation = cocoeval.COCOeval(
        _indexed(objects, len(truth), len(classes)), _indexed(found, len(truth), len(classes)), iouType="bbox"
    )
    evaluation.params.maxDets = [max_per_class]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[-np.inf, np.inf]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    # `stats` is not used, because it assumes that maxDets is [1, 10, 100]. -1 stands for a class without objects.
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # [IoU thresholds, recalls, classes]
    at_50 = precision[np.flatnonzero(evaluation.params.iouThrs == 0.5)]
    per_class = {name: _mean_precision(precision[:, :, index]) for index, name in enumerate(classes)}
    per_class_50 = {name: _mean_precision(at_50[:, :, index]) for index, name in enumerate(classes)}
    return CocoResult(mean_over_classes(per_class_50), mean_over_classes(per_class), per_class, per_class_50)


def _annotations(
    image: int, boxes: np.ndarray, labels: np.ndarray, before: int, key: str, values: np.ndarray
) -> list[dict[str, Any]]:
    """Return one image's objects or detections in COCO's form: a corner, width and height."""
    corners = boxes.astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    areas = corners[:, 2] * corners[:, 3]
    rows = zip(corners.tolist(), areas.tolist(), labels.tolist(), values.tolist(), strict=True)
    return [
        # Ids start at 1, because pycocotools writes matched ids into an array in which 0 stands for no match.
        {"id": number, "image_id": image, "category_id": label, "bbox": bbox, "area": area, key: value}
        for number, (bbox, area, label, value) in enumerate(rows, before + 1)
    ]


def _indexed(annotations: list[dict[str, Any]], images: int, classes: int) -> Any:
    index = coco_api.COCO()
    index.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": annotations,
    }
    index.createIndex()
    return index


def _mean_precision(precision: np.ndarray) -> float | None:
    return float(precision.mean()) if (precision > -1).all() else None
