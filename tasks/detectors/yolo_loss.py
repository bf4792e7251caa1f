"""YOLOv3's target assignment and loss.

As published (arXiv 1804.02767, section 2.1, and Darknet's ``yolo_layer.c``): one anchor an object, squared error on
the box parameters weighted by 2 − area, binary cross-entropy for objectness and classes, and no objectness loss where
a prediction already overlaps an object. The two other choices of the specification change one part each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tasks.data.transfer import moved_together
from tasks.detectors.base import Targets
from tasks.detectors.box_loss import complete_iou_loss
from tasks.detectors.ignored import in_region
from tasks.detectors.yolo_boxes import YoloScale, cell_grid, centre_offset, decode_boxes
from tasks.spec.detector import YoloSpec

# An anchor is similar to an object whose sides are within this factor of its own.
MAX_SIDE_RATIO = 4.0
# Weight of the complete-IoU loss against the sums of cross-entropies; squared error has weights of its own.
BOX_WEIGHT = 2.0


@dataclass(frozen=True)
class Assignment:
    """The predictions of one scale that are assigned an object: P positives.

    image, anchor, row, column: int64 [P]. boxes: float32 [P, 4] (cx, cy, w, h) in pixels. labels: int64 [P].
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    boxes: Tensor
    labels: Tensor


class _Objects(NamedTuple):
    """All N objects of a batch: image index int64 [N], boxes (cx, cy, w, h) float32 [N, 4], labels int64 [N]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


class _Terms(NamedTuple):
    """The loss of one scale, each term summed over objects and cells."""

    box: Tensor
    objectness: Tensor
    classes: Tensor


def _objects_of(targets: Targets) -> _Objects:
    counts = torch.tensor([len(box) for box in targets.boxes], device=targets.boxes[0].device)
    image = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    corners = torch.cat(targets.boxes)
    boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
    return _Objects(image, boxes, torch.cat(targets.labels))


def assign_best_prior(
    targets: Targets, scales: Sequence[YoloScale], shapes: Sequence[tuple[int, int]]
) -> list[Assignment]:
    """Assign each object to the one anchor of all scales whose shape overlaps it most, in the cell of its centre.

    As in Darknet, an anchor in the masks of two scales is assigned the object in both.
    """
    image, boxes, labels = _objects_of(targets)
    of_scale = [scale.anchor_tensor(shape, boxes) for scale, shape in zip(scales, shapes, strict=True)]
    anchors = torch.cat(of_scale)
    inter = torch.minimum(boxes[:, None, 2:], anchors[None]).prod(-1)
    union = boxes[:, None, 2:].prod(-1) + anchors.prod(-1)[None] - inter
    best = anchors[(inter / union).argmax(dim=1)]
    assignments = []
    for scale, own, (rows, columns) in zip(scales, of_scale, shapes, strict=True):
        number, anchor = (own[None] == best[:, None]).all(dim=-1).nonzero(as_tuple=True)
        cell = (boxes[number, :2] / scale.stride).long()
        assignments.append(
            Assignment(
                image[number],
                anchor,
                cell[:, 1].clamp(0, rows - 1),
                cell[:, 0].clamp(0, columns - 1),
                boxes[number],
                labels[number],
            )
        )
    return assignments


def assign_side_ratio(
    targets: Targets, scales: Sequence[YoloScale], shapes: Sequence[tuple[int, int]]
) -> list[Assignment]:
    """Assign each object to every anchor of similar sides, in the cell of its centre and the two nearest cells."""
    image, boxes, labels = _objects_of(targets)
    assignments = []
    for scale, (rows, columns) in zip(scales, shapes, strict=True):
        anchors = scale.anchor_tensor((rows, columns), boxes)
        ratio = boxes[:, None, 2:] / anchors[None]
        similar = torch.maximum(ratio, 1 / ratio).amax(dim=-1) < MAX_SIDE_RATIO
        number, anchor = similar.nonzero(as_tuple=True)
        centre = boxes[number, :2] / scale.stride
        cell = centre.floor()
        # The nearest cells are left or right, and above or below, depending on the half of the cell with the centre.
        side = torch.where(centre - cell < 0.5, -1.0, 1.0)
        zero = torch.zeros_like(side[:, 0])
        steps = torch.stack(
            [
                torch.stack([zero, zero], 1),
                torch.stack([side[:, 0], zero], 1),
                torch.stack([zero, side[:, 1]], 1),
            ]
        )
        cells = (cell[None] + steps).long()
        inside = (cells[..., 0] >= 0) & (cells[..., 0] < columns) & (cells[..., 1] >= 0) & (cells[..., 1] < rows)
        inside_cells = cells[inside]
        repeated = number.repeat(3)[inside.flatten()]
        assignments.append(
            Assignment(
                image[repeated],
                anchor.repeat(3)[inside.flatten()],
                inside_cells[:, 1],
                inside_cells[:, 0],
                boxes[repeated],
                labels[repeated],
            )
        )
    return assignments


def _on(device: torch.device, assignments: Sequence[Assignment]) -> list[Assignment]:
    """Return the assignments on ``device``."""
    there = all(assignment.boxes.device.type == device.type for assignment in assignments)
    return list(assignments) if there else copied(assignments, device)


def copied(assignments: Sequence[Assignment], device: torch.device) -> list[Assignment]:
    """Return copies of the assignments on ``device``. All tensors move in one copy."""
    fields = ("image", "anchor", "row", "column", "boxes", "labels")
    tensors = [getattr(assignment, name) for assignment in assignments for name in fields]
    moved = iter(moved_together(tensors, device))
    return [Assignment(*(next(moved) for _ in fields)) for _ in assignments]


ASSIGNMENTS = {"best-prior": assign_best_prior, "side-ratio": assign_side_ratio}


def yolo_loss(
    outputs: Sequence[Tensor], targets: Targets, scales: Sequence[YoloScale], spec: YoloSpec
) -> dict[str, Tensor]:
    """Return the terms ``box``, ``objectness`` and ``class``: sums over objects and cells divided by the batch size.

    An object's class term leaves out the classes that are unlabelled in its image. Objectness has no class: ignore
    regions keep it from learning that an unlabelled object is none. For a GPU the assignment is computed on the CPU,
    from the truth that the batch came with: how many predictions it names depends on the truth, and the host would wait
    for that number.
    """
    shapes = [(output.shape[2], output.shape[3]) for output in outputs]
    assignments = _on(outputs[0].device, ASSIGNMENTS[spec.assignment](targets.host or targets, scales, shapes))
    terms = {name: outputs[0].new_zeros(()) for name in ("box", "objectness", "class")}
    for output, scale, positives in zip(outputs, scales, assignments, strict=True):
        box, objectness, classes = _scale_loss(output, scale, positives, targets, spec)
        terms["box"] = terms["box"] + box
        terms["objectness"] = terms["objectness"] + objectness
        terms["class"] = terms["class"] + classes
    batch = outputs[0].shape[0]
    return {name: term / batch for name, term in terms.items()}


def _scale_loss(output: Tensor, scale: YoloScale, positives: Assignment, targets: Targets, spec: YoloSpec) -> _Terms:
    where = (positives.image, positives.anchor, positives.row, positives.column)
    predicted = output[where]
    cells = torch.stack([positives.column, positives.row], dim=1).float()
    anchors = scale.anchor_tensor(output.shape[2:4], output)[positives.anchor]
    if spec.box_loss == "ciou":
        boxes = decode_boxes(predicted[:, :4], cells, anchors, scale)
        centre, half = positives.boxes[:, :2], positives.boxes[:, 2:] / 2
        truth = torch.cat([centre - half, centre + half], dim=1)
        box = BOX_WEIGHT * complete_iou_loss(boxes, truth)
    else:
        area = positives.boxes[:, 2:].prod(-1) / (output.shape[2] * output.shape[3] * scale.stride**2)
        offset = centre_offset(predicted[:, :2], scale.reach) - (positives.boxes[:, :2] / scale.stride - cells)
        size = predicted[:, 2:4] - torch.log(positives.boxes[:, 2:] / anchors)
        box = ((2 - area) * (offset.square().sum(-1) + size.square().sum(-1))).sum()
    wanted = torch.zeros_like(output[..., 4])
    wanted.index_put_(where, wanted.new_ones(len(positives.labels)))
    with torch.no_grad():
        counted = _background(output, scale, targets, spec.ignore_iou) | wanted.bool()
    raw = functional.binary_cross_entropy_with_logits(output[..., 4], wanted, reduction="none")
    objectness = (raw * counted).sum()
    one_hot = functional.one_hot(positives.labels, output.shape[-1] - 5).float()
    if targets.labelled is None:
        classes = functional.binary_cross_entropy_with_logits(predicted[:, 5:], one_hot, reduction="sum")
    else:
        of_class = functional.binary_cross_entropy_with_logits(predicted[:, 5:], one_hot, reduction="none")
        classes = (of_class * targets.labelled[positives.image]).sum()
    return _Terms(box, objectness, classes)


def _background(output: Tensor, scale: YoloScale, targets: Targets, ignore_iou: float) -> Tensor:
    """Return a mask [B, A, H, W] of predictions that overlap no object by more than ``ignore_iou``.

    Predictions in an ignore region are left out too, whatever the region's class, because objectness has no class. As
    for the overlap with objects, and as in an evaluation, the predicted box counts and not its cell: a cell of a coarse
    map is larger than most regions, and a box around a region has its centre inside it.
    """
    from torchvision.ops import box_iou

    anchors = scale.anchor_tensor(output.shape[2:4], output)[None, :, None, None, :]
    boxes = decode_boxes(output[..., :4], cell_grid(output.shape[2], output.shape[3], output), anchors, scale)
    background = torch.ones_like(output[..., 4], dtype=torch.bool)
    for number, truth in enumerate(targets.boxes):
        if len(truth):
            overlap = box_iou(boxes[number].reshape(-1, 4), truth).amax(dim=1)
            background[number] = (overlap <= ignore_iou).view_as(background[number])
    for number, regions in enumerate(targets.regions or ()):
        if len(regions):
            background[number] &= ~in_region(boxes[number].reshape(-1, 4), regions).view_as(background[number])
    return background
