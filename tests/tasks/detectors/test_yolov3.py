"""YOLOv3 and YOLOv3-tiny: layers as in the cfg files, wiring, anchors and masks, inputs of several sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.data.batches import Batch
from tasks.detectors.base import Targets
from tasks.detectors.registry import build_detector
from tasks.detectors.yolo_boxes import decode
from tasks.detectors.yolo_loss import assign_best_prior
from tasks.detectors.yolo_network import (
    YOLOV3_LAYERS,
    YOLOV3_TINY_LAYERS,
    Conv,
    Detect,
    MaxPool,
    Output,
    Route,
    Shortcut,
    YoloNetwork,
    YoloV3,
    YoloV3Tiny,
    numbered,
)
from tasks.errors import SpecError
from tasks.spec import detector as spec
from tasks.spec.federation import parse_spec
from tasks.spec.training import Augmentation, TrainingSpec
from tasks.training.local import train
from tasks.training.multi_scale import STEPS_A_SIZE, input_size, resize

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def yolov3() -> YoloNetwork:
    detector = build_detector(spec.YoloV3Spec(width=64, height=64), 7, seed=1)
    assert isinstance(detector, YoloV3)
    return detector.train()


def tiny(width: int = 64, height: int = 64, **fields: Any) -> YoloNetwork:
    detector = build_detector(spec.YoloV3TinySpec(width=width, height=height, **fields), 7, seed=1)
    assert isinstance(detector, YoloV3Tiny)
    return detector.train()


def images(width: int = 64, height: int = 64, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


def test_the_numbers_of_parameters_are_the_published_ones() -> None:
    with torch.device("meta"):
        full, small = YoloV3(spec.YoloV3Spec(), 7), YoloV3Tiny(spec.YoloV3TinySpec(), 7)
        coco = YoloV3(spec.YoloV3Spec(), 80), YoloV3Tiny(spec.YoloV3TinySpec(), 80)
    counts = [sum(parameter.numel() for parameter in net.parameters()) for net in (full, small, *coco)]
    assert counts == [61_556_044, 8_683_736, 61_949_149, 8_852_366]


def test_state_keys_are_cfg_layers() -> None:
    with torch.device("meta"):
        full, small = YoloV3(spec.YoloV3Spec(), 7), YoloV3Tiny(spec.YoloV3TinySpec(), 7)
    assert full.state_dict()["layers.0.conv.weight"].shape == (32, 3, 3, 3)
    assert full.state_dict()["layers.73.conv.weight"].shape == (1024, 512, 3, 3)
    assert full.state_dict()["layers.73.norm.running_var"].shape == (1024,)
    assert [name for name in full.layers if isinstance(full.layers[name], nn.Conv2d)] == ["81", "93", "105"]
    assert list(small.layers) == ["0", "2", "4", "6", "8", "10", "12", "13", "14", "15", "18", "21", "22"]
    assert small.state_dict()["layers.15.bias"].shape == (36,)
    assert small.state_dict()["layers.21.conv.weight"].shape == (256, 384, 3, 3)


def test_tables_match_the_cfg_files() -> None:
    """Compare selected layers of yolov3.cfg and yolov3-tiny.cfg by number."""
    assert len(YOLOV3_LAYERS) == 107
    assert [n for n, layer in enumerate(YOLOV3_LAYERS) if isinstance(layer, Conv) and layer.stride == 2] == [
        1, 5, 12, 37, 62,
    ]  # fmt: skip
    shortcuts = {n: layer.source for n, layer in enumerate(YOLOV3_LAYERS) if isinstance(layer, Shortcut)}
    assert len(shortcuts) == 23
    assert all(source == number - 3 for number, source in shortcuts.items())
    assert (min(shortcuts), max(shortcuts)) == (4, 74)
    routes = {n: layer.sources for n, layer in enumerate(YOLOV3_LAYERS) if isinstance(layer, Route)}
    assert routes == {83: (79,), 86: (85, 61), 95: (91,), 98: (97, 36)}
    assert {n: layer.scale for n, layer in enumerate(YOLOV3_LAYERS) if isinstance(layer, Detect)} == {
        82: 2, 94: 1, 106: 0,
    }  # fmt: skip
    assert len(YOLOV3_TINY_LAYERS) == 24
    assert [n for n, layer in enumerate(YOLOV3_TINY_LAYERS) if isinstance(layer, MaxPool)] == [1, 3, 5, 7, 9, 11]
    assert YOLOV3_TINY_LAYERS[11] == MaxPool(stride=1)
    assert {n: layer.sources for n, layer in enumerate(YOLOV3_TINY_LAYERS) if isinstance(layer, Route)} == {
        17: (13,), 20: (19, 8),
    }  # fmt: skip
    assert [n for n, layer in enumerate(YOLOV3_TINY_LAYERS) if isinstance(layer, Output)] == [15, 22]


def parted(raw: Tensor) -> Tensor:
    batch, _, rows, columns = raw.shape
    return raw.contiguous().view(batch, 3, 12, rows, columns).permute(0, 1, 3, 4, 2)


def last_pool(x: Tensor) -> Tensor:
    """Return Darknet's stride-1 pool: the maximum over rows and columns n and n + 1, within the map."""
    down = torch.cat([torch.maximum(x[..., :-1, :], x[..., 1:, :]), x[..., -1:, :]], dim=2)
    return torch.cat([torch.maximum(down[..., :-1], down[..., 1:]), down[..., -1:]], dim=3)


def tiny_by_hand(net: YoloNetwork, pixels: Tensor) -> list[Tensor]:
    layer = net.layers
    x = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
    for name in ("0", "2", "4", "6"):
        x = functional.max_pool2d(layer[name](x), 2, 2)
    fine = layer["8"](x)
    neck = layer["13"](layer["12"](last_pool(layer["10"](functional.max_pool2d(fine, 2, 2)))))
    coarse = layer["15"](layer["14"](neck))
    up = functional.interpolate(layer["18"](neck), scale_factor=2, mode="nearest")
    return [parted(layer["22"](layer["21"](torch.cat([up, fine], dim=1)))), parted(coarse)]


def yolov3_by_hand(net: YoloNetwork, pixels: Tensor) -> list[Tensor]:
    layer = net.layers
    x = layer["0"]((pixels.float() / 255).contiguous(memory_format=torch.channels_last))
    features = []
    for start, blocks in ((1, 1), (5, 2), (12, 8), (37, 8), (62, 4)):
        x = layer[str(start)](x)
        for first in range(start + 1, start + 1 + 3 * blocks, 3):
            x = layer[str(first + 1)](layer[str(first)](x)) + x
        features.append(x)
    maps: list[Tensor] = []
    branch = x
    for start, skip in ((75, None), (87, features[3]), (99, features[2])):
        if skip is not None:
            up = functional.interpolate(layer[str(start - 3)](branch), scale_factor=2, mode="nearest")
            x = torch.cat([up, skip], dim=1)
        for number in range(start, start + 5):
            x = layer[str(number)](x)
        branch = x
        maps.insert(0, parted(layer[str(start + 6)](layer[str(start + 5)](x))))
    return maps


def test_tiny_equals_layers_wired_by_hand_to_the_bit() -> None:
    net, pixels = tiny(width=96), images(width=96)
    ours, byhand = net(pixels), tiny_by_hand(net, pixels)
    assert [tuple(item.shape) for item in ours] == [(2, 3, 4, 6, 12), (2, 3, 2, 3, 12)]
    assert all(torch.equal(a, b) for a, b in zip(ours, byhand, strict=True))
    parameters = list(net.parameters())
    grads = [
        torch.autograd.grad(torch.stack([item.square().mean() for item in maps]).sum(), parameters)
        for maps in (ours, byhand)
    ]
    assert all((a - b).norm() <= 1e-4 * b.norm() for a, b in zip(*grads, strict=True))


def test_yolov3_equals_layers_wired_by_hand_to_the_bit(yolov3: YoloNetwork) -> None:
    with torch.no_grad():
        ours, byhand = yolov3(images()), yolov3_by_hand(yolov3, images())
    assert [tuple(item.shape) for item in ours] == [(2, 3, 8, 8, 12), (2, 3, 4, 4, 12), (2, 3, 2, 2, 12)]
    assert all(torch.equal(a, b) for a, b in zip(ours, byhand, strict=True))


def test_yolov3_trains_and_detects(yolov3: YoloNetwork) -> None:
    targets = Targets(
        [torch.tensor([[8.0, 8.0, 30.0, 40.0]]), torch.zeros(0, 4)], [torch.tensor([2]), torch.zeros(0).long()]
    )
    terms = yolov3.loss(yolov3(images()), targets)
    torch.stack(list(terms.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in yolov3.parameters())
    yolov3.zero_grad(set_to_none=True)
    with torch.inference_mode():
        found = yolov3.predict(yolov3(images()), score_threshold=1e-6, nms_iou=0.5, max_detections=5)
    assert len(found) == 2
    assert all(len(item.boxes) and float(item.boxes.max()) <= 64 for item in found)


def test_initial_weights_depend_only_on_the_seed() -> None:
    before = torch.random.get_rng_state()
    first, second = tiny().state_dict(), tiny().state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


# Fields of the specification


def test_published_anchors_are_pixels_of_416() -> None:
    pixels = [(round(w * 416, 9), round(h * 416, 9)) for w, h in spec.YoloV3Spec().anchors]
    assert pixels == [(10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326)]


@pytest.mark.parametrize("fine", [(0, 1, 2), (1, 2, 3)])
def test_both_copies_of_the_tiny_cfg_are_supported(fine: tuple[int, ...]) -> None:
    net = tiny(anchors=spec.YOLOV3_TINY_ANCHORS, masks=(fine, (3, 4, 5)))
    assert [anchor[0] * 416 for anchor in net.scales[0].anchors] == pytest.approx(
        [(10, 23, 37, 81)[index] for index in fine]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "yolov3-tiny", "masks": [[0, 1, 6], [3, 4, 5]]}, "6 anchors, 0 to 5, found [0, 1, 6]"),
        ({"kind": "yolov3-tiny", "masks": [[0, 1, 2], [3, 4, -1]]}, "0 to 5, found [3, 4, -1]"),
        ({"kind": "yolov3-tiny", "masks": [[1, 1, 2], [3, 4, 5]]}, "different indices of the 6 anchors"),
        ({"kind": "yolov3-tiny", "masks": [[0, 1, 2], []]}, "found []"),
        ({"kind": "yolov3-tiny", "masks": [[0], [1], [2]]}, "expected 2, one a scale (strides 16, 32), found 3"),
        ({"kind": "yolov3", "masks": [[0, 1, 2], [3, 4, 5]]}, "expected 3, one a scale (strides 8, 16, 32), found 2"),
        ({"kind": "yolov3", "width": 400}, "width: expected a multiple of 32, found 400"),
        ({"kind": "yolov3", "anchors": [[0.1, 0.0]]}, "detector.anchors.0.1"),
        ({"kind": "yolov3", "weights": {"kind": "darknet", "name": "../up"}}, "detector.weights.name"),
        ({"kind": "yolov9"}, "'yolov3-tiny', 'yolov3'"),
        (
            {"width": 320},
            "detector.kind: expected one of: 'yolov3-tiny', 'yolov3', 'fcos-lite0', 'faster-rcnn-vgg16', ",
        ),
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"detector": fields}, source="my.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("my.yaml: detector")


def test_an_anchor_of_two_masks_answers_in_both() -> None:
    net = tiny(width=416, height=416, anchors=spec.YOLOV3_TINY_ANCHORS, masks=((1, 2, 3), (3, 4, 5)))
    # Shapes of anchors 3, 5 and 0. No mask has anchor 0; anchor 1 is the nearest.
    sizes = [(81.0, 82.0), (344.0, 319.0), (10.0, 14.0)]
    boxes = torch.tensor([[200 - w / 2, 200 - h / 2, 200 + w / 2, 200 + h / 2] for w, h in sizes])
    fine, coarse = assign_best_prior(Targets([boxes], [torch.tensor([0, 1, 2])]), net.scales, [(26, 26), (13, 13)])
    assert (fine.labels.tolist(), fine.anchor.tolist()) == ([0, 2], [2, 0])
    assert (coarse.labels.tolist(), coarse.anchor.tolist()) == ([0, 1], [0, 2])
    assert (fine.column.tolist(), coarse.column.tolist()) == ([12, 12], [6, 6])


# Inputs of several sizes


def test_anchors_scale_with_the_input() -> None:
    net = tiny(width=416, height=416)
    for rows, columns in ((10, 10), (19, 13)):
        boxes, _ = decode(torch.zeros(1, 3, rows, columns, 12), net.scales[1])
        widths, heights = (boxes[0, :, 2:] - boxes[0, :, :2]).view(3, -1, 2)[:, 0].T
        assert widths.tolist() == pytest.approx([spec.STREET_ANCHORS[i][0] * 32 * columns for i in (3, 4, 5)])
        assert heights.tolist() == pytest.approx([spec.STREET_ANCHORS[i][1] * 32 * rows for i in (3, 4, 5)])


def test_sizes_are_drawn_every_ten_steps() -> None:
    drawn = [input_size(416, 416, (320, 608), seed=5, step=step) for step in range(2000)]
    assert set(drawn) == {(side, side) for side in range(320, 609, 32)}
    changes = [step for step, (a, b) in enumerate(pairwise(drawn), 1) if a != b]
    assert all(step % STEPS_A_SIZE == 0 for step in changes)
    assert len(changes) > 150
    assert drawn == [input_size(416, 416, (320, 608), seed=5, step=step) for step in range(2000)]
    assert drawn != [input_size(416, 416, (320, 608), seed=6, step=step) for step in range(2000)]
    wide = {input_size(256, 192, (128, 384), seed=5, step=step) for step in range(0, 2000, 10)}
    assert {(128, 96), (256, 192), (384, 288)} <= wide
    assert all(width % 32 == height % 32 == 0 and abs(height / width - 0.75) < 0.1 for width, height in wide)


def test_resize_scales_the_boxes() -> None:
    pixels = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
    pixels[:, :, 16:32, 32:96] = 200
    targets = Targets([torch.tensor([[32.0, 16.0, 96.0, 32.0]])], [torch.tensor([3])])
    for width, height in ((256, 192), (64, 32)):
        resized, moved = resize(pixels, targets, (width, height))
        assert resized.shape == (1, 3, height, width)
        assert resized.dtype == torch.uint8
        xmin, ymin, xmax, ymax = moved.boxes[0][0].tolist()
        assert (xmin, ymin, xmax, ymax) == (width / 4, height / 4, width * 3 / 4, height / 2)
        inside = resized[0, 0, int(ymin) + 3 : int(ymax) - 3, int(xmin) + 3 : int(xmax) - 3]
        assert int(inside.min()) == 200
        assert int(resized[0, 0, : int(ymin) - 3].max()) == 0
    assert resize(pixels, targets, (128, 64)) == (pixels, targets)


@pytest.mark.parametrize("value", [[320, 330], [608, 320], [32, 320], [320, 4096]])
def test_wrong_ranges_are_refused(value: list[int]) -> None:
    with pytest.raises(SpecError, match=rf"multi_scale: expected two multiples of 32 .* found {value[0]}, {value[1]}"):
        parse_spec({"training": {"multi_scale": value}}, source="my.yaml")


SMALL = numbered(
    *(layer for filters in (2, 4, 4, 8) for layer in (Conv(filters), MaxPool())),
    Output(0), Detect(0), Route((-3,)), Conv(8, stride=2), Output(1), Detect(1),
)  # fmt: skip


def test_training_uses_the_drawn_sizes_and_is_repeatable() -> None:
    batch = Batch(images(), [torch.tensor([[8.0, 8.0, 40.0, 40.0]])] * 2, [torch.tensor([1])] * 2, [0, 1])
    training = TrainingSpec(multi_scale=(64, 128), augmentation=Augmentation(flip=0), batch_size=2)
    runs = []
    for _ in range(2):
        seen: list[torch.Size] = []
        with torch.random.fork_rng():
            torch.manual_seed(1)
            net = YoloNetwork(spec.YoloV3TinySpec(width=64, height=64), 7, SMALL)
        net.register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0].shape[2:]))
        result = train(net, [batch] * 21, training, lr=1e-3, warmup_steps=0, seed=11, client="1")
        runs.append((seen, result.loss))
    expected = [input_size(64, 64, (64, 128), seed=11, step=step) for step in range(21)]
    assert [(columns, rows) for rows, columns in runs[0][0]] == expected
    assert len(set(expected)) > 1
    assert runs[0] == runs[1]
