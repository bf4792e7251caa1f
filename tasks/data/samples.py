"""Labelled images and how a federation's clients share them. Nothing here reads a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ImageSample:
    """One image and its objects.

    ``boxes`` is float32 [n, 4], xmin, ymin, xmax, ymax in pixels of the original image; ``labels`` is int64
    [n], indices into the data set's classes; ``key`` is the image's id and ``content`` the sha256 (hex) of
    the file. ``difficult`` is bool [n], PASCAL VOC's flag; None: no object has it. An evaluation ignores
    difficult objects. Training and the test loss take them as any other: the devkit leaves it open, torchvision's
    ``VOCDetection`` hands them all over and Detectron2 trains on them (Darknet's ``voc_label.py`` drops them).
    ``turn`` is the EXIF orientation that the reading applies, 1: pixels as they are stored; size and boxes are of what
    is read.
    """

    path: Path
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    key: str
    content: str
    difficult: NDArray[np.bool_] | None = None
    turn: int = 1


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set, divided among clients.

    With one global test set, all clients share the same tuple in ``test``, so that it is evaluated once.
    ``digest`` is the sha256 (hex) of the content; both divisions of one data set have the same.
    """

    name: str
    digest: str
    classes: tuple[str, ...]
    train: dict[str, tuple[ImageSample, ...]]
    test: dict[str, tuple[ImageSample, ...]]


def samples_digest(samples: Iterable[ImageSample]) -> str:
    """sha256 (hex) over images as read, boxes, labels and difficult ones, in order: equal test sets have one digest.

    Paths and image ids do not count, so two machines that keep the set in different folders agree.
    """
    digest = hashlib.sha256()
    for sample in samples:
        # Counts come first, so that no two different lists of samples give the same bytes.
        turned = "" if sample.turn == 1 else f" turned {sample.turn}"
        marked = sample.difficult is not None and bool(sample.difficult.any())
        digest.update(f"{sample.content} {len(sample.labels)}{' difficult' * marked}{turned}\n".encode())
        digest.update(sample.boxes.astype("<f4").tobytes())
        digest.update(sample.labels.astype("<i8").tobytes())
        if sample.difficult is not None and marked:
            digest.update(sample.difficult.astype(np.uint8).tobytes())
    return digest.hexdigest()


def class_counts(samples: Iterable[ImageSample], classes: Sequence[str]) -> dict[str, int]:
    """Number of boxes by class name; a class without boxes counts 0."""
    counts = np.zeros(len(classes), dtype=np.int64)
    for sample in samples:
        counts += np.bincount(sample.labels, minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
