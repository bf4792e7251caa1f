"""The detections of one image, and their form in a safetensors object.

An evaluation that is spread over slots stores one object for each part. A part is a few flat arrays with the images'
indices in the test set, so that merging the parts gives the same result as one evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tasks.errors import DataError

Columns = Mapping[str, np.dtype[Any]]
_COLUMNS: Columns = {"boxes": np.dtype(np.float32), "scores": np.dtype(np.float32), "labels": np.dtype(np.int64)}

Item = TypeVar("Item")


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
        """Return the detections of an image in which nothing was found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def pack(detections: Mapping[int, ImageDetections]) -> dict[str, np.ndarray]:
    """Return flat arrays for one safetensors object, images in ascending order, including those without a detection.

    ``images`` and ``counts`` int64 [m]: index and number of detections of each image; ``boxes`` float32 [n,
    4], ``scores`` float32 [n] and ``labels`` int64 [n]: those of all images, one after the other.
    """
    rows = {image: (found.boxes, found.scores, found.labels) for image, found in detections.items()}
    return pack_columns(rows, _COLUMNS)


def unpack(arrays: Mapping[str, np.ndarray], *, source: str = "detections") -> dict[int, ImageDetections]:
    """Return the detections in arrays that :func:`pack` made. Messages name the object ``source``.

    Raises:
        DataError: an array is missing, or its type, shape or content is not what :func:`pack` writes.
    """
    return unpack_columns(arrays, _COLUMNS, ImageDetections, source=source)


def pack_columns(items: Mapping[int, Sequence[np.ndarray]], columns: Columns) -> dict[str, np.ndarray]:
    """Return ``images``, ``counts``, and the columns of all images, one after the other in ascending order.

    ``items`` holds, for each image, one array for each of ``columns``. ``boxes`` has four numbers a row, others one.
    """
    images = sorted(items)
    packed = {
        "images": np.array(images, np.int64),
        "counts": np.array([len(items[image][0]) for image in images], np.int64),
    }
    for number, (name, dtype) in enumerate(columns.items()):
        empty = np.zeros((0, 4) if name == "boxes" else 0, dtype)
        packed[name] = np.concatenate([empty, *(items[image][number].astype(dtype, copy=False) for image in images)])
    return packed


def unpack_columns(
    arrays: Mapping[str, np.ndarray], columns: Columns, make: Callable[..., Item], *, source: str
) -> dict[int, Item]:
    """Return the items in arrays that :func:`pack_columns` made. ``make`` takes an image's arrays, as ``columns`` are.

    Raises:
        DataError: an array is missing, or its type, shape or content is not what :func:`pack_columns` writes.
    """
    expected = ("images", "counts", *columns)
    if set(arrays) != set(expected):
        raise DataError(
            f"{source}: expected the arrays {', '.join(expected)}, found {', '.join(sorted(arrays)) or 'none'}"
        )
    total = len(arrays["boxes"]) if arrays["boxes"].ndim else -1
    index = np.dtype(np.int64)
    for name, dtype in {"images": index, "counts": index, **columns}.items():
        array = arrays[name]
        shape = (total, 4) if name == "boxes" else (total,) if name in columns else arrays["images"].shape[:1] or (-1,)
        if array.dtype != dtype or array.shape != shape:
            raise DataError(
                f"{source}: {name}: expected {dtype} {list(shape)}, found {array.dtype} {list(array.shape)}"
            )
    images, counts = arrays["images"], arrays["counts"]
    if (images < 0).any() or (np.diff(images) <= 0).any():
        raise DataError(f"{source}: images: expected indices from 0 in ascending order, each once")
    if (counts < 0).any() or (counts > total).any() or counts.sum() != total:  # a sum of larger counts could overflow
        raise DataError(f"{source}: counts: expected {total} in all, the number of boxes, found {counts.sum()}")
    ends = np.cumsum(counts)
    return {
        int(image): make(*(arrays[name][end - count : end] for name in columns))
        for image, count, end in zip(images, counts, ends, strict=True)
    }


def merge(parts: Iterable[Mapping[int, Item]]) -> dict[int, Item]:
    """Merge the parts of one evaluation (detections or truth), images in ascending order.

    The order of the parts does not matter.

    Raises:
        DataError: two parts hold the same image.
    """
    merged: dict[int, Item] = {}
    for part in parts:
        twice = sorted(merged.keys() & part.keys())
        if twice:
            raise DataError(f"detections: expected each image in one part, found image {twice[0]} in two")
        merged.update(part)
    return dict(sorted(merged.items()))


def in_order(detections: Mapping[int, Item], images: int) -> list[Item]:
    """Return the items of images 0 to ``images`` - 1 as the list that an evaluation takes.

    Raises:
        DataError: an image is missing, or is not in the test set.
    """
    missing = sorted(set(range(images)) - detections.keys())
    if missing:
        raise DataError(f"detections: expected images 0 to {images - 1}, image {missing[0]} is missing")
    if len(detections) > images:
        raise DataError(f"detections: expected images 0 to {images - 1}, found image {max(detections)}")
    return [detections[image] for image in range(images)]
