"""Move near-duplicates to one side of a data set's division into training and test images.

A test image that is a near-duplicate of a training image is scored too well: the model has learned its scene. Groups
are those of :func:`tasks.data.holdout.similar_groups`, over training and test images together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tasks.data.holdout import Hashes, similar_groups
from tasks.data.samples import FederatedData, ImageSample, has_global_test_set
from tasks.data.similar import NEAR_BITS, nearest
from tasks.errors import DataError

Samples = tuple[ImageSample, ...]


@dataclass(frozen=True)
class Moves:
    """Images that change sides.

    ``to_test`` are training images that become test images. ``to_training`` maps each test image that becomes a
    training image to a training image of its group, on whose device it is placed.
    """

    to_test: Samples
    to_training: dict[ImageSample, ImageSample]


def whole_groups(data: FederatedData, hashes: Hashes, bits: int = NEAR_BITS) -> Moves:
    """Return the moves after which no group of near-duplicates is on both sides.

    Only groups on both sides move. Each of them goes wholly to training or wholly to test. The choice keeps the
    division near the given one: it lowers the sum of all changes in the number of training images and of training
    boxes of each class, by device, and of the test images and test boxes of each class. The search starts with all
    these groups in training. Group by group, in the order of the images, it flips the group alone or with the other
    group that lowers the sum most, until no flip lowers it. No random number is drawn. No device loses its last
    training image, and the test set does not lose its last image.

    A test image that becomes a training image takes the device of the training image in its group whose hash is
    nearest; of equally near ones, that of the first. If the devices have test sets of their own, it stays on its
    device.

    Raises:
        DataError: every choice leaves a device without training images or the data set without test images.
    """
    device_of, tests = devices_of(data), every_test_image(data)
    trained = [sample for samples in data.train.values() for sample in samples]
    train_of, test_of = crossing(trained, tests, hashes, bits)
    to_training: dict[ImageSample, ImageSample] = {}
    for group, own in test_of.items():
        to_training |= _alike(own, train_of[group], hashes)
    rows = {device: row for row, device in enumerate(data.train)}
    shape = (len(rows), 1 + len(data.classes))

    def counts(samples: Iterable[ImageSample], like: dict[ImageSample, ImageSample]) -> NDArray[np.int64]:
        table = np.zeros(shape, dtype=np.int64)
        for sample in samples:
            row = table[rows[device_of.get(sample) or device_of[like[sample]]]]
            row[0] += 1
            row[1:] += np.bincount(sample.labels, minlength=len(data.classes))
        return table

    gains = np.array([counts(test_of[group], to_training) for group in test_of]).reshape(-1, *shape)
    losses = np.array([-counts(train_of[group], {}) for group in test_of]).reshape(-1, *shape)
    images = np.array([len(samples) for samples in data.train.values()])
    sides = balanced(gains, losses, images, len(tests))
    chosen = [samples for samples, is_test in zip(train_of.values(), sides, strict=True) if is_test]
    stay = {sample for own, is_test in zip(test_of.values(), sides, strict=True) if is_test for sample in own}
    return Moves(
        to_test=tuple(sample for samples in chosen for sample in samples),
        to_training={sample: like for sample, like in to_training.items() if sample not in stay},
    )


def balanced(
    gains: NDArray[np.int64], losses: NDArray[np.int64], images: NDArray[np.int64], tests: int
) -> NDArray[np.bool_]:
    """Return for each group whether it goes to test, by the search of :func:`whole_groups`.

    gains: what training gains if the group goes to training, [groups, devices, columns]. Column 0 counts images.
    losses: the same, zero or negative, if the group goes to test.
    images: each device's number of training images.
    tests: the number of test images.

    Raises:
        DataError: every choice leaves a device without training images or the data set without test images.
    """
    count = len(gains)
    if not count:
        return np.zeros(0, dtype=np.bool_)
    # What training gains, the test set loses: the sum over devices is a last row of the table.
    with_test = [np.concatenate([part, part.sum(axis=1, keepdims=True)], axis=1) for part in (gains, losses)]
    here, there = (part.reshape(count, -1) for part in with_test)
    columns = gains.shape[2]
    state, flips = here.sum(axis=0), there - here
    sides = np.zeros(count, dtype=np.bool_)

    def cost(states: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the sum of changes of each row of ``states``; 2**62 where a side or a device would be empty."""
        found = states[:, ::columns]
        empty = (images + found[:, :-1] < 1).any(axis=1) | (tests - found[:, -1] < 1)
        return np.where(empty, 2**62, np.abs(states).sum(axis=1))

    best, improved = int(cost(state[None])[0]), True
    while improved:
        improved = False
        for one in range(count):
            others = flips.copy()
            others[one] = 0  # alone
            costs = cost(state + flips[one] + others)
            other = int(costs.argmin())
            if costs[other] < best:
                for place in {one, other}:
                    state = state + flips[place]
                    flips[place] *= -1
                    sides[place] ^= True
                best, improved = int(costs[other]), True
    if best >= 2**62:
        raise DataError(
            "near-duplicates: expected a test image and a training image of each device that no group of "
            "near-duplicates spans, found none"
        )
    return sides


def crossing(
    train: Sequence[ImageSample], test: Sequence[ImageSample], hashes: Hashes, bits: int = NEAR_BITS
) -> tuple[dict[int, list[ImageSample]], dict[int, list[ImageSample]]]:
    """Return the groups of near-duplicates that are on both sides: their training images and their test images."""
    numbers = similar_groups([*train, *test], hashes, bits)
    parts: tuple[dict[int, list[ImageSample]], dict[int, list[ImageSample]]] = ({}, {})
    for index, (number, sample) in enumerate(zip(numbers, (*train, *test), strict=True)):
        parts[index >= len(train)].setdefault(number, []).append(sample)
    both = [number for number in parts[0] if number in parts[1]]
    return {number: parts[0][number] for number in both}, {number: parts[1][number] for number in both}


def apply_moves(data: FederatedData, moves: Moves) -> FederatedData:
    """Return ``data`` with ``moves`` made. Images that stay keep their order; the others follow in order of their keys.

    Name, digest and classes stay. A global test set stays one.
    """
    device_of = devices_of(data)
    gone = {*moves.to_test, *moves.to_training}
    arrivals: dict[str, list[ImageSample]] = {device: [] for device in data.train}
    for sample, like in moves.to_training.items():
        arrivals[device_of.get(sample) or device_of[like]].append(sample)

    def changed(samples: Samples, more: Iterable[ImageSample]) -> Samples:
        return (*(one for one in samples if one not in gone), *sorted(more, key=lambda one: one.key))

    train = {device: changed(samples, arrivals[device]) for device, samples in data.train.items()}
    if has_global_test_set(data):
        test = dict.fromkeys(data.test, changed(next(iter(data.test.values())), moves.to_test))
    else:
        test = {
            device: changed(samples, [one for one in moves.to_test if device_of[one] == device])
            for device, samples in data.test.items()
        }
    return replace(data, train=train, test=test)


def devices_of(data: FederatedData) -> dict[ImageSample, str]:
    """Return the device of each image. Images of a global test set of several devices have none and are left out."""
    parts = [data.train] if has_global_test_set(data) and len(data.train) > 1 else [data.train, data.test]
    return {sample: device for part in parts for device, samples in part.items() for sample in samples}


def every_test_image(data: FederatedData) -> Samples:
    """Return all test images, each once, in the order of the devices."""
    return tuple(dict.fromkeys(sample for samples in data.test.values() for sample in samples))


def _alike(
    samples: Sequence[ImageSample], train: Sequence[ImageSample], hashes: Hashes
) -> dict[ImageSample, ImageSample]:
    """Return the nearest of ``train``, a group's training images, for each of ``samples``, its test images."""
    if hashes.get(train[0].content) is None:  # images of one colour are one group only if they are the same bytes
        return dict.fromkeys(samples, train[0])

    def words(images: Sequence[ImageSample]) -> NDArray[np.uint64]:
        return np.array([np.frombuffer(bytes.fromhex(hashes[one.content] or ""), np.uint64) for one in images])

    indices, _ = nearest(words(samples), words(train))
    return {sample: train[int(index)] for sample, index in zip(samples, indices, strict=True)}
