"""Divide any data set into training and test images, near-duplicates on one side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tasks.data.entries import Faults
from tasks.data.holdout import Hashes, hashes_of, similar_groups
from tasks.data.samples import FederatedData, ImageSample, has_global_test_set
from tasks.data.similar import NEAR_BITS
from tasks.data.whole_groups import apply_moves, crossing, devices_of, every_test_image, whole_groups
from tasks.errors import DataError


@dataclass(frozen=True)
class Split:
    """A data set divided anew, and how many of its images changed sides.

    ``crossed`` is the number of groups of near-duplicates that were on both sides before, ``cross`` the number of those
    that are now.
    """

    data: FederatedData
    to_test: int
    to_training: int
    crossed: int
    cross: int


def split_data(
    data: FederatedData,
    *,
    fraction: float | None,
    seed: int = 1,
    group: bool,
    bits: int = NEAR_BITS,
    per_device: bool | None = None,
    cache: Path,
) -> Split:
    """Return ``data`` in another division into training and test images. Devices keep their images.

    fraction: the part of each device's images that becomes test images, drawn from ``seed`` (:func:`redraw`). None: the
        given division stays, and only near-duplicates on both sides move
        (:func:`tasks.data.whole_groups.whole_groups`).
    group: whether near-duplicates, whose hashes differ in at most ``bits`` bits, stay together. Images of the same
        bytes always do.
    per_device: whether each device gets a test set of its own. None: as it is in ``data``.
    cache: a folder for the images' hashes, because they are slow to compute.

    Raises:
        DataError: an image cannot be decoded or has no device, or the images cannot be divided in this way.
    """
    trained = [sample for samples in data.train.values() for sample in samples]
    tests = every_test_image(data)
    file = cache / f"{data.digest}.json"
    hashes = hashes_of((*trained, *tests), file, Faults())
    used = hashes if group else {}
    device_of = devices_of(data)
    if fraction is None:
        new = apply_moves(data, whole_groups(data, used, bits))
    else:
        _require_devices(data, tests, device_of, "a test fraction divides each device's images anew")
        new = redraw(data, fraction, seed, used, bits)
    if per_device is not None:
        new = _with_tests(new, per_device, device_of | devices_of(new))
    before = {sample for samples in data.train.values() for sample in samples}
    after = {sample for samples in new.train.values() for sample in samples}
    left = crossing([s for own in new.train.values() for s in own], every_test_image(new), hashes, bits)[0]
    return Split(
        data=new,
        to_test=len(before - after),
        to_training=len(after - before),
        crossed=len(crossing(trained, tests, hashes, bits)[0]),
        cross=len(left),
    )


def redraw(data: FederatedData, fraction: float, seed: int, hashes: Hashes, bits: int = NEAR_BITS) -> FederatedData:
    """Return ``data`` with a part of each device's images, training and test together, drawn as test images.

    Each test image must have a device (:func:`tasks.data.whole_groups.devices_of`).

    Groups of near-duplicates are taken in an order drawn from ``seed``. A group becomes test images if that brings the
    devices' numbers of test images closer to the fraction, summed over the devices of the group, and leaves each device
    a training image. With a global test set, the new one has the images of the devices in order.

    Raises:
        DataError: there are too few groups to give a test image.
    """
    own = {device: list(samples) for device, samples in data.train.items()}
    of_device = devices_of(data)
    for sample in every_test_image(data):
        own[of_device[sample]].append(sample)
    every = [(row, sample) for row, samples in enumerate(own.values()) for sample in samples]
    members: dict[int, list[int]] = {}
    for index, number in enumerate(similar_groups([sample for _, sample in every], hashes, bits)):
        members.setdefault(number, []).append(index)
    groups = list(members.values())
    sizes = np.array([len(samples) for samples in own.values()])
    wanted = np.floor(fraction * sizes + 0.5).astype(np.int64)
    taken = np.zeros_like(sizes)
    chosen: set[int] = set()
    for place in np.random.Generator(np.random.PCG64(seed)).permutation(len(groups)):
        more = taken + np.bincount([every[index][0] for index in groups[place]], minlength=len(sizes))
        if np.abs(more - wanted).sum() < np.abs(taken - wanted).sum() and (more < sizes).all():
            taken = more
            chosen.update(groups[place])
    if not chosen:
        raise DataError(
            f"data set {data.name!r}: no group of images fits a test fraction of {fraction:g}; expected more images, "
            "fewer near-duplicates or another fraction"
        )
    parts: list[dict[str, tuple[ImageSample, ...]]] = [
        {
            device: tuple(sample for index, (at, sample) in enumerate(every) if at == row and (index in chosen) == test)
            for row, device in enumerate(own)
        }
        for test in (False, True)
    ]
    new = replace(data, train=parts[0], test=parts[1])
    return _with_tests(new, False, {}) if has_global_test_set(data) else new


def _with_tests(data: FederatedData, per_device: bool, device_of: dict[ImageSample, str]) -> FederatedData:
    """Return ``data`` with a test set for each device, or with one global test set."""
    tests = every_test_image(data)
    if not per_device:
        return replace(data, test=dict.fromkeys(data.test, tests))
    _require_devices(data, tests, device_of, "each device gets a test set of its own")
    return replace(
        data,
        test={device: tuple(sample for sample in tests if device_of[sample] == device) for device in data.test},
    )


def _require_devices(
    data: FederatedData, tests: Sequence[ImageSample], device_of: dict[ImageSample, str], why: str
) -> None:
    """
    Raises:
        DataError: a test image has no device.
    """
    without = [sample for sample in tests if sample not in device_of]
    if without:
        raise DataError(
            f"data set {data.name!r}: expected the device of each test image, because {why}; {len(without)} have none, "
            f"the first {without[0].path}"
        )
