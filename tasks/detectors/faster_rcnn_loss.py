"""Parts of Faster R-CNN's loss: ignore regions, unlabelled classes, and the terms of the box head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import fastrcnn_loss

from tasks.detectors.ignored import in_region


def leave_out(labels: list[Tensor], boxes: list[Tensor], truth: list[dict[str, Tensor]]) -> bool:
    """Set the label of background boxes in an ignore region to -1, which is never drawn. Return whether any box is one.

    labels: a number [n] for each of an image's ``boxes``, 0 for background. They are changed in place.
    """
    found = False
    for label, box, item in zip(labels, boxes, truth, strict=True):
        regions = item.get("regions")
        if regions is not None and len(regions):
            label[(label == 0) & in_region(box, regions)] = -1
            found = True
    return found


def masked(logits: Sequence[Tensor], labelled: Tensor | None) -> list[Tensor]:
    """Return each image's logits [n, 1 + C], -inf for its unlabelled classes: the softmax runs over the others.

    labelled: bool [images, C]; None: all classes are labelled in all images.
    """
    if labelled is None:
        return list(logits)
    known = functional.pad(labelled, (1, 0), value=True)
    return [rows.masked_fill(~of_image, -torch.inf) for rows, of_image in zip(logits, known, strict=True)]


def head_terms(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], labels: list[Tensor], wanted: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the terms ``classifier`` and ``box`` of one or more images: means over their samples, 0 without any."""
    every, changes = torch.cat(list(logits)), torch.cat(list(deltas))
    if not len(every):
        return {"classifier": every.sum(), "box": changes.sum()}
    classifier, box = fastrcnn_loss(every, changes, labels, list(wanted))
    return {"classifier": classifier, "box": box}
