"""Divide training images among clients: alike (IID), by class mixes (Dirichlet), or by size.

The division depends on the partition's seed and on the images' order. Each client's images keep that order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.data.samples import ImageSample
from tasks.errors import DataError
from tasks.spec.clients import BySize, Dirichlet, Partition


def partition_samples(
    samples: Sequence[ImageSample], partition: Partition, *, classes: int
) -> dict[str, tuple[ImageSample, ...]]:
    """Return the images of clients "1", "2", …. Each image has one client, and each client at least one image.

    Raises:
        DataError: there are fewer images than clients.
    """
    count = partition.clients
    if len(samples) < count:
        raise DataError(
            f"data.clients.clients: expected at most {len(samples)}, the number of training images, found {count}"
        )
    rng = np.random.Generator(np.random.PCG64(partition.seed))
    if isinstance(partition, Dirichlet):
        parts = _dirichlet([image_class(sample) for sample in samples], partition, classes, rng)
    else:
        shares: Sequence[float] = [1.0] * count
        if isinstance(partition, BySize):
            shares = partition.shares or [float(k) ** -partition.exponent for k in range(1, count + 1)]
        sizes = divide(len(samples), shares, least=1)
        parts = np.split(rng.permutation(len(samples)), np.cumsum(sizes)[:-1])
    return {
        str(client): tuple(samples[index] for index in sorted(part.tolist())) for client, part in enumerate(parts, 1)
    }


def image_class(sample: ImageSample) -> int:
    """Return the class of most of an image's boxes, or -1 without boxes.

    Among classes with equally many boxes, the class whose box is listed first counts.
    """
    if not len(sample.labels):
        return -1
    most = np.bincount(sample.labels)
    return next(int(label) for label in sample.labels if most[label] == most.max())


def divide(total: int, shares: Sequence[float], *, least: int) -> list[int]:
    """Split ``total`` into whole parts proportional to ``shares`` (largest remainder), each at least ``least``.

    ``total`` must be at least ``least`` times the number of shares.
    """
    quota = np.asarray(shares, dtype=np.float64) / np.sum(shares) * total
    parts = np.maximum(np.floor(quota).astype(int), least)
    while parts.sum() < total:
        parts[np.argmax(quota - parts)] += 1
    while parts.sum() > total:
        parts[np.argmax(np.where(parts > least, parts - quota, -np.inf))] -= 1
    return [int(part) for part in parts]


def _dirichlet(
    labels: Sequence[int], partition: Dirichlet, classes: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Divide images as Hsu et al. do (arXiv 1909.06335, section 2). Return the indices of each client's images.

    Client k's class mix is q_k ~ Dir(alpha p), where p is the data set's own mix. All clients get equally many images,
    give or take one. They draw in turn, one image at a time without replacement: first a class by q_k among the
    classes that still have images, then an image of that class. An image's class is that of :func:`image_class`;
    images without boxes form a class of their own.
    """
    order = rng.permutation(len(labels))
    stock: list[list[int]] = [[] for _ in range(classes + 1)]
    for index in order:
        stock[labels[index]].append(int(index))  # class -1 is the last list
    left = np.array([len(images) for images in stock], dtype=np.float64)
    present = left > 0
    mixes = np.zeros((partition.clients, classes + 1))
    mixes[:, present] = rng.dirichlet(partition.alpha * left[present] / left.sum(), size=partition.clients)
    parts: list[list[int]] = [[] for _ in range(partition.clients)]
    for turn in range(len(labels)):
        client = turn % partition.clients
        chances = np.where(left > 0, mixes[client], 0.0)
        if not np.isfinite(chances).all() or chances.sum() <= 0:  # the client's classes are used up
            chances = left
        label = int(rng.choice(len(left), p=chances / chances.sum()))
        parts[client].append(stock[label].pop())
        left[label] -= 1
    return [np.array(part, dtype=np.int64) for part in parts]
