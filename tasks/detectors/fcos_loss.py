"""Target assignment and loss of the anchor-free detector.

The assignment is that of FCOS (arXiv 1904.01355, section 3) with centre sampling. The loss is that of VarifocalNet
(arXiv 2008.13367, section 3.3): the target of a point's score is the overlap of its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from tasks.data.samples import ANY_CLASS
from tasks.detectors.base import Targets
from tasks.detectors.box_loss import generalized_iou_loss, generalized_iou_losses

# A point can be assigned an object whose centre is less than this many strides away, in x and in y.
CENTRE_RADIUS = 1.5
# A map's points can be assigned an object whose farthest side is at most this many of its strides away. The coarsest
# map has no such limit.
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
        """Return the points in the middle of the cells of maps of ``shapes`` (rows, columns)."""
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
    """Assign the objects of one image to points. Return for each point the index of its object, or -1: int64 [N].

    boxes: float32 [n, 4]. A point with several possible objects is assigned the smallest. An object without a point
    takes the nearest point of the map for its size.
    """
    return assign_all(points, boxes[None], torch.ones(1, len(boxes), dtype=torch.bool, device=boxes.device))[0]


def assign_all(points: Points, boxes: Tensor, real: Tensor) -> Tensor:
    """Assign the objects of each image to points, as :func:`assign` does: int64 [B, N].

    boxes: float32 [B, n, 4], filled up with zeros. real: bool [B, n], whether a box is an object.
    """
    images, objects = real.shape
    found = torch.full((images, len(points.centres)), -1, dtype=torch.int64, device=boxes.device)
    if not objects:
        return found
    x, y = points.centres[:, None].unbind(-1)
    left, top, right, bottom = boxes[:, None].unbind(-1)
    sides = torch.stack([x - left, y - top, right - x, bottom - y], dim=-1)  # [B, N, n, 4]
    farthest = sides.amax(-1)
    offset = torch.maximum((x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs())
    radius = CENTRE_RADIUS * points.strides[:, None]
    responsible = (farthest > points.least[:, None]) & (farthest <= points.most[:, None])
    candidate = (sides.amin(-1) > 0) & (offset < radius) & responsible
    area = (right - left) * (bottom - top)  # [B, 1, n]
    smallest, which = area.expand_as(candidate).masked_fill(~candidate, torch.inf).min(dim=-1)
    found = torch.where(smallest.isfinite(), which, found)
    index = torch.arange(objects, device=boxes.device)
    missing = real & ~(found[..., None] == index).any(dim=1)
    if missing.device.type == "cpu" and not missing.any():  # a GPU would make the host wait
        return found
    half = torch.maximum(right - left, bottom - top) / 2
    in_map = (half > points.least[:, None]) & (half <= points.most[:, None])
    nearest = offset.masked_fill(~in_map, torch.inf).argmin(dim=1)  # [B, n]
    # The smallest comes last, because it may take another object's point.
    order = area[:, 0].argsort(dim=1, descending=True, stable=True)
    rank = torch.zeros_like(order).scatter_(1, order, index.expand_as(order))
    last = torch.full_like(found, -1).scatter_reduce_(1, nearest, rank.masked_fill(~missing, -1), "amax")
    return torch.where(last >= 0, order.gather(1, last.clamp(min=0)), found)


class _Matched(NamedTuple):
    """What a batch's points must predict.

    assigned: int64 [B, N], index of the object in its image, or -1. positives: number of points with an object, at
    least the number of images. box: the summed box loss. quality: float32 [B, N, C], the wanted scores.
    """

    assigned: Tensor
    positives: int | Tensor
    box: Tensor
    quality: Tensor


def fcos_loss(logits: Tensor, boxes: Tensor, points: Points, targets: Targets) -> dict[str, Tensor]:
    """Return the terms ``class`` and ``box``: sums over all points, divided by the batch's number of positive points.

    logits: float32 [B, N, C]. boxes: float32 [B, N, 4] in input pixels. The class loss leaves out the scores that
    :func:`ignored_scores` names, at points that are assigned no object, and the scores of classes that are unlabelled
    in the image, at all points.
    """
    match = match_chosen if logits.device.type == "cpu" else match_all
    assigned, positives, box_loss, quality = match(logits, boxes, points, targets)
    counted = None
    if targets.regions is not None and targets.region_labels is not None:
        pairs = zip(targets.regions, targets.region_labels, strict=True)
        ignored = torch.stack([ignored_scores(points, *pair, classes=logits.shape[2]) for pair in pairs])
        counted = ~ignored | (assigned >= 0)[..., None]
    if targets.labelled is not None:
        known = targets.labelled[:, None]
        counted = known if counted is None else counted & known
    return {
        "class": varifocal_loss(logits, quality, counted) / positives,
        "box": BOX_WEIGHT * box_loss / positives,
    }


def match_chosen(logits: Tensor, boxes: Tensor, points: Points, targets: Targets) -> _Matched:
    """Match predictions with the truth at the points that are assigned an object. The host must know how many."""
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
        box_loss = generalized_iou_loss(predicted, truth)
        quality[image, point, label] = paired_iou(predicted.detach(), truth)
    return _Matched(assigned, positives, box_loss, quality)


def match_all(logits: Tensor, boxes: Tensor, points: Points, targets: Targets) -> _Matched:
    """Match as :func:`match_chosen` does, at all points, and leave out the others' values. The host need not wait.

    The sums have another order, so the last bits may differ.
    """
    truth = pad_sequence(targets.boxes, batch_first=True)
    labels = pad_sequence(targets.labels, batch_first=True, padding_value=-1)
    if not labels.shape[1]:
        truth, labels = truth.new_zeros(len(labels), 1, 4), labels.new_full((len(labels), 1), -1)
    assigned = assign_all(points, truth, labels >= 0)
    nothing, index = assigned < 0, assigned.clamp(min=0)
    wanted = truth.gather(1, index[..., None].expand(-1, -1, 4)).flatten(0, 1)
    predicted = boxes.flatten(0, 1)
    box_loss = generalized_iou_losses(predicted, wanted).masked_fill(nothing.flatten(), 0).sum()
    overlap = paired_iou(predicted.detach(), wanted).view_as(nothing).masked_fill(nothing, 0)
    of_class = labels.gather(1, index)[..., None] == torch.arange(logits.shape[2], device=logits.device)
    positives = (~nothing).sum().clamp(min=len(labels))
    return _Matched(assigned, positives, box_loss, overlap[..., None] * of_class)


def ignored_scores(points: Points, regions: Tensor, labels: Tensor, *, classes: int) -> Tensor:
    """Return the scores that an image's ignore regions leave open, bool [N, C]: those of a region's class inside it.

    regions: float32 [k, 4] in input pixels. labels: int64 [k]; -1 stands for all classes.
    """
    x, y = points.centres[:, None].unbind(-1)
    left, top, right, bottom = regions.unbind(-1)
    inside = (x > left) & (y > top) & (x < right) & (y < bottom)  # [N, k]
    of_class = (labels[:, None] == torch.arange(classes, device=labels.device)) | (labels[:, None] == ANY_CLASS)
    return inside.float() @ of_class.float() > 0


def varifocal_loss(logits: Tensor, quality: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return the summed cross-entropy to ``quality``, weighted by ``quality`` where it is above 0, else by α · p^γ.

    counted: bool, as ``logits``; other scores have no loss. None: all have.
    """
    score = logits.detach().sigmoid()
    weight = torch.where(quality > 0, quality, ALPHA * score**GAMMA)
    if counted is not None:
        weight = weight * counted
    return functional.binary_cross_entropy_with_logits(logits, quality, weight=weight, reduction="sum")


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of box i of ``first`` and box i of ``second``: [n] from [n, 4] each."""
    corner = torch.maximum(first[:, :2], second[:, :2])
    sides = (torch.minimum(first[:, 2:], second[:, 2:]) - corner).clamp(min=0)
    common = sides[:, 0] * sides[:, 1]
    area = (first[:, 2:] - first[:, :2]).prod(dim=1) + (second[:, 2:] - second[:, :2]).prod(dim=1)
    return common / (area - common).clamp(min=1e-7)
