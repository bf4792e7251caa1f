"""YOLOv3-tiny: layers, decoding, assignment and loss, by hand and against a slow implementation in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.data.batches import Batch
from tasks.data.samples import ImageSample
from tasks.detectors import suppression, yolo_boxes
from tasks.detectors.base import Targets
from tasks.detectors.registry import build_detector
from tasks.detectors.suppression import suppress
from tasks.detectors.yolo_boxes import YoloScale, decode
from tasks.detectors.yolo_loss import assign_best_prior, assign_side_ratio, yolo_loss
from tasks.detectors.yolo_network import YoloV3Tiny
from tasks.spec.detector import YoloV3TinySpec
from tasks.spec.training import AdamW, EvaluationSpec
from tasks.training.evaluation import evaluate
from tasks.training.optimizers import build_optimizer
from tests.present import present
from tests.tasks.detectors.slow_yolo_loss import cross_entropy, overlap, slow_loss

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64  # pixels
PIXELS = (((10, 10), (40, 20)), ((60, 60),))  # anchors of each scale in pixels; YoloScale has fractions of SIDE
SCALES = tuple(
    YoloScale(stride, tuple((wide / SIDE, high / SIDE) for wide, high in anchors))
    for stride, anchors in zip((16, 32), PIXELS, strict=True)
)
SHAPES = ((4, 4), (2, 2))  # rows and columns at SIDE x SIDE


def detector_of(num_classes: int = 3, seed: int = 1, **fields: Any) -> YoloV3Tiny:
    detector = build_detector(YoloV3TinySpec(**{"width": 64, "height": 96, **fields}), num_classes, seed=seed)
    assert isinstance(detector, YoloV3Tiny)
    return detector


def targets_of(*images: Sequence[tuple[float, float, float, float, int]]) -> Targets:
    return Targets(
        [torch.tensor([item[:4] for item in image], dtype=torch.float32).reshape(-1, 4) for image in images],
        [torch.tensor([item[4] for item in image], dtype=torch.int64) for image in images],
    )


def random_images(count: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, 96, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- architecture ------------------------------------------------------------------------------------------


def test_parameters_match_the_published_network() -> None:
    detector = detector_of(num_classes=7)
    assert sum(parameter.numel() for parameter in detector.parameters()) == 8_683_736
    layers = {name: layer for name, layer in detector.layers.items() if hasattr(layer, "conv")}
    sizes = {name: tuple(layer.get_parameter("conv.weight").shape) for name, layer in layers.items()}
    # Darknet's yolov3-tiny.cfg: filters and sizes of its convolutional layers, by number.
    assert sizes == {
        "0": (16, 3, 3, 3), "2": (32, 16, 3, 3), "4": (64, 32, 3, 3), "6": (128, 64, 3, 3), "8": (256, 128, 3, 3),
        "10": (512, 256, 3, 3), "12": (1024, 512, 3, 3), "13": (256, 1024, 1, 1), "14": (512, 256, 3, 3),
        "18": (128, 256, 1, 1), "21": (256, 384, 3, 3),
    }  # fmt: skip


def test_maps_are_at_strides_16_and_32() -> None:
    detector = detector_of(masks=((0, 1), (2, 3, 4)))
    fine, coarse = detector(random_images(2))
    assert fine.shape == (2, 2, 6, 4, 5 + 3)  # 96 x 64 pixels: rows first
    assert coarse.shape == (2, 3, 3, 2, 5 + 3)
    assert fine.dtype == coarse.dtype == torch.float32
    assert detector.scales[0].anchors[1] == (0.068, 0.097)
    pixels = detector.scales[0].anchor_tensor(fine.shape[2:4], fine)
    assert pixels.tolist()[1] == pytest.approx((0.068 * 64, 0.097 * 96))


def test_anchors_scale_with_the_input() -> None:
    """A map of 6 x 8 cells of 16 pixels belongs to an input of 128 x 96. Widths scale with 128, heights with 96."""
    anchors = SCALES[0].anchor_tensor((6, 8), torch.zeros(1))
    assert anchors.tolist() == [[10 * 2, 10 * 1.5], [40 * 2, 20 * 1.5]]


def test_the_last_pool_keeps_its_size_and_pads_right_and_below() -> None:
    detector = detector_of()
    seen: dict[str, Tensor] = {}
    detector.layers["10"].register_forward_hook(lambda module, inputs, output: seen.update(before=output.clone()))
    detector.layers["12"].register_forward_pre_hook(lambda module, inputs: seen.update(after=inputs[0].clone()))
    detector(random_images(1))
    before, after = seen["before"], seen["after"]
    assert before.shape == after.shape == (1, 512, 3, 2)
    for row in range(3):
        for column in range(2):
            expected = before[:, :, row : row + 2, column : column + 2].amax(dim=(2, 3))
            assert torch.equal(after[:, :, row, column], expected)


def test_weights_depend_only_on_the_seed_and_use_no_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = detector_of(seed=3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    second, other = detector_of(seed=3).state_dict(), detector_of(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["layers.0.conv.weight"], other["layers.0.conv.weight"])


# --- decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reach", "offset"), [(1.0, 0.75), (2.0, 1.0)])
def test_decoding_by_hand(reach: float, offset: float) -> None:
    output = torch.zeros(1, 2, 4, 4, 5 + 2)
    # Anchor 1 (40 x 20), row 2, column 1: σ(ln 3) = 3/4; exp(ln 2) = 2; σ(ln 9) = 0.9.
    output[0, 1, 2, 1] = torch.tensor([math.log(3), 0, math.log(2), 0, math.log(9), 0, math.log(3)])
    boxes, scores = decode(output, YoloScale(16, SCALES[0].anchors, reach))
    assert boxes.shape == (1, 32, 4)
    assert scores.shape == (1, 32, 2)
    at = 16 + 2 * 4 + 1
    centre = (1 + offset) * 16
    torch.testing.assert_close(boxes[0, at], torch.tensor([centre - 40, 40 - 10, centre + 40, 40 + 10]))
    torch.testing.assert_close(scores[0, at], torch.tensor([0.45, 0.675]))
    torch.testing.assert_close(boxes[0, 0], torch.tensor([3.0, 3.0, 13.0, 13.0]))
    torch.testing.assert_close(scores[0, 0], torch.tensor([0.25, 0.25]))


def test_a_huge_size_is_cut_and_boxes_end_at_the_image() -> None:
    output = torch.full((1, 2, 4, 4, 5 + 2), 200.0)
    boxes, _ = decode(output, SCALES[0])
    assert boxes.isfinite().all()
    assert float(boxes[0, 0, 2] - boxes[0, 0, 0]) == pytest.approx(10 * math.exp(yolo_boxes.MAX_LOG_SIZE))
    detector = detector_of()
    found = detector.predict(
        [torch.full((1, 3, 6, 4, 8), 200.0), torch.full((1, 3, 3, 2, 8), 200.0)],
        score_threshold=0.1, nms_iou=0.99, max_detections=5,
    )  # fmt: skip
    assert torch.equal(found[0].boxes[0], torch.tensor([0.0, 0.0, 64.0, 96.0]))


# --- non-maximum suppression -------------------------------------------------------------------------------

BOXES = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30], [40, 40, 50, 50]], dtype=torch.float32)


def kept(scores: list[list[float]], **options: Any) -> list[tuple[float, int]]:
    options = {"score_threshold": 0.1, "nms_iou": 0.5, "max_detections": 100, **options}
    found = suppress(BOXES, torch.tensor(scores), **options)
    return [(round(float(score), 3), int(label)) for score, label in zip(found.scores, found.labels, strict=True)]


def test_suppression_is_within_a_class_and_best_first() -> None:
    scores = [[0.6, 0.0], [0.7, 0.2], [0.0, 0.3], [0.9, 0.1]]
    # Boxes 0 and 1 overlap by 9/11. In class 0 the better one stays; it does not suppress box 1 in class 1.
    # Box 3's score of 0.1 for class 1 is not above the threshold.
    assert kept(scores) == [(0.9, 0), (0.7, 0), (0.3, 1), (0.2, 1)]
    assert kept(scores, nms_iou=0.9) == [(0.9, 0), (0.7, 0), (0.6, 0), (0.3, 1), (0.2, 1)]
    assert kept(scores, score_threshold=0.65) == [(0.9, 0), (0.7, 0)]
    assert kept(scores, score_threshold=0.95) == []


def test_detections_are_bounded_by_class() -> None:
    scores = [[0.6, 0.3], [0.0, 0.0], [0.8, 0.5], [0.7, 0.4]]
    assert kept(scores, max_detections=2) == [(0.8, 0), (0.7, 0), (0.5, 1), (0.4, 1)]


def test_only_the_best_candidates_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "MAX_CANDIDATES", 2)
    assert kept([[0.6, 0.3], [0.0, 0.0], [0.8, 0.2], [0.3, 0.7]]) == [(0.8, 0), (0.7, 1)]


# --- assignment --------------------------------------------------------------------------------------------


def cells(assignment: Any) -> set[tuple[int, int, int, int, int]]:
    """Return (image, anchor, row, column, label) of each positive."""
    columns = (assignment.image, assignment.anchor, assignment.row, assignment.column, assignment.labels)
    found = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(set(found)) == len(found)
    return set(found)


def test_best_prior_by_hand() -> None:
    targets = targets_of(
        [(3, 5, 15, 17, 2), (30, 40, 64, 56, 0)],  # 12 x 12 at (9, 11); 34 x 16 at (47, 48)
        [],
        [(0, 0, 64, 64, 1), (60, 60, 64, 64, 1), (56, 0, 72, 10, 0)],  # the last is centred on the right border
    )
    fine, coarse = assign_best_prior(targets, SCALES, SHAPES)
    assert cells(fine) == {(0, 0, 0, 0, 2), (0, 1, 3, 2, 0), (2, 0, 3, 3, 1), (2, 0, 0, 3, 0)}
    assert cells(coarse) == {(2, 0, 1, 1, 1)}
    assert coarse.boxes.tolist() == [[32, 32, 64, 64]]


@pytest.mark.parametrize(
    ("box", "fine_cells", "coarse_cells"),
    [
        # 12 x 12 at (9, 11), right of and below its cell's middle. 60 / 12 is too large a ratio for the coarse anchor.
        ((3, 5, 15, 17), {(0, 0), (0, 1), (1, 0)}, set()),
        # 20 x 20 at (33, 22), left of the middle of column 2 and above the middle of row 1.
        ((23, 12, 43, 32), {(1, 2), (1, 1), (0, 2)}, {(0, 1), (0, 0), (1, 1)}),
        # In a corner there is no neighbour beyond the border.
        ((0, 0, 6, 6), {(0, 0)}, set()),
        ((58, 58, 64, 64), {(3, 3)}, set()),
        # 4 x 4: the ratio 40 / 4 is too large for anchor 1. 2 x 30 is similar to no anchor.
        ((30, 30, 34, 34), {(2, 2), (2, 1), (1, 2)}, set()),
        ((30, 10, 32, 40), set(), set()),
    ],
)
def test_side_ratio_by_hand(
    box: tuple[float, float, float, float], fine_cells: set[tuple[int, int]], coarse_cells: set[tuple[int, int]]
) -> None:
    assigned = assign_side_ratio(targets_of([], [(*box, 4)]), SCALES, SHAPES)
    width, height = box[2] - box[0], box[3] - box[1]
    for found, expected, anchors in zip(assigned, (fine_cells, coarse_cells), PIXELS, strict=True):
        similar = [
            number
            for number, (wide, high) in enumerate(anchors)
            if max(width / wide, wide / width, height / high, high / height) < 4
        ]
        assert cells(found) == {(1, anchor, row, column, 4) for anchor in similar for row, column in expected}


# --- loss --------------------------------------------------------------------------------------------------


MODES = [
    ("best-prior", "squared-error"),
    ("best-prior", "ciou"),
    ("side-ratio", "squared-error"),
    ("side-ratio", "ciou"),
]


@pytest.mark.parametrize(("assignment", "box_loss"), MODES)
@pytest.mark.parametrize("ignore_iou", [0.3, 1.0])
def test_loss_equals_a_slow_implementation(assignment: Any, box_loss: Any, ignore_iou: float) -> None:
    anchors = ((0.15, 0.1), (0.3, 0.3), (0.6, 0.2), (0.3, 0.5), (0.8, 0.6))
    spec = YoloV3TinySpec(
        width=64, height=96, assignment=assignment, box_loss=box_loss, ignore_iou=ignore_iou,
        anchors=anchors, masks=((0, 1, 2), (3, 4)),
    )  # fmt: skip
    scales = YoloV3Tiny(spec, 3).scales
    generator = torch.Generator().manual_seed(4)
    outputs = [torch.randn(3, n, r, c, 8, generator=generator) * 0.7 for n, r, c in ((3, 6, 4), (2, 3, 2))]
    targets = targets_of(
        [(4, 6, 21, 30, 0), (30, 40, 61, 92, 2), (31, 41, 58, 90, 1), (0, 80, 9, 96, 2)], [], [(1, 1, 63, 95, 1)]
    )
    found = yolo_loss(outputs, targets, scales, spec)
    expected = slow_loss(outputs, targets, scales, spec)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=2e-5), name
    assert min(expected.values()) > 0.1


def test_a_prediction_over_an_object_is_not_punished() -> None:
    """Anchors are (0.5, 0.5) and (0.45, 0.45) of the input. The second answers; the first overlaps by 0.81."""
    fields: dict[str, Any] = {"width": 64, "height": 64, "anchors": ((0.5, 0.5), (0.45, 0.45)), "masks": ((0,), (1,))}
    outputs = [torch.full((1, 1, 4, 4, 6), -9.0), torch.full((1, 1, 2, 2, 6), -9.0)]
    outputs[0][0, 0, 1, 1, :5] = torch.tensor([9.0, 9.0, 0.0, 0.0, 3.0])  # centre (32, 32), 32 x 32
    side = 0.45 * 32
    targets = targets_of([(32 - side, 32 - side, 32 + side, 32 + side, 0)])
    terms = {}
    for ignore_iou in (0.5, 0.9):
        spec = YoloV3TinySpec(**fields, ignore_iou=ignore_iou)
        terms[ignore_iou] = float(yolo_loss(outputs, targets, YoloV3Tiny(spec, 1).scales, spec)["objectness"])
    assert terms[0.9] - terms[0.5] == pytest.approx(cross_entropy(3.0, 0), rel=1e-4)


@pytest.mark.parametrize(("assignment", "box_loss"), MODES)
@pytest.mark.parametrize("objects", [[], [(10, 10, 40, 60, 1)]])
def test_images_without_objects_give_finite_gradients(assignment: Any, box_loss: Any, objects: list[Any]) -> None:
    detector = detector_of(assignment=assignment, box_loss=box_loss).train()
    terms = detector.loss(detector(random_images(2)), targets_of(objects, []))
    if not objects:
        assert float(terms["box"].detach()) == float(terms["class"].detach()) == 0
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert present(detector.layers["22"].get_parameter("bias").grad).abs().sum() > 0


# --- in use ------------------------------------------------------------------------------------------------


def test_evaluation_does_not_change_the_model() -> None:
    detector = detector_of().train()
    detector(random_images(4, seed=3))  # change the initial statistics
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    samples = [
        ImageSample(Path("x"), 128, 96, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), str(n), "")
        for n in range(3)
    ]
    none = targets_of([], [], [])
    batch = Batch(random_images(3), none.boxes, none.labels, [0, 1, 2])
    together = evaluate(detector, [batch], samples, EvaluationSpec(), device="cpu")
    alone = [
        evaluate(
            detector,
            [Batch(batch.images[n : n + 1], none.boxes[:1], none.labels[:1], [n])],
            samples,
            EvaluationSpec(),
            device="cpu",
        )
        for n in range(3)
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())
    # In evaluation mode an image's score does not depend on its neighbours in the batch.
    assert sum(part.batch_losses[0] for part in alone) == pytest.approx(together.batch_losses[0], rel=1e-5)
    assert set(together.detections) == {0, 1, 2}


@pytest.mark.parametrize(("assignment", "box_loss"), [("best-prior", "squared-error"), ("side-ratio", "ciou")])
def test_learns_two_images_by_heart(assignment: Any, box_loss: Any) -> None:
    detector = detector_of(2, height=64, assignment=assignment, box_loss=box_loss, batch_norm_momentum=0.5).train()
    images = torch.full((2, 3, 64, 64), 60, dtype=torch.uint8)
    truth = [(8, 10, 40, 58, 0), (28, 20, 60, 56, 1)]
    for image, (left, top, right, bottom, label) in zip(images, truth, strict=True):
        image[label, top:bottom, left:right] = 230
    targets = targets_of(*([item] for item in truth))
    optimizer = build_optimizer(detector, AdamW(weight_decay=0), 1e-3)
    losses = []
    for _ in range(25):
        loss = torch.stack(list(detector.loss(detector(images), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.25 * losses[0], losses
    with torch.inference_mode():
        found = detector.eval().predict(detector(images), score_threshold=0.2, nms_iou=0.5, max_detections=10)
    for item, (*box, label) in zip(found, truth, strict=True):
        assert int(item.labels[0]) == label
        assert overlap(item.boxes[0].tolist(), box) > 0.5
