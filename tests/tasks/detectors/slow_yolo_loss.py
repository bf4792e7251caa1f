"""YOLOv3's loss in plain Python, cell by cell: the oracle for the loss in tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from tasks.detectors.base import Targets
from tasks.detectors.yolo_boxes import YoloScale
from tasks.detectors.yolo_loss import BOX_WEIGHT, MAX_SIDE_RATIO
from tasks.spec.detector import YoloV3TinySpec


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def cross_entropy(value: float, wanted: float) -> float:
    return -(wanted * math.log(sigmoid(value)) + (1 - wanted) * math.log(1 - sigmoid(value)))


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(wide, 0) * max(high, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def complete_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the complete IoU (arXiv 1911.08287, equations 7 to 11)."""
    distance = ((a[0] + a[2] - b[0] - b[2]) ** 2 + (a[1] + a[3] - b[1] - b[3]) ** 2) / 4
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    angle = math.atan((b[2] - b[0]) / (b[3] - b[1])) - math.atan((a[2] - a[0]) / (a[3] - a[1]))
    shape, iou = 4 / math.pi**2 * angle**2, overlap(a, b)
    return iou - distance / diagonal - shape * shape / (1 - iou + shape)


def in_pixels(scale: YoloScale, spec: YoloV3TinySpec) -> list[tuple[float, float]]:
    """Return width and height, in pixels, of a scale's anchors."""
    return [(w * spec.width, h * spec.height) for w, h in scale.anchors]


def answers(
    box: Sequence[float], scales: Sequence[YoloScale], shapes: Sequence[tuple[int, int]], spec: YoloV3TinySpec
) -> list[tuple[int, int, int, int]]:
    """Return (scale, anchor, row, column) of the predictions that answer for an object."""
    wide, high = box[2] - box[0], box[3] - box[1]
    found, best = [], -1.0
    for s, (scale, (rows, columns)) in enumerate(zip(scales, shapes, strict=True)):
        x, y = (box[0] + box[2]) / 2 / scale.stride, (box[1] + box[3]) / 2 / scale.stride
        row, column = int(y), int(x)
        for a, (w, h) in enumerate(in_pixels(scale, spec)):
            if spec.assignment == "best-prior":
                shape = overlap((0, 0, wide, high), (0, 0, w, h))
                if shape > best:
                    best, found = shape, [(s, a, min(row, rows - 1), min(column, columns - 1))]
            elif max(wide / w, w / wide, high / h, h / high) < MAX_SIDE_RATIO:
                beside = (row, column + (1 if x % 1 >= 0.5 else -1))
                under = (row + (1 if y % 1 >= 0.5 else -1), column)
                near = [(row, column), beside, under]
                found += [(s, a, r, c) for r, c in near if 0 <= r < rows and 0 <= c < columns]
    return found


def slow_loss(
    outputs: Sequence[Tensor], targets: Targets, scales: Sequence[YoloScale], spec: YoloV3TinySpec
) -> dict[str, float]:
    terms = {"box": 0.0, "objectness": 0.0, "class": 0.0}
    shapes = [(output.shape[2], output.shape[3]) for output in outputs]
    batch = outputs[0].shape[0]
    for image in range(batch):
        truth = targets.boxes[image].tolist()
        labels = targets.labels[image].tolist()
        positives = [(answer, n) for n, box in enumerate(truth) for answer in answers(box, scales, shapes, spec)]
        asked = {answer for answer, _ in positives}
        boxes = {}
        for s, (scale, (rows, columns)) in enumerate(zip(scales, shapes, strict=True)):
            values = outputs[s][image].tolist()
            for a, (w, h) in enumerate(in_pixels(scale, spec)):
                for row in range(rows):
                    for column in range(columns):
                        raw = values[a][row][column]
                        across, down = (sigmoid(v) * scale.reach - (scale.reach - 1) / 2 for v in raw[:2])
                        x, y = (column + across) * scale.stride, (row + down) * scale.stride
                        wide, high = w * math.exp(raw[2]), h * math.exp(raw[3])
                        box = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
                        boxes[s, a, row, column] = (box, raw, across, down, scale, (w, h))
                        if (s, a, row, column) in asked:
                            terms["objectness"] += cross_entropy(raw[4], 1)
                        elif all(overlap(box, other) <= spec.ignore_iou for other in truth):
                            terms["objectness"] += cross_entropy(raw[4], 0)
        for answer, n in positives:
            box, raw, across, down, scale, (w, h) = boxes[answer]
            true = truth[n]
            if spec.box_loss == "ciou":
                terms["box"] += BOX_WEIGHT * (1 - complete_iou(box, true))
            else:
                wide, high = true[2] - true[0], true[3] - true[1]
                x, y = (true[0] + true[2]) / 2 / scale.stride, (true[1] + true[3]) / 2 / scale.stride
                error = (across - x + answer[3]) ** 2 + (down - y + answer[2]) ** 2
                error += (raw[2] - math.log(wide / w)) ** 2 + (raw[3] - math.log(high / h)) ** 2
                terms["box"] += (2 - wide * high / (spec.width * spec.height)) * error
            terms["class"] += sum(cross_entropy(value, label == labels[n]) for label, value in enumerate(raw[5:]))
    return {name: value / batch for name, value in terms.items()}
