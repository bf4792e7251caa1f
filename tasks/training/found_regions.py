"""Make ignore regions of a model's detections of unlabelled classes, in training and in an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tasks.data.batches import Batch
from tasks.detectors.base import Detections


def with_found_regions(batch: Batch, found: Sequence[Detections]) -> Batch:
    """Return ``batch`` with an ignore region for each of ``found`` of a class that is unlabelled in its image.

    found: detections above the score, for each image.
    """
    if batch.labelled is None:
        return batch
    regions, labels = _regions_of(batch)
    for number, (item, labelled) in enumerate(zip(found, batch.labelled, strict=True)):
        boxes, classes = item.boxes.cpu(), item.labels.cpu()
        kept = ~labelled[classes] & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        regions[number] = torch.cat([regions[number], boxes[kept]])
        labels[number] = torch.cat([labels[number], classes[kept]])
    if not any(map(len, labels)):
        return batch
    return replace(batch, regions=regions, region_labels=labels)


def _regions_of(batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Return a list of each image's regions, and one of their labels."""
    if batch.regions is None or batch.region_labels is None:
        count = len(batch.boxes)
        return [torch.zeros(0, 4)] * count, [torch.zeros(0, dtype=torch.int64)] * count
    return list(batch.regions), list(batch.region_labels)
