"""Warnings about a data set that was read: what may lower or flatter its figures, one finding for each kind."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.data.entries import Faults
from tasks.data.notes import Finding
from tasks.data.samples import FederatedData, ImageSample, Regions, has_global_test_set
from tasks.data.similar import HASH_SIDE, difference_hash, is_uniform, nearest

# A grey level of 255. Values of 14 bits stored in 16 all stay below it once the upper 8 bits are read.
DARK = 64


@dataclass(frozen=True)
class Placed:
    """An image and where it is used: the training or held-out images of a device, or a test set."""

    sample: ImageSample
    part: str
    device: str | None

    def __str__(self) -> str:
        return f"{self.sample.path} ({self.part}{'' if self.device is None else f', device {self.device}'})"


@dataclass(frozen=True)
class Pair:
    """A test image and the training image that is nearest to it, and the bits in which their hashes differ."""

    test: Placed
    train: Placed
    bits: int

    @property
    def same_bytes(self) -> bool:
        return self.test.sample.content == self.train.sample.content

    def __str__(self) -> str:
        return f"{self.test} is near {self.train}: {self.bits} bits differ"


def placed_images(data: FederatedData) -> Iterator[Placed]:
    """Yield every image with the place where it is used. A global test set comes once."""
    for device, samples in data.train.items():
        yield from (Placed(sample, "train", device) for sample in samples)
    for device, samples in data.holdout.items():
        yield from (Placed(sample, "held out", device) for sample in samples)
    for device, samples in list(data.test.items())[: 1 if has_global_test_set(data) else None]:
        owner = None if has_global_test_set(data) else device
        yield from (Placed(sample, "test", owner) for sample in samples)


def near(pairs: list[Pair], tests: int, near_bits: int) -> Iterator[Finding]:
    """Sum up the near-duplicates, the nearest first. Images of the same bytes have a line of their own."""
    pairs = sorted((pair for pair in pairs if not pair.same_bytes), key=lambda pair: pair.bits)
    if pairs:
        yield Finding(
            f"{len(pairs)} of {tests} test images are near-duplicates of a training image (at most {near_bits} of "
            f"{HASH_SIDE * HASH_SIDE} bits of their difference hashes differ), which flatters figures; fedbench data "
            "split --group-near-duplicates keeps them on one side",
            tuple(map(str, pairs)),
        )


def dark(faults: Faults, thumbnails: dict[Path, NDArray[np.uint8]]) -> Iterator[Finding]:
    """Warn of 16-bit images whose values use only the lower bits, as the values of 10- and 12-bit sensors often do."""
    found = [path for path in faults.notes.deep if int(thumbnails.get(Path(path), np.full(1, 255)).max()) < DARK]
    if found:
        yield Finding(
            f"{len(found)} images of more than 8 bits a channel are nearly black once the upper 8 are read (no part is "
            f"over {DARK - 1} of 255): scale their values to the whole range",
            tuple(found),
        )


def duplicates(placed: list[Placed]) -> Iterator[Finding]:
    """Warn of images with the same bytes. Groups that are on both sides come first."""
    by_content: dict[str, list[Placed]] = {}
    for item in placed:
        by_content.setdefault(item.sample.content, []).append(item)
    groups = [_same_bytes(same) for same in by_content.values() if len(same) > 1]
    groups.sort(key=lambda group: not group.leak)  # stable
    if len(groups) == 1:
        yield Finding(groups[0].text, groups[0].places)
    elif groups:
        leaks = sum(bool(group.leak) for group in groups)
        differ = sum(group.differ for group in groups)
        yield Finding(
            f"{len(groups)} groups of images are the same bytes, {leaks} of them in training and in test or held out; "
            f"the boxes differ in {differ}",
            tuple(f"{group.text} ({', '.join(group.places)})" for group in groups),
        )


@dataclass(frozen=True)
class _SameBytes:
    """Images of the same bytes. ``leak`` says where else than in training some of them are, or is empty."""

    places: tuple[str, ...]
    leak: str
    differ: bool

    @property
    def text(self) -> str:
        leak = f", in training and {self.leak}" if self.leak else ""
        return f"{len(self.places)} images are the same bytes{leak}{'; their boxes differ' * self.differ}"


def _same_bytes(same: list[Placed]) -> _SameBytes:
    parts, first = {item.part for item in same}, same[0].sample
    leak = "in test" if parts >= {"train", "test"} else "held out" if parts >= {"train", "held out"} else ""
    differ = any(_annotation(other.sample) != _annotation(first) for other in same[1:])
    return _SameBytes(tuple(map(str, same)), leak, differ)


def _annotation(sample: ImageSample) -> tuple[bytes, ...]:
    """Return the objects and ignore regions in a form that compares."""
    regions = sample.regions or Regions.none()
    return tuple(array.tobytes() for array in (sample.boxes, sample.labels, regions.boxes, regions.labels))


def uniform(thumbnails: dict[Path, NDArray[np.uint8]]) -> Iterator[Finding]:
    """Warn of images of one colour."""
    found = [str(path) for path, grey in thumbnails.items() if is_uniform(grey)]
    if found:
        yield Finding(
            f"{len(found)} images are of one colour, or nearly so; they are not compared for near-duplicates",
            tuple(found),
        )


def near_duplicates(placed: list[Placed], thumbnails: dict[Path, NDArray[np.uint8]], near_bits: int) -> Iterator[Pair]:
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
            yield Pair(item, train[int(index)], int(distance))


def lonely_classes(counts: Mapping[str, Mapping[str, int | None]], data: FederatedData) -> Iterator[Finding]:
    """Warn of each class that no device, or one of those that label it alone, has in its training images.

    counts: training boxes by device and class; None for a class that the device does not label.
    """
    if not any(data.train.values()):
        return  # an error says so
    without: list[str] = []
    for label, name in enumerate(data.classes):
        labelling = [device for device, own in counts.items() if own[name] is not None]
        having = [device for device in labelling if counts[device][name]]
        if not having:
            without.append(name)
        elif len(having) == 1 and len(labelling) > 1:
            images = [sample for sample in data.train[having[0]] if label in sample.labels]
            yield Finding(
                f"class {name!r} is on device {having[0]} only: {counts[having[0]][name]} boxes in "
                f"{len(images)} images, the first in {images[0].path}"
            )
    if len(without) == 1:
        yield Finding(f"class {without[0]!r} has no training box")
    elif without:
        yield Finding(f"{len(without)} classes have no training box", tuple(map(repr, without)))


def unscored(data: FederatedData, tests: Collection[ImageSample], faults: Faults) -> Iterator[Finding]:
    """Warn of test images without which a run has no figures, and so no best round."""
    if faults.errors or not data.train:
        return  # an error may say why there is none
    if not tests:
        yield Finding("there is no test image: a run has neither figures nor a best round")
    elif not any(len(sample.labels) for sample in tests):
        yield Finding(f"none of the {len(tests)} test images has an object: a run has no mAP, and so no best round")


def difficult(placed: list[Placed]) -> Iterator[Finding]:
    """Warn of difficult objects."""
    marked = [(item, int(item.sample.difficult.sum())) for item in placed if item.sample.difficult is not None]
    if marked:
        yield Finding(
            f"{sum(count for _, count in marked)} objects in {len(marked)} images are difficult; evaluation ignores "
            "them",
            tuple(f"{item}: {count} of {len(item.sample.labels)}" for item, count in marked),
        )
