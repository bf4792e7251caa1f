"""No detector learns an ignore region as background, and nothing else changes in its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.data.batches import Batch
from tasks.data.samples import ImageSample
from tasks.detectors.base import Targets
from tasks.detectors.faster_rcnn import FasterRcnn, Sampler
from tasks.detectors.fcos import FcosOutputs
from tasks.detectors.fcos_loss import Points, assign, fcos_loss
from tasks.detectors.ignored import in_region
from tasks.detectors.registry import build_detector
from tasks.detectors.yolo_boxes import decode
from tasks.detectors.yolo_loss import ASSIGNMENTS
from tasks.spec.training import EvaluationSpec, TrainingSpec
from tasks.training.evaluation import evaluate
from tasks.training.local import train
from tests.tasks.detectors.tiny_detectors import MOBILE, RESNET, SIDE, TINY, VGG, built, noise

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 3
ANY = -1
BOXES = [torch.tensor([[5.0, 10, 37, 42]]), torch.zeros(0, 4)]
LABELS = [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)]
PLAIN = Targets(BOXES, LABELS)


def with_regions(*images: Sequence[tuple[float, float, float, float, int]]) -> Targets:
    """Return the objects of PLAIN, and each image's regions: xmin, ymin, xmax, ymax, label."""
    return dataclasses.replace(
        PLAIN,
        regions=[torch.tensor([row[:4] for row in rows], dtype=torch.float32).reshape(-1, 4) for rows in images],
        region_labels=[torch.tensor([row[4] for row in rows], dtype=torch.int64) for rows in images],
    )


# On the second image, the first region is of class 2 and the second of any class. On the first, one meets the object.
REGIONS = with_regions([(20, 0, 64, 30, 2)], [(0, 0, 30, 64, 2), (40, 8, 64, 50, ANY)])
# Larger than any anchor and any prediction of these detectors.
EVERYWHERE = torch.tensor([[-10_000.0, -10_000.0, 10_000.0, 10_000.0]])


def part_inside(box: Sequence[float], region: Sequence[float]) -> float:
    """Return the intersection over the box's own area, the slow way."""
    width = min(box[2], region[2]) - max(box[0], region[0])
    height = min(box[3], region[3]) - max(box[1], region[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(width, 0) * max(height, 0) / area if area > 0 else 0.0


def lies_in(box: Sequence[float], regions: Tensor) -> bool:
    return any(part_inside(box, region) >= 0.5 for region in regions.tolist())


def test_the_measure_is_the_part_of_the_boxs_own_area() -> None:
    regions = torch.tensor([[0.0, 0, 10, 10], [20, 0, 40, 40]])
    boxes: list[list[float]] = [
        [0, 0, 10, 20],
        [0, 0, 10, 20.1],
        [2, 2, 3, 3],
        [8, 0, 28, 10],
        [3, 3, 3, 9],
        [50, 50, 60, 60],
    ]
    found = in_region(torch.tensor(boxes, dtype=torch.float32), regions)
    # Half of the first box is inside. The fourth has 8 of 20 columns in one region and 2 in the other.
    assert found.tolist() == [True, False, True, False, False, False]
    assert found.tolist() == [lies_in(box, regions) for box in boxes]
    assert in_region(torch.tensor(boxes), torch.zeros(0, 4)).tolist() == [False] * 6


@pytest.mark.parametrize("name", [name for name in TINY if name != "yolov3"])  # it has the small one's loss
def test_empty_lists_of_regions_change_no_bit_and_a_covered_image_trains_nothing(name: str) -> None:
    detector = build_detector(TINY[name], CLASSES, seed=3)
    images = noise(2, seed=5)
    empty = dataclasses.replace(PLAIN, regions=[BOXES[1]] * 2, region_labels=[LABELS[1]] * 2)
    nothing = dataclasses.replace(PLAIN, boxes=[BOXES[1]] * 2, labels=[LABELS[1]] * 2)
    covered = dataclasses.replace(nothing, regions=[EVERYWHERE] * 2, region_labels=[torch.tensor([ANY])] * 2)
    for training in (True, False):
        detector.train(training)
        outputs = detector(images)

        def terms_of(targets: Targets, outputs: Any = outputs) -> Tensor:
            torch.manual_seed(7)  # of the samples
            return torch.stack(list(detector.loss(outputs, targets).values()))

        assert torch.equal(terms_of(empty), terms_of(PLAIN))
        assert terms_of(nothing).any()
        terms = terms_of(covered)
        assert not terms.any()
        terms.sum().backward()
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in detector.parameters())


def test_fcos_masks_the_regions_classes_at_its_points_only() -> None:
    points = Points.of([(8, 8), (4, 4), (2, 2)], (8, 16, 32), torch.device("cpu"))
    count = len(points.centres)
    generator = torch.Generator().manual_seed(2)
    raw = torch.randn(2, count, CLASSES, generator=generator)
    sides = torch.rand(2, count, 4, generator=generator) * 20
    boxes = torch.cat([points.centres - sides[..., :2], points.centres + sides[..., 2:]], dim=-1)

    def gradients(targets: Targets) -> tuple[Tensor, Tensor]:
        logits, corners = raw.clone().requires_grad_(), boxes.clone().requires_grad_()
        torch.stack(list(fcos_loss(logits, corners, points, targets).values())).sum().backward()
        assert logits.grad is not None
        assert corners.grad is not None
        return logits.grad, corners.grad

    plain, plain_boxes = gradients(PLAIN)
    masked, masked_boxes = gradients(REGIONS)
    assert torch.equal(plain_boxes, masked_boxes)
    assert REGIONS.regions is not None
    assert REGIONS.region_labels is not None
    changed = 0
    for image in range(2):
        assigned = assign(points, BOXES[image])
        for point, (x, y) in enumerate(points.centres.tolist()):
            open_classes: set[int] = set()
            for (left, top, right, bottom), label in zip(
                REGIONS.regions[image].tolist(), REGIONS.region_labels[image].tolist(), strict=True
            ):
                if assigned[point] < 0 and left < x < right and top < y < bottom:
                    open_classes |= set(range(CLASSES)) if label == ANY else {label}
            for label in range(CLASSES):
                expected = 0.0 if label in open_classes else float(plain[image, point, label])
                assert float(masked[image, point, label]) == expected
                changed += label in open_classes
    # The rule has been used in both images, and at points that the object keeps.
    assert changed > 40
    x, y = points.centres.unbind(-1)
    assert ((assign(points, BOXES[0]) >= 0) & (x > 20) & (y < 30)).any()


@pytest.mark.parametrize("name", ["yolov3", "yolov3-tiny"])
def test_yolo_leaves_predictions_in_a_region_out_of_objectness_only(name: str) -> None:
    detector: Any = build_detector(TINY[name], CLASSES, seed=3).eval()
    with torch.no_grad():
        outputs = [output * 3 for output in detector(noise(2, seed=5))]

    def gradients(targets: Targets) -> list[Tensor]:
        leaves = [output.clone().requires_grad_() for output in outputs]
        torch.stack(list(detector.loss(leaves, targets).values())).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    plain, masked = gradients(PLAIN), gradients(REGIONS)
    assert REGIONS.regions is not None
    shapes = [(output.shape[2], output.shape[3]) for output in outputs]
    positives = ASSIGNMENTS[TINY[name].assignment](PLAIN, detector.scales, shapes)  # type: ignore[union-attr]
    left_out = kept = 0
    for output, scale, of_object, before, after in zip(outputs, detector.scales, positives, plain, masked, strict=True):
        expected = before.clone()
        owned = torch.zeros_like(output[..., 4], dtype=torch.bool)
        owned[of_object.image, of_object.anchor, of_object.row, of_object.column] = True
        boxes, _ = decode(output, scale)
        for image in range(2):
            inside = torch.tensor([lies_in(box, REGIONS.regions[image]) for box in boxes[image].tolist()])
            inside = inside.view_as(owned[image]) & ~owned[image]
            expected[image, ..., 4][inside] = 0
            left_out += int((before[image, ..., 4][inside] != 0).sum())
            kept += int((~inside).sum())
        assert torch.equal(after, expected)
    assert left_out > 3
    assert kept > 3


def draw_all(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Draw every positive and every negative, so that two losses have the same samples."""
    return [label >= 1 for label in labels], [label == 0 for label in labels]


@pytest.mark.parametrize("name", [VGG, RESNET, MOBILE])
def test_faster_rcnn_draws_no_background_from_a_region_and_all_else(name: str) -> None:
    detector: FasterRcnn = built(TINY[name]).eval()
    detector.rpn.fg_bg_sampler = detector.roi_heads.fg_bg_sampler = Sampler(draw_all)
    # Anchors of VGG16 are larger than the image.
    targets = with_regions([(-200, -200, 200, 34, 2)], [(-200, -200, 30, 200, ANY)])
    with torch.no_grad():
        plain_outputs = detector(noise(2, seed=5))
    generator = torch.Generator().manual_seed(4)
    corners = torch.rand(2, 20, 2, 2, generator=generator).sort(dim=2).values * 64
    given = [torch.randn(20, 1 + CLASSES, generator=generator) for _ in range(2)]
    changes = [torch.zeros(20, 4 * (1 + CLASSES))] * 2
    plain_outputs = dataclasses.replace(plain_outputs, proposals=list(corners.flatten(2)))

    def gradients(targets: Targets) -> tuple[Tensor, list[Tensor], Tensor]:
        objectness = plain_outputs.objectness.clone().requires_grad_()
        deltas = plain_outputs.deltas.clone().requires_grad_()
        logits = [part.clone().requires_grad_() for part in given]
        outputs = dataclasses.replace(plain_outputs, objectness=objectness, deltas=deltas, scored=(logits, changes))
        torch.stack(list(detector.loss(outputs, targets).values())).sum().backward()
        assert objectness.grad is not None
        assert deltas.grad is not None
        return objectness.grad, [part.grad for part in logits if part.grad is not None], deltas.grad

    plain, masked = gradients(PLAIN), gradients(targets)
    assert targets.regions is not None
    for image in range(2):
        labels, _ = detector.rpn.assign_targets_to_anchors(
            [plain_outputs.anchors], [{"boxes": BOXES[image], "labels": LABELS[image]}]
        )
        anchors = torch.tensor([lies_in(box, targets.regions[image]) for box in plain_outputs.anchors.tolist()])
        left_out = anchors & (labels[0] == 0)
        assert left_out.any()
        _compare(plain[0][image], masked[0][image], left_out, drawn=labels[0] >= 0)
        # Proposals on the object stay samples, those of the background in a region do not.
        boxes = plain_outputs.proposals[image]
        _, of_proposals = detector.roi_heads.assign_targets_to_proposals([boxes], [BOXES[image]], [LABELS[image] + 1])
        inside = torch.tensor([lies_in(box, targets.regions[image]) for box in boxes.tolist()])
        left_out = inside & (of_proposals[0] == 0)
        assert left_out.any()
        assert not left_out.all()
        more = len(BOXES[image])  # the true boxes are samples of the head, too
        _compare(plain[1][image], masked[1][image], left_out, drawn=of_proposals[0] >= 0, more=more)


def _compare(plain: Tensor, masked: Tensor, left_out: Tensor, *, drawn: Tensor, more: int = 0) -> None:
    """Check gradients of means over the drawn samples: none where left out, elsewhere the same for each sample."""
    before = int(drawn.sum()) + more
    after = before - int(left_out.sum())
    assert (plain[left_out].reshape(int(left_out.sum()), -1) != 0).any(dim=1).all()
    assert not masked[left_out].any()
    torch.testing.assert_close(masked[~left_out] * after, plain[~left_out] * before, rtol=1e-4, atol=1e-7)


def test_regions_go_through_the_detectors_own_loss() -> None:
    detector = build_detector(TINY["fcos-lite0"], CLASSES, seed=3)
    outputs = detector(noise(2, seed=5))
    assert isinstance(outputs, FcosOutputs)
    assert detector.loss(outputs, REGIONS)["class"] < detector.loss(outputs, PLAIN)["class"]


@pytest.mark.parametrize("multi_scale", [None, (96, 96)])
def test_training_and_the_test_loss_get_the_regions_of_their_batches(multi_scale: tuple[int, int] | None) -> None:
    nothing = Batch(noise(2, seed=5), [BOXES[1]] * 2, [LABELS[1]] * 2, [0, 1])
    covered = dataclasses.replace(nothing, regions=[EVERYWHERE] * 2, region_labels=[torch.tensor([ANY])] * 2)
    no_object = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    samples = [ImageSample(Path("x"), SIDE, SIDE, *no_object, str(number), "") for number in range(2)]
    objectness, losses = [], []
    for batch in (nothing, covered):
        detector = build_detector(TINY["yolov3-tiny"], CLASSES, seed=3)
        spec = TrainingSpec(multi_scale=multi_scale)
        result = train(detector, [batch], spec, lr=1e-4, warmup_steps=0, seed=1, client="1")
        objectness.append(result.terms["objectness"])
        losses += evaluate(detector, [batch], samples, EvaluationSpec(), device="cpu").batch_losses
    assert objectness[0] > 0
    assert objectness[1] == 0
    assert losses[0] > 0
    assert losses[1] == 0
