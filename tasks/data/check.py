"""Check a data set: count its images and boxes, and collect all its errors and warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.data.notes import named
from tasks.data.samples import FederatedData, ImageSample, class_counts, has_global_test_set
from tasks.data.similar import HASH_SIDE, NEAR_BITS, difference_hash, is_uniform, nearest, thumbnail
from tasks.errors import DataError
from tasks.spec.data import DataSpec

# A grey level of 255. Values of 14 bits stored in 16 all stay below it once the upper 8 bits are read.
DARK = 64


@dataclass(frozen=True)
class DeviceCounts:
    """Counts of one device. ``boxes`` are its training boxes by class.

    ``test_images`` is the size of the device's test set, or of the global test set. ``holdout_images`` is the number of
    images that the device keeps out of training; they are not in ``train_images``.
    """

    device: str
    train_images: int
    test_images: int
    boxes: dict[str, int]
    holdout_images: int = 0


@dataclass(frozen=True)
class DataReport:
    """The result of a check. ``data`` is the usable part of the data set; a set with ``errors`` cannot be loaded.

    ``near_duplicates`` is the number of test images that are near-duplicates of a training or held-out image, or have
    the same bytes.
    """

    data: FederatedData
    devices: tuple[DeviceCounts, ...]
    test_boxes: dict[str, int]
    train_images: int
    test_images: int
    near_duplicates: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def boxes_by_device(self) -> dict[str, dict[str, int]]:
        """Training boxes by class, for each device, as ``tasks.figures.plots.class_by_device_plot`` takes them."""
        return {device.device: device.boxes for device in self.devices}


@dataclass(frozen=True)
class _Placed:
    """An image and where it is used: the training or held-out images of a device, or a test set."""

    sample: ImageSample
    part: str
    device: str | None

    def __str__(self) -> str:
        return f"{self.sample.path} ({self.part}{'' if self.device is None else f', device {self.device}'})"


@dataclass(frozen=True)
class _Pair:
    """A test image and the training image that is nearest to it, and the bits in which their hashes differ."""

    test: _Placed
    train: _Placed
    bits: int

    @property
    def same_bytes(self) -> bool:
        return self.test.sample.content == self.train.sample.content

    @property
    def message(self) -> str:
        return (
            f"{self.test} is a near-duplicate of {self.train}: "
            f"{self.bits} of {HASH_SIDE * HASH_SIDE} bits of their difference hashes differ"
        )


def check_data(
    spec: DataSpec, *, root_of: Callable[[str], Path | None], cache: Path, near_bits: int = NEAR_BITS
) -> DataReport:
    """Read the data of ``spec`` by device, decode every image once, and collect errors and warnings.

    Errors are the mistakes that :func:`tasks.data.catalog.load_data` refuses, and images that cannot be decoded.
    Warnings are images of the same bytes; test images whose 256-bit difference hash is within ``near_bits`` of a
    training image's; images of one colour; classes with training boxes on one device only, or on none; difficult
    objects; and the readers' notes (:class:`tasks.data.notes.Notes`).

    Raises:
        DataError: this machine has no folder for the data set.
    """
    faults = Faults(collect=True)
    spec = spec.model_copy(update={"pooled": False, "pooled_devices": None, "local_only": None})
    data = load_data(spec, root_of=root_of, cache=cache, faults=faults)
    placed = list(_placed(data))
    thumbnails = _decode(placed, faults)
    near = list(_near_duplicates(placed, thumbnails, near_bits))
    warnings = [
        *faults.notes.messages(spec),
        *_dark(faults, thumbnails),
        *_duplicates(placed),
        *_uniform(thumbnails),
        *(pair.message for pair in near if not pair.same_bytes),
        *_lonely_classes(data),
        *_difficult(placed),
    ]
    tests = {sample.path: sample for samples in data.test.values() for sample in samples}
    trained = {item.sample.content for item in placed if item.part != "test"}
    same_bytes = {path for path, sample in tests.items() if sample.content in trained}
    return DataReport(
        data=data,
        devices=tuple(
            DeviceCounts(
                device,
                len(samples),
                len(data.test[device]),
                class_counts(samples, data.classes),
                len(data.scored(device, "holdout")),
            )
            for device, samples in data.train.items()
        ),
        test_boxes=class_counts(tests.values(), data.classes),
        train_images=sum(len(samples) for samples in data.train.values()),
        test_images=len(tests),
        near_duplicates=len(same_bytes | {pair.test.sample.path for pair in near}),
        errors=tuple(faults.errors),
        warnings=tuple(warnings),
    )


def _placed(data: FederatedData) -> Iterator[_Placed]:
    for device, samples in data.train.items():
        yield from (_Placed(sample, "train", device) for sample in samples)
    for device, samples in data.holdout.items():
        yield from (_Placed(sample, "held out", device) for sample in samples)
    for device, samples in list(data.test.items())[: 1 if has_global_test_set(data) else None]:
        owner = None if has_global_test_set(data) else device
        yield from (_Placed(sample, "test", owner) for sample in samples)


def _decode(placed: list[_Placed], faults: Faults) -> dict[Path, NDArray[np.uint8]]:
    """Return the thumbnail of every image that can be decoded, and report the others."""
    thumbnails: dict[Path, NDArray[np.uint8]] = {}
    for item in placed:
        try:
            thumbnails[item.sample.path] = thumbnail(item.sample.path)
        except DataError as error:
            faults.add(str(error))
    return thumbnails


def _dark(faults: Faults, thumbnails: dict[Path, NDArray[np.uint8]]) -> Iterator[str]:
    """Warn of 16-bit images whose values use only the lower bits, as the values of 10- and 12-bit sensors often do."""
    dark = [path for path in faults.notes.deep if int(thumbnails.get(Path(path), np.full(1, 255)).max()) < DARK]
    if dark:
        yield (
            f"{len(dark)} images of more than 8 bits a channel are nearly black once the upper 8 are read (no part is "
            f"over {DARK - 1} of 255): scale their values to the whole range: {named(dark)}"
        )


def _duplicates(placed: list[_Placed]) -> Iterator[str]:
    by_content: dict[str, list[_Placed]] = {}
    for item in placed:
        by_content.setdefault(item.sample.content, []).append(item)
    for same in by_content.values():
        if len(same) > 1:
            parts = {item.part for item in same}
            leak = ", in training and in test" if parts >= {"train", "test"} else ""
            leak = leak or (", in training and held out" if parts >= {"train", "held out"} else "")
            first = same[0].sample
            labels = any(
                other.sample.boxes.tobytes() != first.boxes.tobytes()
                or other.sample.labels.tobytes() != first.labels.tobytes()
                for other in same[1:]
            )
            differ = "; their boxes differ" if labels else ""
            yield f"{len(same)} images are the same bytes{leak}{differ}: {', '.join(map(str, same))}"


def _uniform(thumbnails: dict[Path, NDArray[np.uint8]]) -> Iterator[str]:
    uniform = [str(path) for path, grey in thumbnails.items() if is_uniform(grey)]
    if uniform:
        yield (
            f"{len(uniform)} images are of one colour, or nearly so; they are not compared for near-duplicates: "
            f"{named(uniform)}"
        )


def _near_duplicates(
    placed: list[_Placed], thumbnails: dict[Path, NDArray[np.uint8]], near_bits: int
) -> Iterator[_Pair]:
    """Yield each test image that is near a training image, with the nearest one."""
    hashes = {path: difference_hash(grey) for path, grey in thumbnails.items() if not is_uniform(grey)}
    train = [item for item in placed if item.part != "test" and item.sample.path in hashes]
    test = [item for item in placed if item.part == "test" and item.sample.path in hashes]
    if not train or not test:
        return
    indices, distances = nearest(
        np.stack([hashes[item.sample.path] for item in test]), np.stack([hashes[item.sample.path] for item in train])
    )
    for item, index, distance in zip(test, indices, distances, strict=True):
        if distance <= near_bits:
            yield _Pair(item, train[int(index)], int(distance))


def _lonely_classes(data: FederatedData) -> Iterator[str]:
    counts = {device: class_counts(samples, data.classes) for device, samples in data.train.items()}
    for label, name in enumerate(data.classes):
        having = [device for device, own in counts.items() if own[name]]
        if not having:
            yield f"class {name!r} has no training box"
        elif len(having) == 1 and len(counts) > 1:
            images = [sample for sample in data.train[having[0]] if label in sample.labels]
            yield (
                f"class {name!r} is on device {having[0]} only: {counts[having[0]][name]} boxes in "
                f"{len(images)} images, the first in {images[0].path}"
            )


def _difficult(placed: list[_Placed]) -> Iterator[str]:
    for item in placed:
        marked = item.sample.difficult
        if marked is not None and marked.any():
            yield f"{item}: {int(marked.sum())} of {len(marked)} objects are difficult: evaluation ignores them"
