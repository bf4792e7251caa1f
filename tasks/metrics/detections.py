"""The detections of one image, and their passage through a safetensors object.

An evaluation that is spread over slots leaves one object a part. Each part is a few flat arrays keyed by
the image's index in the test set, so that merging the parts gives what one evaluation would have given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.errors import DataError

_DTYPES = {
    "images": np.dtype(np.int64),
    "counts": np.dtype(np.int64),
    "boxes": np.dtype(np.float32),
    "scores": np.dtype(np.float32),
    "labels": np.dtype(np.int64),
}


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The n detections of one image.

    ``boxes`` float32 [n, 4], xmin, ymin, xmax, ymax in pixels of the original image; ``scores`` float32 [n];
    ``labels`` int64 [n], indices into the data set's classes. Sequences are converted.

    Raises:
        DataError: the shapes do not fit together.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes, dtype=np.float32)
        scores = np.asarray(self.scores, dtype=np.float32)
        labels = np.asarray(self.labels, dtype=np.int64)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(f"detections: boxes: expected shape [n, 4], found {list(boxes.shape)}")
        for name, array in (("scores", scores), ("labels", labels)):
            if array.shape != (len(boxes),):
                raise DataError(
                    f"detections: {name}: expected shape [{len(boxes)}], one a box, found {list(array.shape)}"
                )
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def empty(cls) -> ImageDetections:
        """An image in which nothing was found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def pack(detections: Mapping[int, ImageDetections]) -> dict[str, np.ndarray]:
    """Flat arrays for one safetensors object, images in ascending order, images without a detection included.

    ``images`` and ``counts`` int64 [m]: index and number of detections of each image; ``boxes`` float32 [n,
    4], ``scores`` float32 [n] and ``labels`` int64 [n]: those of all images, one after the other.
    """
    images = sorted(detections)
    parts = [detections[image] for image in images]
    return {
        "images": np.array(images, np.int64),
        "counts": np.array([len(part) for part in parts], np.int64),
        "boxes": np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes for part in parts)]),
        "scores": np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)]),
        "labels": np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)]),
    }


def unpack(arrays: Mapping[str, np.ndarray], *, source: str = "detections") -> dict[int, ImageDetections]:
    """The inverse of :func:`pack`. ``source`` is the object that a message names.

    Raises:
        DataError: an array is missing, or its type, shape or content is not what :func:`pack` writes.
    """
    if set(arrays) != set(_DTYPES):
        raise DataError(
            f"{source}: expected the arrays {', '.join(_DTYPES)}, found {', '.join(sorted(arrays)) or 'none'}"
        )
    total = len(arrays["boxes"])
    shapes = {
        "images": (len(arrays["images"]),),
        "counts": (len(arrays["images"]),),
        "boxes": (total, 4),
        "scores": (total,),
        "labels": (total,),
    }
    for name, dtype in _DTYPES.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != shapes[name]:
            raise DataError(
                f"{source}: {name}: expected {dtype} {list(shapes[name])}, found {array.dtype} {list(array.shape)}"
            )
    images, counts = arrays["images"], arrays["counts"]
    if (images < 0).any() or (np.diff(images) <= 0).any():
        raise DataError(f"{source}: images: expected indices from 0 in ascending order, each once")
    if (counts < 0).any() or counts.sum() != total:
        raise DataError(f"{source}: counts: expected {total} in all, the number of boxes, found {counts.sum()}")
    ends = np.cumsum(counts)
    return {
        int(image): ImageDetections(
            arrays["boxes"][end - count : end],
            arrays["scores"][end - count : end],
            arrays["labels"][end - count : end],
        )
        for image, count, end in zip(images, counts, ends, strict=True)
    }


def merge(parts: Iterable[Mapping[int, ImageDetections]]) -> dict[int, ImageDetections]:
    """The parts of one evaluation as a whole, images in ascending order, whatever the order of the parts.

    Raises:
        DataError: two parts hold the same image.
    """
    merged: dict[int, ImageDetections] = {}
    for part in parts:
        twice = sorted(merged.keys() & part.keys())
        if twice:
            raise DataError(f"detections: expected each image in one part, found image {twice[0]} in two")
        merged.update(part)
    return dict(sorted(merged.items()))


def in_order(detections: Mapping[int, ImageDetections], images: int) -> list[ImageDetections]:
    """The detections of images 0 to ``images`` - 1 as the list that ``tasks.metrics.voc.evaluate_voc`` takes.

    Raises:
        DataError: an image is missing, or is none of the test set's.
    """
    missing = sorted(set(range(images)) - detections.keys())
    if missing:
        raise DataError(f"detections: expected images 0 to {images - 1}, image {missing[0]} is missing")
    if len(detections) > images:
        raise DataError(f"detections: expected images 0 to {images - 1}, found image {max(detections)}")
    return [detections[image] for image in range(images)]
