"""Make batches of samples: shuffled, cut and augmented by seeds alone."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tasks.data import augment
from tasks.data.augment_batch import apply_to_batch
from tasks.data.batches import Batch, Batches, Item, cut_batches, item_of, load_item, stack
from tasks.data.device_images import DeviceImages
from tasks.data.image_cache import ImageCache
from tasks.data.samples import ImageSample
from tasks.errors import ClientError
from tasks.spec.training import Augmentation


def _generator(seed: int, round: int, client: str, *rest: int) -> np.random.Generator:
    """Return the random generator of (seed, round, client, ...). The client's name enters as a stable hash."""
    number = int.from_bytes(hashlib.sha256(client.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, round, number, *rest))))


class TrainingSet(Dataset[Item | ClientError]):
    """A client's training images. The key of an item is (epoch, index).

    The generator of (seed, round, client, epoch, index) augments an item, so it is the same in any process.
    """

    def __init__(
        self,
        samples: Sequence[ImageSample],
        *,
        width: int,
        height: int,
        seed: int,
        round: int,
        client: str,
        augmentation: Augmentation,
        cache: ImageCache,
    ) -> None:
        self.samples, self.width, self.height = samples, width, height
        self.seed, self.round, self.client = seed, round, client
        self.augmentation, self.cache = augmentation, cache

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> Item | ClientError:
        """Return the item, or the error of an image that cannot be used.

        The error is not raised, because a loader's worker would wrap its message in a traceback.
        """
        epoch, index = item
        try:
            plain = load_item(self.samples[index], index, width=self.width, height=self.height, cache=self.cache)
        except ClientError as error:
            return error
        draws = self.draws(epoch, index)
        return self.moved(plain, draws)._replace(image=augment.change_pixels(plain.image, draws))

    def draws(self, epoch: int, index: int) -> augment.Draws:
        """Return the random numbers of an item."""
        return augment.draw(self.augmentation, _generator(self.seed, self.round, self.client, epoch, index))

    def plain(self, index: int, image: Tensor) -> Item:
        """Return sample ``index`` before augmentation. image: its input."""
        return item_of(self.samples[index], index, image, width=self.width, height=self.height)

    def moved(self, plain: Item, draws: augment.Draws) -> Item:
        """Return ``plain`` with its objects and regions as augmentation moves them, and its image as it is."""
        size = {"width": self.width, "height": self.height}
        boxes, labels = augment.move_objects(plain.boxes, plain.labels, draws, **size)
        changed = plain._replace(boxes=boxes, labels=labels)
        if plain.regions is None or plain.region_labels is None:
            return changed
        regions, region_labels = augment.move_regions(plain.regions, plain.region_labels, draws, **size)
        return changed._replace(regions=regions, region_labels=region_labels)


def _collate(items: Sequence[Item | ClientError]) -> Batch | ClientError:
    good: list[Item] = []
    for item in items:
        if isinstance(item, ClientError):
            return item
        good.append(item)
    return stack(good)


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) over all epochs, shuffled by the generator of (seed, round, client, epoch)."""

    def __init__(
        self, count: int, batch_size: int, epochs: int, *, seed: int, round: int, client: str, drop_last: bool
    ) -> None:
        self.count, self.epochs = count, epochs
        self.seed, self.round, self.client = seed, round, client
        self.cuts = cut_batches(count, batch_size, drop_last=drop_last)

    def __len__(self) -> int:
        return self.epochs * len(self.cuts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.epochs):
            order = _generator(self.seed, self.round, self.client, epoch).permutation(self.count)
            for cut in self.cuts:
                yield [(epoch, int(index)) for index in order[cut]]


class TrainingLoader:
    """A client's batches of one turn, all epochs in a row, on the CPU."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            ClientError: an image cannot be decoded; the message names the file.
        """
        for batch in self._loader:
            if isinstance(batch, ClientError):
                raise batch
            yield batch


class DeviceLoader:
    """A client's batches of one turn, whose images stay in the memory of a device and are augmented there.

    Order, draws, objects and regions are those of :class:`TrainingLoader`; they are on the CPU, as there. Pixels differ
    by what :mod:`tasks.data.augment_batch` states.
    """

    def __init__(self, dataset: TrainingSet, sampler: EpochSampler, images: DeviceImages) -> None:
        self._dataset, self._sampler, self._images = dataset, sampler, images

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            ClientError: an image that is not held any more cannot be decoded; the message names the file.
        """
        data = self._dataset
        for chosen in self._sampler:
            items, draws = [], []
            for epoch, index in chosen:
                image = self._images.get(data.samples[index], width=data.width, height=data.height)
                draws.append(data.draws(epoch, index))
                items.append(data.moved(data.plain(index, image), draws[-1]))
            batch = stack(items)
            yield replace(batch, images=apply_to_batch(batch.images, draws))


def training_loader(
    samples: Sequence[ImageSample],
    *,
    width: int,
    height: int,
    batch_size: int,
    epochs: int,
    seed: int,
    round: int,
    client: str,
    augmentation: Augmentation,
    workers: int,
    cache: ImageCache,
    drop_last: bool = False,
    on_device: DeviceImages | None = None,
    pinned: bool = False,
) -> Batches:
    """Return augmented batches at the detector's input size, shuffled anew every epoch.

    :func:`cut_batches` cuts the batches. They depend neither on ``workers`` nor on torch's global generator, and no
    number is drawn from that generator.

    on_device: if it can hold the images of all ``samples``, batches are made there, with the same objects and nearly
    the same pixels (:class:`DeviceLoader`). pinned: whether batches on the CPU are in pinned memory.

    Raises:
        ClientError: the client has no images.
    """
    if not samples:
        raise ClientError(f"client {client}: no training images; expected at least one")
    dataset = TrainingSet(
        samples,
        width=width,
        height=height,
        seed=seed,
        round=round,
        client=client,
        augmentation=augmentation,
        cache=cache,
    )
    sampler = EpochSampler(len(samples), batch_size, epochs, seed=seed, round=round, client=client, drop_last=drop_last)
    if on_device is not None and on_device.hold(samples, width=width, height=height, threads=max(workers, 1)):
        return DeviceLoader(dataset, sampler, on_device)
    if workers:
        import_module("torchvision.transforms.v2")  # augmentation imports it late: a forked worker inherits it
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        # With a slot's own start method, which workers inherit, each would import torch anew: seconds a turn.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=_collate,
        pin_memory=pinned,
        generator=torch.Generator(),  # else DataLoader draws its workers' seed from torch's global generator
    )
    return TrainingLoader(loader)


class EvaluationLoader:
    """All samples at the detector's input size, in order and without augmentation. The last batch may be smaller.

    The batches can be iterated over several times. on_device: holds the images of a batch where they fit, and images
    are there then. threads: as in :meth:`DeviceImages.hold`.
    """

    def __init__(
        self,
        samples: Sequence[ImageSample],
        *,
        width: int,
        height: int,
        batch_size: int,
        cache: ImageCache,
        on_device: DeviceImages | None = None,
        threads: int = 1,
    ) -> None:
        self.samples, self.width, self.height = samples, width, height
        self.batch_size, self.cache = batch_size, cache
        self.on_device, self.threads = on_device, threads

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Return batch ``number``. Its images do not depend on the other batches, so that clients can evaluate parts.

        Raises:
            ClientError: an image cannot be decoded; the message names the file.
        """
        start = range(0, len(self.samples), self.batch_size)[number]
        chosen = self.samples[start : start + self.batch_size]
        size, held = {"width": self.width, "height": self.height}, self.on_device
        if held is not None and held.hold(chosen, **size, threads=self.threads):
            return stack([item_of(s, index, held.get(s, **size), **size) for index, s in enumerate(chosen, start)])
        return stack([load_item(s, index, **size, cache=self.cache) for index, s in enumerate(chosen, start)])

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(len(self)))
