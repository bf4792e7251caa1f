"""Target assignment and loss of the anchor-free detector.

Assignment as FCOS (arXiv 1904.01355, section 3) with centre sampling; loss as VarifocalNet (arXiv 2008.13367,
section 3.3): a point's score is to be the overlap of its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from tasks.detectors.base import Targets

# A point answers for an object when it is this many strides or fewer from the object's centre, in x and in y.
CENTRE_RADIUS = 1.5
# A map answers for objects whose farthest side is at most this many of its strides away; the coarsest for all larger.
REACH = 4.0
# Varifocal loss: weight and exponent of the negatives.
ALPHA, GAMMA = 0.75, 2.0
BOX_WEIGHT = 2.0


@dataclass(frozen=True)
class Points:
    """N points of all maps, finest map first.

    centres: float32 [N, 2] (x, y) in input pixels. strides: float32 [N]. least, most: float32 [N], the distances in
    pixels to an object's farthest side for which the point's map is responsible.
    """

    centres: Tensor
    strides: Tensor
    least: Tensor
    most: Tensor

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> Points:
        """Points in the middle of the cells of maps of ``shapes`` (rows, columns)."""
        centres, each, least, most = [], [], [], []
        below = 0.0
        for (rows, columns), stride in zip(shapes, strides, strict=True):
            y, x = torch.meshgrid(
                torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
            )
            centres.append((torch.stack([x, y], dim=-1).flatten(0, 1).float() + 0.5) * stride)
            above = float("inf") if stride == strides[-1] else REACH * stride
            ones = torch.ones(rows * columns, device=device)
            each.append(ones * stride)
            least.append(ones * below)
            most.append(ones * above)
            below = above
        return cls(torch.cat(centres), torch.cat(each), torch.cat(least), torch.cat(most))


def assign(points: Points, boxes: Tensor) -> Tensor:
    """For each point the index of the object that it answers for, -1 for none: int64 [N]; boxes float32 [n, 4].

    Of several objects the smallest wins. An object that no point answers for takes the nearest point of the map for
    its size.
    """
    found = torch.full((len(points.centres),), -1, dtype=torch.int64, device=boxes.device)
    if not len(boxes):
        return found
    x, y = points.centres[:, None].unbind(-1)
    left, top, right, bottom = boxes.unbind(-1)
    sides = torch.stack([x - left, y - top, right - x, bottom - y], dim=-1)  # [N, n, 4]
    farthest = sides.amax(-1)
    offset = torch.maximum((x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs())
    radius = CENTRE_RADIUS * points.strides[:, None]
    responsible = (farthest > points.least[:, None]) & (farthest <= points.most[:, None])
    candidate = (sides.amin(-1) > 0) & (offset < radius) & responsible
    area = (right - left) * (bottom - top)
    cost = torch.where(candidate, area.expand_as(candidate), torch.inf)
    smallest, which = cost.min(dim=1)
    found = torch.where(smallest.isfinite(), which, found)
    missing = [index for index in range(len(boxes)) if not (found == index).any()]
    half = torch.maximum(right - left, bottom - top) / 2
    for index in sorted(missing, key=lambda index: -float(area[index])):  # the smallest last: it may take another's
        in_map = (half[index] > points.least) & (half[index] <= points.most)
        distance = torch.where(in_map, offset[:, index], torch.inf)
        found[distance.argmin()] = index
    return found


def fcos_loss(logits: Tensor, boxes: Tensor, points: Points, targets: Targets) -> dict[str, Tensor]:
    """Terms ``class`` and ``box``: sums over all points, by the number of positive points of the batch.

    logits: float32 [B, N, C]. boxes: float32 [B, N, 4] in input pixels.
    """
    assigned = torch.stack([assign(points, box) for box in targets.boxes])
    image, point = (assigned >= 0).nonzero(as_tuple=True)
    chosen = assigned[image, point]
    positives = max(len(chosen), len(targets.boxes))
    quality = torch.zeros_like(logits)
    box_loss = boxes.sum() * 0
    if len(chosen):
        starts = torch.tensor([0, *(len(box) for box in targets.boxes[:-1])], device=image.device).cumsum(0)
        truth = torch.cat(targets.boxes)[starts[image] + chosen]
        label = torch.cat(targets.labels)[starts[image] + chosen]
        predicted = boxes[image, point]
        box_loss = generalized_box_iou_loss(predicted, truth, reduction="sum")
        quality[image, point, label] = paired_iou(predicted.detach(), truth)
    return {
        "class": varifocal_loss(logits, quality) / positives,
        "box": BOX_WEIGHT * box_loss / positives,
    }


def varifocal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """Sum of the cross-entropy to ``quality``, weighted by it where it is above 0 and by α · p^γ elsewhere."""
    score = logits.detach().sigmoid()
    weight = torch.where(quality > 0, quality, ALPHA * score**GAMMA)
    return functional.binary_cross_entropy_with_logits(logits, quality, weight=weight, reduction="sum")


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of box i of ``first`` and box i of ``second``: [n] from [n, 4] each."""
    corner = torch.maximum(first[:, :2], second[:, :2])
    sides = (torch.minimum(first[:, 2:], second[:, 2:]) - corner).clamp(min=0)
    common = sides[:, 0] * sides[:, 1]
    area = (first[:, 2:] - first[:, :2]).prod(dim=1) + (second[:, 2:] - second[:, :2]).prod(dim=1)
    return common / (area - common).clamp(min=1e-7)
