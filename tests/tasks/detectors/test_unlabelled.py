"""The loss of every detector where some classes are unlabelled in an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks.detectors.base import Detector, Targets
from tasks.detectors.faster_rcnn import FasterRcnn
from tasks.detectors.fcos import FcosLite0
from tasks.detectors.registry import DETECTORS, build_detector, detector_class
from tasks.detectors.yolo_boxes import decode
from tasks.detectors.yolo_network import YoloNetwork
from tests.tasks.detectors.tiny_detectors import TINY, noise

CLASSES = 3
UNLABELLED = 2
KINDS = ["yolov3-tiny", "fcos-lite0", "faster-rcnn-mobilenetv3-320-fpn"]
BOXES = torch.tensor([[4.0, 4.0, 24.0, 28.0], [30.0, 20.0, 60.0, 44.0]])
TARGETS = Targets([BOXES, BOXES[:1]], [torch.tensor([0, 1]), torch.tensor([1])])
PARTLY = replace(TARGETS, labelled=torch.tensor([[True, True, False]] * 2))


def class_gradient(detector: Detector, targets: Targets) -> Tensor:
    """Return the gradient of a training loss in the weights that give the score of the unlabelled class."""
    detector.zero_grad()
    torch.manual_seed(0)  # Faster R-CNN draws its samples
    sum(detector.loss(detector(noise(2)), targets).values()).backward()  # type: ignore[union-attr]
    if isinstance(detector, FcosLite0):
        return detector.class_output.weight.grad[UNLABELLED]  # type: ignore[index]
    if isinstance(detector, FasterRcnn):
        return detector.roi_heads.box_predictor.cls_score.weight.grad[1 + UNLABELLED]
    assert isinstance(detector, YoloNetwork)
    names = [name for name in detector.head_names() if name.endswith("weight")]
    rows = [detector.get_parameter(name).grad.unflatten(0, (-1, 5 + CLASSES)) for name in names]  # type: ignore[union-attr]
    return torch.cat([row[:, 5 + UNLABELLED].flatten() for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unlabelled_class_gets_no_gradient_from_objects_and_background(kind: str) -> None:
    detector = build_detector(TINY[kind], CLASSES, seed=1).train()
    assert class_gradient(detector, TARGETS).abs().sum() > 0
    assert class_gradient(detector, PARTLY).abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_image_with_unlabelled_classes_is_masked(kind: str) -> None:
    """In a pooled batch, each image has the label space of its client."""
    detector = build_detector(TINY[kind], CLASSES, seed=1).train()
    mixed = replace(TARGETS, labelled=torch.tensor([[True, True, False], [True, True, True]]))
    assert class_gradient(detector, mixed).abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_mask_that_marks_every_class_changes_no_bit(kind: str, training: bool) -> None:
    detector = build_detector(TINY[kind], CLASSES, seed=1).train(training)
    outputs = detector(noise(2))
    losses = []
    for targets in (TARGETS, replace(TARGETS, labelled=torch.ones(2, CLASSES, dtype=torch.bool))):
        torch.manual_seed(0)
        losses.append(detector.loss(outputs, targets))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_loss_leaves_the_unlabelled_class_out(kind: str) -> None:
    """A higher score of the unlabelled class costs nothing, and costs where the class is labelled."""
    detector = build_detector(TINY[kind], CLASSES, seed=1).eval()
    with torch.no_grad():
        before = [detector.loss(detector(noise(2)), targets) for targets in (TARGETS, PARTLY)]
        _raise_bias(detector)
        after = [detector.loss(detector(noise(2)), targets) for targets in (TARGETS, PARTLY)]
    plain, masked = ([sum(found[number].values()) for found in (before, after)] for number in (0, 1))
    assert plain[1] > plain[0]
    torch.testing.assert_close(masked[1], masked[0])


def _raise_bias(detector: Detector) -> None:
    if isinstance(detector, FcosLite0):
        detector.class_output.bias[UNLABELLED] += 2  # type: ignore[index]
    elif isinstance(detector, FasterRcnn):
        detector.roi_heads.box_predictor.cls_score.bias[1 + UNLABELLED] += 2
    else:
        for name in detector.head_names():
            if name.endswith("bias"):
                detector.get_parameter(name).view(-1, 5 + CLASSES)[:, 5 + UNLABELLED] += 2


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_detector_of_ours_has_the_rule(kind: str) -> None:
    found = detector_class(TINY[kind])
    assert found.masks_unlabelled
    assert found.needs_unlabelled_regions == (kind != "fcos-lite0")


def test_a_new_detector_has_no_rule_until_it_says_so() -> None:
    assert not Detector.masks_unlabelled
    assert Detector.needs_unlabelled_regions


def test_yolo_learns_no_background_where_a_region_marks_an_unlabelled_object() -> None:
    detector = build_detector(TINY["yolov3-tiny"], CLASSES, seed=1).train()
    assert isinstance(detector, YoloNetwork)
    outputs: list[Any] = [output.detach().requires_grad_() for output in detector(noise(2))]
    boxes, scores = decode(outputs[0], detector.scales[0])
    best = int(scores[1, :, UNLABELLED].argmax())
    region = boxes[1, best : best + 1].detach().clamp(0, 64)

    def gradient(targets: Targets) -> Tensor:
        for output in outputs:
            output.grad = None
        sum(detector.loss(outputs, targets).values()).backward()  # type: ignore[union-attr]
        return outputs[0].grad[1].flatten(0, 2)[best, 4]

    none, one = torch.zeros(0, 4), torch.tensor([UNLABELLED])
    marked = replace(PARTLY, regions=[none, region], region_labels=[one[:0], one])
    assert gradient(PARTLY) > 0
    assert gradient(marked) == 0
    # The region of the other image changes nothing here.
    assert gradient(replace(PARTLY, regions=[region, none], region_labels=[one, one[:0]])) == gradient(PARTLY)


def test_faster_rcnn_s_proposals_learn_no_background_where_a_region_marks_an_unlabelled_object() -> None:
    detector = build_detector(TINY["faster-rcnn-mobilenetv3-320-fpn"], CLASSES, seed=1).train()
    assert isinstance(detector, FasterRcnn)
    outputs = detector(noise(2))
    objectness = outputs.objectness.detach().requires_grad_()
    outputs = replace(outputs, objectness=objectness)

    def gradient(targets: Targets) -> Tensor:
        objectness.grad = None
        torch.manual_seed(0)
        detector.loss(outputs, targets)["objectness"].backward()
        return objectness.grad[1].clone()

    negative = int(gradient(PARTLY).argmax())
    none, region, one = torch.zeros(0, 4), outputs.anchors[negative : negative + 1], torch.tensor([UNLABELLED])
    marked = replace(PARTLY, regions=[none, region], region_labels=[one[:0], one])
    assert gradient(PARTLY)[negative] > 0
    assert gradient(marked)[negative] == 0


def test_faster_rcnn_s_box_head_draws_no_background_there() -> None:
    detector = build_detector(TINY["faster-rcnn-mobilenetv3-320-fpn"], CLASSES, seed=1).train()
    assert isinstance(detector, FasterRcnn)
    proposal = torch.tensor([[40.0, 46.0, 60.0, 60.0]])
    truth = {"boxes": BOXES[:1], "labels": torch.tensor([1])}
    for regions, drawn in ((torch.zeros(0, 4), True), (torch.tensor([[32.0, 44.0, 64.0, 64.0]]), False)):
        sample = detector._sample([proposal], [truth | {"regions": regions}])
        assert bool((sample.boxes[0][sample.chosen[0]] == proposal).all(dim=1).any()) == drawn
