"""Give each image the label space of its client: the classes that were annotated in it (``data.label_space``).

An image keeps its label space wherever it is used. So the pooled images of several clients have different ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tasks.data.entries import Faults
from tasks.data.samples import ANY_CLASS, FederatedData, ImageSample, Regions, has_global_test_set
from tasks.spec.label_space import label_space_faults

Samples = tuple[ImageSample, ...]


def with_label_space(
    data: FederatedData, space: Mapping[str, Sequence[str]], faults: Faults, *, whole: bool
) -> FederatedData:
    """Return ``data`` in which the images of each client have its label space, and no objects of other classes.

    A test set that several clients share is labelled completely, so it stays as it is. A client's own test set has the
    client's label space.

    whole: whether ``data`` have every device. Without it only the devices in ``data`` are checked, because a silo has
    only its own images.

    Raises:
        DataError: ``space`` names a device or a class that ``data`` do not have, or leaves a class to no device, unless
            ``faults`` collects mistakes.
    """
    if not data.train or not data.classes:
        return data  # nothing could be read, which is reported already
    own = {client: named for client, named in space.items() if client in data.train}
    checked, devices = (space, tuple(data.train)) if whole else (own, None)
    for fault in label_space_faults(checked, devices=devices, classes=data.classes):
        faults.add(f"data.{fault}")
    masks = {client: _mask(named, data.classes) for client, named in own.items()}
    shared = len(data.test) > 1 and has_global_test_set(data)
    return replace(
        data,
        train={client: _labelled(samples, masks.get(client)) for client, samples in data.train.items()},
        test=data.test
        if shared
        else {client: _labelled(samples, masks.get(client)) for client, samples in data.test.items()},
    )


def _mask(named: Sequence[str], classes: Sequence[str]) -> npt.NDArray[np.bool_] | None:
    """Return whether each of ``classes`` is in ``named``; None if all are."""
    mask = np.array([name in named for name in classes], dtype=np.bool_)
    return None if mask.all() else mask


def _labelled(samples: Samples, mask: npt.NDArray[np.bool_] | None) -> Samples:
    return samples if mask is None else tuple(_without_others(sample, mask) for sample in samples)


def _without_others(sample: ImageSample, mask: npt.NDArray[np.bool_]) -> ImageSample:
    kept = mask[sample.labels]
    difficult = None if sample.difficult is None else sample.difficult[kept]
    return replace(
        sample,
        boxes=sample.boxes[kept],
        labels=sample.labels[kept],
        difficult=difficult if difficult is not None and difficult.any() else None,
        regions=_regions(sample.regions, mask),
        labelled=mask,
    )


def _regions(regions: Regions | None, mask: npt.NDArray[np.bool_]) -> Regions | None:
    """Return the regions that may hold objects of a labelled class, or of any; None without any."""
    if regions is None:
        return None
    kept = (regions.labels == ANY_CLASS) | mask[regions.labels]
    return Regions(regions.boxes[kept], regions.labels[kept]) if kept.any() else None
