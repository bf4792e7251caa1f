"""The objects of one image in an evaluation, and their form in a safetensors object.

``difficult`` is a flag of PASCAL VOC's annotations: the object is hard to recognise without its surroundings. By all
measures of this package, a difficult object need not be found, and a detection of it is not wrong. That is the rule of
an ignore region, too. So truth holds a region as a difficult object of its class, and a region of any class as one
difficult object of each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tasks.errors import DataError
from tasks.metrics.detections import Columns, pack_columns, unpack_columns

# The objects of one image: boxes [m, 4] as in ImageDetections, labels [m], difficult [m] or None (no object is).
Truth = tuple[npt.NDArray[np.floating], npt.NDArray[np.integer], npt.NDArray[np.bool_] | None]
CheckedTruth = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]

_COLUMNS: Columns = {"boxes": np.dtype(np.float32), "labels": np.dtype(np.int64), "difficult": np.dtype(np.bool_)}


def pack_truth(truth: Mapping[int, Truth]) -> dict[str, np.ndarray]:
    """Return flat arrays as :func:`tasks.metrics.detections.pack`, with ``difficult`` bool [n] in place of scores."""
    rows = {
        image: (boxes, labels, np.zeros(len(labels), np.bool_) if difficult is None else difficult)
        for image, (boxes, labels, difficult) in truth.items()
    }
    return pack_columns(rows, _COLUMNS)


def unpack_truth(arrays: Mapping[str, np.ndarray], *, source: str = "truth") -> dict[int, Truth]:
    """Return the truth in arrays that :func:`pack_truth` made. Messages name the object ``source``.

    Raises:
        DataError: an array is missing, or its type, shape or content is not what :func:`pack_truth` writes.
    """
    return unpack_columns(arrays, _COLUMNS, lambda *columns: columns, source=source)


def checked_truth(truth: Truth, classes: int, image: int) -> CheckedTruth:
    """Return the truth of image number ``image`` in the types that the measures compute with.

    Raises:
        DataError: a shape does not fit, or a label is not from 0 to ``classes`` - 1.
    """
    boxes = np.asarray(truth[0], np.float64)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    labels = np.asarray(truth[1], np.int64)
    difficult = np.zeros(len(boxes), np.bool_) if truth[2] is None else np.asarray(truth[2], np.bool_)
    if boxes.shape != (len(boxes), 4) or labels.shape != (len(boxes),) or difficult.shape != (len(boxes),):
        raise DataError(
            f"image {image}: truth: expected boxes [m, 4], labels [m], difficult [m], "
            f"found {list(boxes.shape)}, {list(labels.shape)}, {list(difficult.shape)}"
        )
    check_labels(labels, classes, f"image {image}: truth")
    return boxes, labels, difficult


def count_objects(truth: Sequence[Truth], classes: Sequence[str]) -> dict[str, int]:
    """Return the number of objects by class, without difficult ones and ignore regions.

    Raises:
        DataError: as :func:`checked_truth`.
    """
    counts = np.zeros(len(classes), np.int64)
    for image, objects in enumerate(truth):
        _, labels, difficult = checked_truth(objects, len(classes), image)
        counts += np.bincount(labels[~difficult], minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}


def check_labels(labels: npt.NDArray[np.int64], classes: int, where: str) -> None:
    """Check that labels are class indices.

    Raises:
        DataError: a label is not from 0 to ``classes`` - 1.
    """
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(f"{where}: labels: expected class indices from 0 to {classes - 1}, found {wrong[0]}")


def check_lengths(truth: int, detections: int) -> None:
    """Check that an evaluation has truth and detections for equally many images.

    Raises:
        DataError: the numbers differ.
    """
    if truth != detections:
        raise DataError(f"evaluation: expected detections for {truth} images, found {detections}")


def mean_over_classes(per_class: Mapping[str, float | None]) -> float | None:
    """Return the mean over the classes with objects, or None if no class has any."""
    values = [value for value in per_class.values() if value is not None]
    return float(np.mean(values)) if values else None
