"""Read and check a part of an evaluation on the coordinator, before it is scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from infra.errors import BadReply, StoreCorrupt
from infra.store.layout import FederationLayout
from tasks.detectors.suppression import MAX_CANDIDATES
from tasks.errors import DataError
from tasks.handles import Handles
from tasks.metrics.detections import ImageDetections, unpack
from tasks.metrics.truth import Truth, check_labels, unpack_truth
from tasks.replies import images_of
from tasks.spec.turns import EvaluationRequest, TurnReply
from tasks.strategies.updates import check_header

# Limits of objects: in one image, and on average over a part's images. The densest public test sets have a few hundred.
MOST_OBJECTS, MOST_OBJECTS_ON_AVERAGE = 10_000, 1_000
# More of each class: an ignore region of any class is one difficult object of each class.
MOST_REGIONS, MOST_REGIONS_ON_AVERAGE = 100, 10
# Bytes in a part: of a detection (4 float32 corners, an int64 label, a float32 score), of a true object (a flag instead
# of the score), and of an image (index and count, for detections and for truth).
_DETECTION_BYTES, _TRUTH_BYTES, _IMAGE_BYTES = 28, 25, 32
_MOST_HEADER = 1 << 16
_ARRAYS = {
    "detections": {"images": "I64", "counts": "I64", "boxes": "F32", "scores": "F32", "labels": "I64"},
    "truth": {"images": "I64", "counts": "I64", "boxes": "F32", "labels": "I64", "difficult": "BOOL"},
}


@dataclass(frozen=True)
class Part:
    """A part of an evaluation: detections and true objects by the image's index in the test set.

    batch_losses: for each batch, its mean loss times its number of images.
    """

    detections: dict[int, ImageDetections]
    truth: dict[int, Truth]
    batch_losses: tuple[float, ...]


def part_key(layout: FederationLayout, request: EvaluationRequest) -> str:
    """Return the key under which the turn of ``request`` stores its detections and truth."""
    images = request.test_digest[:16] if request.on == "test" else f"{request.on}-{request.test_digest[:16]}"
    images = f"own-{images}" if request.personal else images
    part = f"{images}-{request.part:03d}-of-{request.parts:03d}"
    return layout.evaluation_part(request.round, request.clients[0], part)


def most_detections(request: EvaluationRequest, classes: int) -> int:
    """Return the most detections that an image can have after non-maximum suppression."""
    return min(MAX_CANDIDATES, classes * request.spec.evaluation.max_detections)


def most_on_average(classes: int) -> int:
    """Return the most true objects of an image, on average over a part's images."""
    return MOST_OBJECTS_ON_AVERAGE + MOST_REGIONS_ON_AVERAGE * classes


def most_bytes(request: EvaluationRequest, classes: int) -> int:
    """Return the most bytes that a part's object can have."""
    of_image = (
        _IMAGE_BYTES + _DETECTION_BYTES * most_detections(request, classes) + _TRUTH_BYTES * most_on_average(classes)
    )
    return _MOST_HEADER + images_of(request) * of_image


def read_part(handles: Handles, request: EvaluationRequest, reply: TurnReply, classes: int) -> Part:
    """Return the part in the store that ``reply`` to ``request`` names. ``classes``: number of the data set's classes.

    Raises:
        BadReply: the object is missing or too large, has another sha256, is no safetensors file, or holds anything
            but detections and true objects of exactly the part's images.
        StoreUnavailable: the store does not answer.
    """
    ref, key = reply.detections, part_key(handles.layout, request)
    if ref is None or ref.key != key:
        raise BadReply(f"reply: detections: expected {key}, found {ref.key[:200] if ref else 'none'}")
    if ref.bytes > most_bytes(request, classes):
        raise BadReply(f"{key}: expected at most {most_bytes(request, classes)} bytes, found {ref.bytes}")
    try:
        arrays = _read_arrays(handles.weights.get(ref.key, ref.sha256, ref.bytes).path, key)
        found = unpack(arrays["detections"], source=f"{key}: detections")
        truth = unpack_truth(arrays["truth"], source=f"{key}: truth")
        _check_images(request, arrays, classes, key)
    except (DataError, StoreCorrupt) as error:
        raise BadReply(str(error)) from None
    return Part(found, truth, reply.batch_losses)


def _read_arrays(file: Path, key: str) -> dict[str, dict[str, np.ndarray]]:
    """
    Raises:
        DataError: the file is not in safetensors format, or its arrays have other names or types than a part's.
    """
    expected = {f"{group}/{name}": kind for group, names in _ARRAYS.items() for name, kind in names.items()}
    found: dict[str, dict[str, np.ndarray]] = {group: {} for group in _ARRAYS}
    try:
        check_header(file, _MOST_HEADER)
        with safe_open(file, framework="np") as part:
            if set(part.keys()) != set(expected):
                raise DataError(f"{key}: expected the arrays {', '.join(expected)}, found others")
            for name, kind in expected.items():
                entry = part.get_slice(name)
                rank = 2 if name.endswith("/boxes") else 1
                if entry.get_dtype() != kind or len(entry.get_shape()) != rank:
                    raise DataError(
                        f"{key}: {name}: expected {kind} of {rank} dimensions, "
                        f"found {entry.get_dtype()} {entry.get_shape()}"
                    )
                group, _, column = name.partition("/")
                found[group][column] = part.get_tensor(name)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{key}: expected arrays in safetensors format, found {error}") from None
    # numpy's indexing with booleans relies on bytes of 0 or 1.
    if (found["truth"]["difficult"].view(np.uint8) > 1).any():
        raise DataError(f"{key}: truth/difficult: expected false or true, found another byte")
    return found


def _check_images(request: EvaluationRequest, arrays: dict[str, dict[str, np.ndarray]], classes: int, key: str) -> None:
    """
    Raises:
        DataError: there are other images than the part's, an image with too many boxes, too many objects on average,
            a label that belongs to no class, or a true box that is not finite.
    """
    index = np.arange(request.test_size)
    size = request.spec.evaluation.batch_on(request.spec.training.device)
    expected = index[index // size % request.parts == request.part]
    most = {"detections": most_detections(request, classes), "truth": MOST_OBJECTS + MOST_REGIONS * classes}
    for group, columns in arrays.items():
        if not np.array_equal(columns["images"], expected):
            raise DataError(f"{key}: {group}: images: expected the {len(expected)} of the part, found others")
        counts = columns["counts"]
        if counts.max(initial=0) > most[group]:
            worst = int(counts.argmax())
            raise DataError(
                f"{key}: {group}: counts: expected at most {most[group]} boxes in an image, "
                f"found {counts[worst]} in image {expected[worst]}"
            )
        check_labels(columns["labels"], classes, f"{key}: {group}")
    difficult = arrays["truth"]["difficult"]
    if len(difficult) > most_on_average(classes) * len(expected) or (~difficult).sum() > MOST_OBJECTS_ON_AVERAGE * len(
        expected
    ):
        raise DataError(
            f"{key}: truth: expected at most {MOST_OBJECTS_ON_AVERAGE} objects an image on average, "
            f"and {MOST_REGIONS_ON_AVERAGE * classes} more that are difficult"
        )
    if not np.isfinite(arrays["truth"]["boxes"]).all():
        raise DataError(f"{key}: truth: boxes: expected finite numbers")
