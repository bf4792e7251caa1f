"""Non-maximum suppression in an exported network: its interface, and its form in TorchScript."""

from __future__ import annotations

from typing import Protocol

import torch
import torchvision  # noqa: F401  (defines torch.ops.torchvision)
from torch import Tensor


class Select(Protocol):
    """Non-maximum suppression within groups of boxes."""

    def __call__(self, boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int) -> Tensor:
        """Return int64 [K, 2]: group and index of each box that is left, group by group, best first.

        boxes: float32 [G, M, 4]. scores: float32 [G, M]; boxes whose score is not above ``threshold`` are left out.
        iou: a box goes if it overlaps a better one of its group by more. most: boxes of a group that are left at most.
        """
        ...


def select_by_group(boxes: Tensor, scores: Tensor, iou: float, threshold: float, most: int) -> Tensor:
    """Select with torchvision's suppression, as :class:`Select` says. ``torch.jit.script`` can compile it."""
    found = []
    for group in range(scores.size(0)):
        above = torch.nonzero(scores[group] > threshold).flatten()
        kept = above[torch.ops.torchvision.nms(boxes[group][above], scores[group][above], iou)][:most]
        found.append(torch.stack([torch.full_like(kept, group), kept], dim=1))
    return torch.cat(found)
