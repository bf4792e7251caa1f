"""Batches of images with their targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.data.image_cache import ImageCache
from tasks.data.samples import ImageSample


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one size with their objects. ``images`` is uint8 [B, 3, H, W].

    Each image has ``boxes``, float32 [n, 4] xyxy in pixels of the input, ``labels``, int64 [n], and its index in the
    list of samples. ``regions`` and ``region_labels`` have the same form and hold each image's ignore regions. A label
    of -1 stands for any class. Both are None if no image of the batch has a region. ``labelled`` is bool [B, classes]:
    the classes that were annotated in each image; None if all were in all of them.
    """

    images: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    indices: list[int]
    regions: list[Tensor] | None = None
    region_labels: list[Tensor] | None = None
    labelled: Tensor | None = None

    def pin_memory(self) -> Batch:
        """Return the batch with its images in pinned memory, from which a copy to a GPU need not be waited for."""
        return replace(self, images=self.images.pin_memory())


class Batches(Protocol):
    """The batches of a turn, all epochs in a row."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Item(NamedTuple):
    """One image of a batch, with its objects and ignore regions; ``number`` is its place in the list of samples.

    ``labelled`` is as in :class:`tasks.data.samples.ImageSample`.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    number: int
    regions: Tensor | None = None
    region_labels: Tensor | None = None
    labelled: Tensor | None = None


def load_item(sample: ImageSample, index: int, *, width: int, height: int, cache: ImageCache) -> Item:
    """Return the image as a tensor apart from the cache's, and its boxes in pixels of the input."""
    image = torch.from_numpy(cache.get(sample, width=width, height=height).copy())
    return item_of(sample, index, image, width=width, height=height)


def item_of(sample: ImageSample, index: int, image: Tensor, *, width: int, height: int) -> Item:
    """Return the item of ``image``, the input of ``sample``, with boxes in pixels of the input."""
    scale = np.array([width / sample.width, height / sample.height] * 2, dtype=np.float32)
    item = Item(image, torch.from_numpy(sample.boxes * scale), torch.from_numpy(sample.labels.copy()), index)
    if sample.labelled is not None:
        item = item._replace(labelled=torch.from_numpy(sample.labelled.copy()))
    if sample.regions is None:
        return item
    return item._replace(
        regions=torch.from_numpy(sample.regions.boxes * scale),
        region_labels=torch.from_numpy(sample.regions.labels.copy()),
    )


def stack(items: Sequence[Item]) -> Batch:
    """Return the batch of ``items``."""
    images, boxes, labels, indices, regions, region_labels, labelled = zip(*items, strict=True)
    batch = Batch(torch.stack(images), list(boxes), list(labels), list(indices), labelled=_stacked(labelled))
    if all(found is None for found in regions):
        return batch
    return replace(
        batch,
        regions=[torch.zeros(0, 4) if found is None else found for found in regions],
        region_labels=[torch.zeros(0, dtype=torch.int64) if found is None else found for found in region_labels],
    )


def _stacked(labelled: Sequence[Tensor | None]) -> Tensor | None:
    """Return the label spaces of a batch's images, bool [B, classes]; None if all classes were annotated in all."""
    some = next((found for found in labelled if found is not None), None)
    if some is None:
        return None
    return torch.stack([torch.ones_like(some) if found is None else found for found in labelled])


def cut_batches(count: int, batch_size: int, *, drop_last: bool = False) -> list[slice]:
    """Return the slices of an epoch of ``count`` images that form its batches.

    A last batch of a single image joins the one before (``batch_size`` + 1 images), because one image gives BatchNorm
    poor statistics. With ``drop_last`` an incomplete last batch is left out, unless it is the only one.
    """
    cuts = [slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    if len(cuts) > 1 and cuts[-1].stop - cuts[-1].start < batch_size:
        last = cuts[-1]
        if drop_last:
            cuts.pop()
        elif last.stop - last.start == 1:
            cuts[-2:] = [slice(cuts[-2].start, last.stop)]
    return cuts
