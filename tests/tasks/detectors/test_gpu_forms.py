"""What a loss computes for a GPU, so that the host need not wait: run on the CPU against the CPU's own form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.detectors.base import Targets
from tasks.detectors.fcos import STRIDES
from tasks.detectors.fcos_loss import Points, assign, assign_all, match_all, match_chosen
from tasks.detectors.registry import build_detector
from tasks.detectors.yolo_loss import ASSIGNMENTS, copied
from tests.tasks.detectors.tiny_detectors import SIDE, TINY, noise, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CLASSES = 3
POINTS = Points.of([(8, 12), (4, 6), (2, 3)], STRIDES, CPU)


def truth(counts: list[int], seed: int, *, width: int = 96, height: int = 64) -> Targets:
    """Return targets with so many objects in each image, some of equal area and some in one place."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 30.0, height - 30.0])
        sides = torch.rand(count, 2, generator=generator) * 27 + 3
        box = torch.cat([corner, corner + sides], dim=1)
        if count > 3:
            box[1] = box[0] + torch.tensor([1.0, 0, 1, 0])
            box[2] = box[0]
        boxes.append(box)
        labels.append(torch.randint(CLASSES, (count,), generator=generator))
    return Targets(boxes, labels)


def outputs(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return logits and boxes of each point, of which a gradient is wanted."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, len(POINTS.centres), CLASSES, generator=generator)
    sides = torch.rand(images, len(POINTS.centres), 4, generator=generator) * 20
    boxes = torch.cat([POINTS.centres - sides[..., :2], POINTS.centres + sides[..., 2:]], dim=-1)
    return logits.requires_grad_(), boxes.requires_grad_()


@pytest.mark.parametrize("counts", [[5, 0, 2], [0, 0], [1], [7, 7], [0, 12, 1, 3]])
@pytest.mark.parametrize("seed", range(5))
def test_fcos_matches_all_points_as_it_matches_those_with_an_object(counts: list[int], seed: int) -> None:
    targets = truth(counts, seed)
    found, gradients = [], []
    for match in (match_chosen, match_all):
        logits, boxes = outputs(len(counts), seed)
        matched = match(logits, boxes, POINTS, targets)
        matched.box.backward()
        found.append(matched)
        gradients.append(boxes.grad)
    few, every = found
    assert torch.equal(few.assigned, every.assigned)
    assert int(few.positives) == int(every.positives)
    torch.testing.assert_close(few.box, every.box, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(few.quality, every.quality, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_boxes_that_fill_up_a_batch_are_assigned_no_point() -> None:
    targets = truth([2, 9], 3)
    padded = torch.nn.utils.rnn.pad_sequence(targets.boxes, batch_first=True)
    real = torch.arange(9)[None] < torch.tensor([[2], [9]])
    found = assign_all(POINTS, padded, real)
    for image, box in enumerate(targets.boxes):
        assert torch.equal(found[image], assign(POINTS, box))
    assert found[0].max() == 1


@pytest.mark.parametrize("regions", [False, True])
def test_targets_that_move_in_one_copy_keep_their_values(regions: bool) -> None:
    targets = truth([2, 0, 3], 1)
    if regions:
        boxes = [torch.rand(k, 4) for k in (0, 1, 2)]
        labels = [torch.full((k,), -1) for k in (0, 1, 2)]
        targets = Targets(targets.boxes, targets.labels, boxes, labels, torch.rand(3, CLASSES) > 0.5)
    found = targets.moved(CPU)
    assert found.host is targets
    assert targets.to(CPU) is targets
    for name in ("boxes", "labels", "regions", "region_labels"):
        one, other = getattr(targets, name), getattr(found, name)
        assert (one is None) == (other is None)
        assert all(torch.equal(*pair) for pair in zip(one or [], other or [], strict=True))
    assert (found.labelled is None) == (targets.labelled is None)
    assert targets.labelled is None or found.labelled is None or torch.equal(found.labelled, targets.labelled)


@pytest.mark.parametrize("name", TINY)
def test_a_loss_is_the_same_with_targets_that_moved(name: str) -> None:
    detector = build_detector(TINY[name], CLASSES, seed=1).train()
    images, targets = noise(3), truth([2, 0, 3], 4, width=SIDE, height=SIDE)
    result = detector(images)

    def terms(of: Targets) -> dict[str, Tensor]:
        torch.manual_seed(3)  # of Faster R-CNN's samples
        return detector.loss(result, of)

    one, other = terms(targets), terms(targets.moved(CPU))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("assignment", ["best-prior", "side-ratio"])
def test_yolos_assignments_move_in_one_copy(assignment: Any) -> None:
    detector = build_detector(tiny("yolov3-tiny", assignment=assignment), CLASSES, seed=1)
    maps = detector(noise(2))
    scales: Any = detector.scales
    found = ASSIGNMENTS[assignment](
        truth([3, 1], 2, width=SIDE, height=SIDE), scales, [(part.shape[2], part.shape[3]) for part in maps]
    )
    moved = copied(found, CPU)
    assert sum(len(one.labels) for one in found) > 0
    for one, other in zip(found, moved, strict=True):
        for field in ("image", "anchor", "row", "column", "boxes", "labels"):
            assert torch.equal(getattr(one, field), getattr(other, field))
