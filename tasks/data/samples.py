"""Labelled images, and their division among a federation's clients. Nothing here reads a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.spec.training import ScoredOn

# The label of an ignore region that may hold objects of any class.
ANY_CLASS = -1


@dataclass(frozen=True, eq=False)
class Regions:
    """The ignore regions of one image, which may hold objects that nobody annotated one by one.

    ``boxes`` is float32 [k, 4] as an image's. ``labels`` is int64 [k]: indices into the data set's classes, or
    :data:`ANY_CLASS`. Training does not use a region as background. An evaluation does not count detections in it.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def none(cls) -> Regions:
        """Return the regions of an image without any."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class ImageSample:
    """One image and its objects.

    ``boxes`` is float32 [n, 4]: xmin, ymin, xmax, ymax in pixels of the original image. ``labels`` is int64 [n]:
    indices into the data set's classes. ``key`` is the image's id and ``content`` the sha256 (hex) of the file.
    ``turn`` is the EXIF orientation that is applied when the image is read (1: pixels as stored). Size and boxes refer
    to the image as read.

    ``difficult`` is PASCAL VOC's flag, bool [n], or None if no object has it. An evaluation ignores difficult objects.
    Training and the test loss treat them like any other. The devkit leaves this open; torchvision's ``VOCDetection``
    returns them all and Detectron2 trains on them, while Darknet's ``voc_label.py`` drops them.

    ``regions`` are the image's ignore regions, or None if it has none.

    ``labelled`` is the image's label space, bool [classes]: whether objects of a class were annotated. None: all were.
    An object of another class is in no list here, and is no background either.
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
    regions: Regions | None = None
    labelled: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class FederatedData:
    """A data set, divided among clients.

    With one global test set, all clients share the same tuple in ``test``, so that it is evaluated once.
    ``digest`` is the sha256 (hex) of the content. It does not depend on the division.

    ``holdout`` has the training images that each client keeps out of training (:mod:`tasks.data.holdout`). They are not
    in ``train``. It is empty if the specification holds out none.
    """

    name: str
    digest: str
    classes: tuple[str, ...]
    train: dict[str, tuple[ImageSample, ...]]
    test: dict[str, tuple[ImageSample, ...]]
    holdout: dict[str, tuple[ImageSample, ...]] = field(default_factory=dict)

    def scored(self, client: str, on: ScoredOn) -> tuple[ImageSample, ...]:
        """Return the images of ``client`` on which a model is scored: its test set or its held-out images."""
        return self.test[client] if on == "test" else self.holdout.get(client, ())


def has_global_test_set(data: FederatedData) -> bool:
    """Return whether all clients share one test set."""
    return len({id(samples) for samples in data.test.values()}) == 1


def samples_digest(samples: Iterable[ImageSample]) -> str:
    """Return the sha256 (hex) over images as read, boxes, labels, flags, regions and label spaces, in order.

    Paths and image ids do not count, so the digest is the same on machines that keep the set in different folders.
    """
    digest = hashlib.sha256()
    for sample in samples:
        # Counts come first, so that no two different lists of samples give the same bytes.
        turned = "" if sample.turn == 1 else f" turned {sample.turn}"
        marked = sample.difficult is not None and bool(sample.difficult.any())
        regions = "" if sample.regions is None or not len(sample.regions) else f" regions {len(sample.regions)}"
        space = "" if sample.labelled is None else f" labelled {''.join(map(str, sample.labelled.astype(int)))}"
        digest.update(
            f"{sample.content} {len(sample.labels)}{' difficult' * marked}{turned}{regions}{space}\n".encode()
        )
        digest.update(sample.boxes.astype("<f4").tobytes())
        digest.update(sample.labels.astype("<i8").tobytes())
        if sample.difficult is not None and marked:
            digest.update(sample.difficult.astype(np.uint8).tobytes())
        if sample.regions is not None and regions:
            digest.update(sample.regions.boxes.astype("<f4").tobytes())
            digest.update(sample.regions.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def class_counts(samples: Iterable[ImageSample], classes: Sequence[str]) -> dict[str, int]:
    """Return the number of boxes by class name, 0 for a class without boxes."""
    counts = np.zeros(len(classes), dtype=np.int64)
    for sample in samples:
        counts += np.bincount(sample.labels, minlength=len(classes))
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}
