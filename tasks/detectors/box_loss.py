"""Losses on the overlap of pairs of boxes: generalised IoU (arXiv 1902.09630) and complete IoU (arXiv 1911.08287).

torchvision's functions select the pairs that overlap by a mask, for which the host waits for a GPU. On a GPU these
compute the same without it. On a CPU torchvision's are called, so that results keep their bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Keeps divisions by the areas of empty boxes finite, as in torchvision.
EPSILON = 1e-7


def generalized_iou_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of ``1 - GIoU`` of box i of ``first`` and box i of ``second``, both float32 [n, 4] xyxy."""
    from torchvision.ops import generalized_box_iou_loss

    if first.device.type == "cpu":
        loss: Tensor = generalized_box_iou_loss(first, second, reduction="sum")
        return loss
    return generalized_iou_losses(first, second).sum()


def complete_iou_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of ``1 - CIoU`` of box i of ``first`` and box i of ``second``, both float32 [n, 4] xyxy."""
    from torchvision.ops import complete_box_iou_loss

    if first.device.type == "cpu":
        loss: Tensor = complete_box_iou_loss(first, second, reduction="sum")
        return loss
    return complete_iou_losses(first, second).sum()


class _Overlap(NamedTuple):
    """Of pairs of boxes: IoU, union, and the sides (width, height) of the smallest box around both."""

    iou: Tensor
    union: Tensor
    around: Tensor


def generalized_iou_losses(first: Tensor, second: Tensor) -> Tensor:
    """Return ``1 - GIoU`` of each pair: [n]."""
    iou, union, around = _overlap(first, second)
    area = around.prod(dim=1)
    return 1 - (iou - (area - union) / (area + EPSILON))


def complete_iou_losses(first: Tensor, second: Tensor) -> Tensor:
    """Return ``1 - CIoU`` of each pair: [n]. The weight of the term of the aspect ratios has no gradient."""
    iou, _, around = _overlap(first, second)
    distance = ((first[:, :2] + first[:, 2:] - second[:, :2] - second[:, 2:]) / 2).square().sum(dim=1)
    sides, other = first[:, 2:] - first[:, :2], second[:, 2:] - second[:, :2]
    angle = torch.atan(other[:, 0] / other[:, 1]) - torch.atan(sides[:, 0] / sides[:, 1])
    ratio = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        weight = ratio / (1 - iou + ratio + EPSILON)
    return 1 - iou + distance / (around.square().sum(dim=1) + EPSILON) + weight * ratio


def _overlap(first: Tensor, second: Tensor) -> _Overlap:
    sides = torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])
    common = sides.clamp(min=0).prod(dim=1)
    union = (first[:, 2:] - first[:, :2]).prod(dim=1) + (second[:, 2:] - second[:, :2]).prod(dim=1) - common
    around = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    return _Overlap(common / (union + EPSILON), union, around)
