"""Faster R-CNN, with torchvision's as the oracle. Anchors, freezing, samples and files have their own tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_resnet50_fpn,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from tasks.detectors.base import Targets
from tasks.detectors.faster_rcnn import FasterRcnn, Sampler
from tasks.detectors.faster_rcnn_parts import SingleMapRoIPool, parts_of
from tasks.spec.detector_parts import TorchvisionWeights
from tasks.spec.faster_rcnn import FasterRcnnMobileNetV3Spec, FasterRcnnResNet50Spec, FasterRcnnVgg16Spec
from tasks.spec.training import Sgd
from tasks.training.optimizers import build_optimizer
from tests.tasks.detectors.tiny_detectors import MOBILE, RESNET, SIDE, VGG, built, noise, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FILE = TorchvisionWeights(name="a.pth")


TARGETS = Targets(
    [torch.tensor([[4.0, 6, 40, 50], [20, 10, 60, 62]]), torch.zeros(0, 4), torch.tensor([[10.0, 10, 30, 60]])],
    [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64), torch.tensor([1])],
)


# --- against torchvision's own ------------------------------------------------------------------------------------


def oracle(spec: Any, classes: int) -> FasterRCNN:
    """Return torchvision's detector with the specification's values, and inputs and weights in our memory format."""
    options = {
        "_skip_resize": True,
        "min_size": SIDE,
        "max_size": 2 * SIDE,
        "rpn_post_nms_top_n_train": spec.train_proposals,
        "rpn_post_nms_top_n_test": spec.test_proposals,
        "rpn_score_thresh": spec.proposal_score,
        "box_batch_size_per_image": spec.sampled_proposals,
        "box_score_thresh": 0.1,
        "box_detections_per_img": 10_000,
    }
    pyramid = {"rpn_pre_nms_top_n_train": spec.train_proposals, "rpn_pre_nms_top_n_test": spec.test_proposals}
    match spec:
        case FasterRcnnMobileNetV3Spec():
            make: Any = fasterrcnn_mobilenet_v3_large_320_fpn
        case FasterRcnnResNet50Spec():
            make = fasterrcnn_resnet50_fpn
        case _:
            backbone = parts_of(spec).backbone
            backbone.out_channels = 512  # type: ignore[assignment]
            model = FasterRCNN(
                backbone,
                rpn_anchor_generator=AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),)),
                box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
                box_head=TwoMLPHead(512 * 49, spec.fc_width),
                box_predictor=FastRCNNPredictor(spec.fc_width, classes + 1),
                rpn_pre_nms_top_n_train=12_000,
                rpn_pre_nms_top_n_test=6_000,
                **options,
            )
            return laid_out(model)
    return laid_out(make(weights=None, weights_backbone=None, num_classes=classes + 1, **pyramid, **options))


def laid_out(model: FasterRCNN) -> FasterRCNN:
    model.backbone.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].contiguous(memory_format=torch.channels_last),)
    )
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "spec",
    [
        tiny(VGG, roi_pool="roi-align"),
        tiny(RESNET, norm="batch-norm"),
        tiny(MOBILE, norm="batch-norm", proposal_score=0.05),
    ],
    ids=lambda spec: spec.kind,
)
def test_losses_and_detections_equal_torchvisions(spec: Any) -> None:
    detector = built(spec)
    theirs = oracle(spec, 3)
    theirs.load_state_dict(detector.state_dict())  # tensors have the same names
    images = noise(3)
    listed = list(images.float() / 255)
    truth = [
        {"boxes": boxes, "labels": labels + 1} for boxes, labels in zip(TARGETS.boxes, TARGETS.labels, strict=True)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        ours = detector.train().loss(detector(images), TARGETS)
        torch.manual_seed(5)
        expected = theirs.train()(listed, truth)
    for name, term in {
        "objectness": "loss_objectness", "rpn_box": "loss_rpn_box_reg",
        "classifier": "loss_classifier", "box": "loss_box_reg",
    }.items():  # fmt: skip
        assert float(ours[name].detach()) == pytest.approx(float(expected[term].detach()), rel=1e-4), name
    with torch.inference_mode():
        found = detector.eval().predict(detector(images), score_threshold=0.1, nms_iou=0.5, max_detections=10_000)
        known = theirs.eval()(listed)
    for mine, other in zip(found, known, strict=True):
        assert len(mine.scores) == len(other["scores"]) > 0
        torch.testing.assert_close(mine.scores, other["scores"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine.boxes, other["boxes"], rtol=1e-3, atol=1e-2)
        assert torch.equal(mine.labels, other["labels"] - 1)


# --- parts --------------------------------------------------------------------------------------------------------


def test_vgg16_has_the_papers_anchors() -> None:
    parts = parts_of(tiny(VGG))
    (anchors,) = parts.anchors.cell_anchors
    sides = (anchors[:, 2:] - anchors[:, :2]).tolist()
    assert len(sides) == 9
    for width, height in sides:
        size = (width * height) ** 0.5
        assert min(abs(size - wanted) / wanted for wanted in (128, 256, 512)) < 0.02
        assert min(abs(height / width - ratio) for ratio in (0.5, 1, 2)) < 0.03
    outputs = built(tiny(VGG)).train()(noise(1))
    assert outputs.maps["0"].shape == (1, 512, 4, 4)  # stride 16: without the last pooling
    assert outputs.anchors.shape == (4 * 4 * 9, 4)


def test_the_pooling_is_the_specified_one() -> None:
    maps = {"0": torch.zeros(1, 1, 8, 8)}
    maps["0"][0, 0, 2:4, 2:4] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    box = [torch.tensor([[32.0, 32.0, 48.0, 48.0]])]  # rows and columns 2 and 3
    pool = parts_of(tiny(VGG)).pool
    assert isinstance(pool, SingleMapRoIPool)
    pooled = pool(maps, box, [(128, 128)])
    assert pooled.shape == (1, 1, 7, 7)
    assert set(pooled.unique().tolist()) == {1.0, 2.0, 3.0, 4.0}  # maxima of whole cells
    aligned = parts_of(tiny(VGG, roi_pool="roi-align")).pool(maps, box, [(128, 128)])
    assert aligned.shape == (1, 1, 7, 7)
    assert len(aligned.unique()) > 10  # interpolated


def test_the_full_vgg16_has_the_originals_size() -> None:
    with torch.device("meta"):
        detector = FasterRcnn(FasterRcnnVgg16Spec(), 7)
    assert sum(parameter.numel() for parameter in detector.parameters()) == 136_807_317
    assert (detector.width, detector.height) == (736, 608)


@pytest.mark.parametrize(
    ("kind", "frozen", "names"),
    [
        (VGG, None, {"backbone.0", "backbone.2", "backbone.5", "backbone.7"}),
        (VGG, 1, {"backbone.0"}),
        (RESNET, None, {"backbone.body.conv1", "backbone.body.layer1"}),
        (RESNET, 0, set()),
        (MOBILE, None, {f"backbone.body.{number}" for number in range(7)}),
    ],
)
def test_the_first_layers_of_a_checkpoint_are_frozen(kind: str, frozen: int | None, names: set[str]) -> None:
    detector = built(tiny(kind, weights=FILE, frozen_layers=frozen))
    fixed = {name for name, parameter in detector.named_parameters() if not parameter.requires_grad}
    depth = 2 if kind == VGG else 3
    assert {".".join(name.split(".")[:depth]) for name in fixed} == names
    detector.train()
    loss = torch.stack(list(detector.loss(detector(noise(3)), TARGETS).values())).sum()
    loss.backward()
    assert {name for name, parameter in detector.named_parameters() if parameter.grad is None} == fixed


def test_nothing_is_frozen_from_scratch_and_the_backbone_has_its_own_rate() -> None:
    detector = built(tiny(MOBILE, backbone_lr=0.1))
    optimizer = build_optimizer(detector, Sgd(), 1.0)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in detector.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.1 if name.startswith("backbone.") else 1.0)


def test_the_normalisation_is_the_specified_one() -> None:
    group = built(tiny(MOBILE))
    assert not list(group.buffers())
    assert {module.num_groups for module in group.modules() if isinstance(module, nn.GroupNorm)} == {8, 16, 32}

    images = noise(3)
    batch = built(tiny(MOBILE, norm="batch-norm", weights=FILE, frozen_layers=2)).train()
    before = {name: buffer.clone() for name, buffer in batch.named_buffers() if name.endswith("running_mean")}
    batch(images)
    moved = {name for name, buffer in batch.named_buffers() if name in before and not torch.equal(buffer, before[name])}
    kept = {name for name in before if int(name.split(".")[2]) < 4}  # frozen layers
    assert moved
    assert moved == before.keys() - kept

    frozen = built(tiny(MOBILE, weights=FILE)).train()
    state = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    frozen(images)
    assert all(torch.equal(tensor, state[name]) for name, tensor in frozen.state_dict().items())
    assert not [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (VGG, {"width": 600}, "width: expected a multiple of 32, found 600"),
        (VGG, {"frozen_layers": 4}, "frozen_layers: expected 0 with random weights, found 4"),
        (VGG, {"weights": {"kind": "torchvision-hub", "trained_on": "coco"}}, "expected imagenet, .* found coco"),
        (MOBILE, {"norm": "frozen-batch-norm"}, "norm: expected group-norm or batch-norm with random weights"),
        (RESNET, {"norm": "group-norm", "weights": FILE}, "norm: expected frozen-batch-norm or batch-norm with the"),
    ],
)
def test_choices_that_do_not_fit_together_are_refused(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny(kind, **fields)


# --- samples and losses -------------------------------------------------------------------------------------------


def test_samplers_draw_at_random_in_training_and_always_the_same_in_evaluation() -> None:
    labels = [torch.arange(400) % 3 - 1]  # a third each: ignored, background, object
    sampler = built(tiny(MOBILE)).rpn.fg_bg_sampler
    assert isinstance(sampler, Sampler)
    before = torch.get_rng_state()
    sampler.eval()
    (first,), (negative,) = sampler(labels)
    pair, _ = sampler([labels[0], labels[0]])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, pair[0])
    assert torch.equal(first, pair[1])
    assert (int(first.sum()), int(negative.sum())) == (128, 128)
    assert not (first.bool() & (labels[0] != 1)).any()
    with torch.random.fork_rng():
        sampler.train()
        torch.manual_seed(1)
        (one,), _ = sampler(labels)
        (two,), _ = sampler(labels)
        torch.manual_seed(1)
        (again,), _ = sampler(labels)
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_the_test_loss_of_a_batch_is_the_mean_of_its_images() -> None:
    detector = built(tiny(MOBILE)).eval()
    images = noise(3)
    with torch.inference_mode():
        whole = detector.loss(detector(images), TARGETS)
        # Repeat an image to the same batch size: the bits of a convolution may depend on it.
        single = [
            detector.loss(
                detector(images[i].expand(3, -1, -1, -1)), Targets([TARGETS.boxes[i]] * 3, [TARGETS.labels[i]] * 3)
            )
            for i in range(3)
        ]
    for name, term in whole.items():
        assert float(term) == pytest.approx(sum(float(terms[name]) for terms in single) / 3, rel=1e-5, abs=1e-6)


def test_one_pass_serves_loss_and_detections_in_both_modes() -> None:
    detector = built(tiny(MOBILE))
    passes = []
    detector.backbone.register_forward_hook(lambda *_: passes.append(1))
    for training in (True, False):
        outputs = detector.train(training)(noise(3))
        with torch.random.fork_rng():
            detector.loss(outputs, TARGETS)
        (found, *_) = detector.predict(outputs, score_threshold=0.0, nms_iou=0.5, max_detections=5)
        assert len(found.scores)
    assert len(passes) == 2


@pytest.mark.parametrize("training", [True, False])
def test_boxes_without_area_are_ignored(training: bool) -> None:
    detector = built(tiny(MOBILE)).train(training)
    flat = torch.tensor([[20.0, 30, 20, 60], [10, 10, 10, 10]])
    images = noise(3)
    losses = []
    for boxes, labels in (
        (
            [torch.cat([box, flat]) for box in TARGETS.boxes],
            [torch.cat([x, torch.tensor([1, 2])]) for x in TARGETS.labels],
        ),
        (TARGETS.boxes, TARGETS.labels),
    ):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(2)
            losses.append(detector.loss(detector(images), Targets(list(boxes), list(labels))))
    assert losses[0] == losses[1]
    assert all(torch.isfinite(term) for term in losses[0].values())


@pytest.mark.parametrize("training", [True, False])
def test_without_proposals_there_are_no_detections_and_the_loss_is_finite(training: bool) -> None:
    detector = built(tiny(MOBILE, proposal_score=0.9)).train(training)
    outputs = detector(noise(3))
    assert not any(len(box) for box in outputs.proposals)
    empty = Targets([torch.zeros(0, 4)] * 3, [torch.zeros(0, dtype=torch.int64)] * 3)
    for targets in (empty, TARGETS):
        terms = detector.loss(outputs, targets)
        assert all(torch.isfinite(term) for term in terms.values())
        assert (float(terms["classifier"]) > 0) is (targets is TARGETS)
    found = detector.predict(outputs, score_threshold=0.0, nms_iou=0.5, max_detections=5)
    assert [(tuple(item.boxes.shape), len(item.scores), len(item.labels)) for item in found] == [((0, 4), 0, 0)] * 3
