"""Check a data set: count its images and boxes, and collect all its errors and warnings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data import findings
from tasks.data.catalog import load_data
from tasks.data.entries import Faults
from tasks.data.notes import Finding
from tasks.data.samples import FederatedData, class_counts
from tasks.data.similar import NEAR_BITS, thumbnail
from tasks.errors import DataError
from tasks.spec.data import DataSpec
from tasks.spec.label_space import by_label_space


@dataclass(frozen=True)
class DeviceCounts:
    """Counts of one device. ``boxes`` are its training boxes by class, None for a class that it does not label.

    ``test_images`` is the size of the device's test set, or of the global test set. ``holdout_images`` is the number of
    images that the device keeps out of training; they are not in ``train_images``.
    """

    device: str
    train_images: int
    test_images: int
    boxes: dict[str, int | None]
    holdout_images: int = 0

    @property
    def all_boxes(self) -> int:
        """Return the number of training boxes."""
        return sum(count or 0 for count in self.boxes.values())


@dataclass(frozen=True)
class DataReport:
    """The result of a check. ``data`` is the usable part of the data set; a set with ``errors`` cannot be loaded.
    ``errors_by_kind`` has the same errors by kind, each kind at the place of its first one.

    ``ignore_regions`` is the number of ignore regions, in ``images_with_regions`` images of all parts.

    ``near_duplicates`` is the number of test images that are near-duplicates of a training or held-out image, or have
    the same bytes. ``findings`` are the warnings, one for each kind, near-duplicates first.
    """

    data: FederatedData
    devices: tuple[DeviceCounts, ...]
    test_boxes: dict[str, int]
    train_images: int
    test_images: int
    near_duplicates: int
    errors: tuple[str, ...]
    errors_by_kind: tuple[tuple[str, ...], ...]
    findings: tuple[Finding, ...]
    ignore_regions: int = 0
    images_with_regions: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each kind of finding, which names the first few places."""
        return tuple(map(str, self.findings))

    @property
    def was_read(self) -> bool:
        """Whether anything could be read: else the counts and the digest mean nothing."""
        return self.train_images + self.test_images > 0

    @property
    def boxes_by_device(self) -> dict[str, dict[str, int | None]]:
        """Training boxes by class, for each device, as ``tasks.figures.plots.class_by_device_plot`` takes them."""
        return {device.device: device.boxes for device in self.devices}


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
    data = load_data(spec, root_of=root_of, cache=cache, faults=faults, whole=True)
    placed = list(findings.placed_images(data))
    thumbnails = _decode(placed, faults)
    near = list(findings.near_duplicates(placed, thumbnails, near_bits))
    boxes = by_label_space(
        spec.label_space, {device: class_counts(samples, data.classes) for device, samples in data.train.items()}
    )
    tests = {sample.path: sample for samples in data.test.values() for sample in samples}
    trained = {item.sample.content for item in placed if item.part != "test"}
    regions = {item.sample.path: len(item.sample.regions) for item in placed if item.sample.regions}
    same_bytes = {path for path, sample in tests.items() if sample.content in trained}
    found = [
        *findings.near(near, len(tests), near_bits),
        *faults.notes.findings(spec),
        *findings.dark(faults, thumbnails),
        *findings.duplicates(placed),
        *findings.uniform(thumbnails),
        *findings.lonely_classes(boxes, data),
        *findings.unscored(data, tests.values(), faults),
        *findings.difficult(placed),
    ]
    return DataReport(
        data=data,
        devices=tuple(
            DeviceCounts(
                device,
                len(samples),
                len(data.test[device]),
                boxes[device],
                len(data.scored(device, "holdout")),
            )
            for device, samples in data.train.items()
        ),
        test_boxes=class_counts(tests.values(), data.classes),
        train_images=sum(len(samples) for samples in data.train.values()),
        test_images=len(tests),
        near_duplicates=len(same_bytes | {pair.test.sample.path for pair in near}),
        errors=tuple(faults.errors),
        errors_by_kind=tuple(faults.by_kind()),
        findings=tuple(found),
        ignore_regions=sum(regions.values()),
        images_with_regions=len(regions),
    )


def _decode(placed: list[findings.Placed], faults: Faults) -> dict[Path, NDArray[np.uint8]]:
    """Return the thumbnail of every image that can be decoded, and report the others."""
    thumbnails: dict[Path, NDArray[np.uint8]] = {}
    for item in placed:
        try:
            thumbnails[item.sample.path] = thumbnail(item.sample.path)
        except DataError as error:
            faults.add(str(error))
    return thumbnails
