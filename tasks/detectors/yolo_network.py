"""YOLOv3 and YOLOv3-tiny (Redmon & Farhadi, arXiv 1804.02767), layer by layer as in Darknet's cfg files.

Each network is a table of its cfg's layers. Modules are named by the cfg's layer numbers, so that a state dict can be
compared with a Darknet file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.suppression import suppress
from tasks.detectors.yolo_boxes import YoloScale, decode
from tasks.detectors.yolo_loss import yolo_loss
from tasks.spec.detector import YoloSpec

# About this part of the cells holds an object. Biases start at it, so that training need not learn first that most
# cells are empty.
OBJECT_PRIOR = 0.01


@dataclass(frozen=True)
class Conv:
    """``[convolutional] batch_normalize=1, pad=1, activation=leaky``."""

    filters: int
    size: int = 3
    stride: int = 1


@dataclass(frozen=True)
class MaxPool:
    """``[maxpool] size=2``."""

    stride: int = 2


@dataclass(frozen=True)
class Shortcut:
    """``[shortcut] activation=linear``: the last layer's output plus that of layer ``source``."""

    source: int


@dataclass(frozen=True)
class Upsample:
    """``[upsample] stride=2``: nearest neighbour."""


@dataclass(frozen=True)
class Route:
    """``[route]``: the outputs of ``sources``, concatenated along the channels."""

    sources: tuple[int, ...]


@dataclass(frozen=True)
class Output:
    """``[convolutional] size=1, activation=linear``: the raw map of a scale; scales count from the finest."""

    scale: int


@dataclass(frozen=True)
class Detect:
    """``[yolo]``: the map of a scale, split by anchors."""

    scale: int


Layer = Conv | MaxPool | Shortcut | Upsample | Route | Output | Detect


def numbered(*layers: Layer) -> tuple[Layer, ...]:
    """Return the layers with relative sources (negative, as in a cfg) replaced by layer numbers."""

    def absolute(source: int, number: int) -> int:
        return source if source >= 0 else number + source

    table: list[Layer] = []
    for number, layer in enumerate(layers):
        if isinstance(layer, Shortcut):
            layer = Shortcut(absolute(layer.source, number))
        elif isinstance(layer, Route):
            layer = Route(tuple(absolute(source, number) for source in layer.sources))
        table.append(layer)
    return tuple(table)


def _residual(filters: int, times: int) -> Iterator[Layer]:
    """Yield a stage of Darknet-53: a convolution that halves the map, then ``times`` residual blocks."""
    yield Conv(filters, stride=2)
    for _ in range(times):
        yield from (Conv(filters // 2, 1), Conv(filters), Shortcut(-3))


def _head(filters: int, scale: int) -> Iterator[Layer]:
    """Yield the layers of YOLOv3 for one scale. The next scale starts from the fourth layer from the end."""
    for _ in range(3):
        yield from (Conv(filters, 1), Conv(2 * filters))
    yield from (Output(scale), Detect(scale))


# fmt: off
YOLOV3_TINY_LAYERS = numbered(
    Conv(16), MaxPool(), Conv(32), MaxPool(), Conv(64), MaxPool(), Conv(128), MaxPool(),
    Conv(256), MaxPool(), Conv(512), MaxPool(stride=1), Conv(1024),
    Conv(256, 1), Conv(512), Output(1), Detect(1),
    Route((-4,)), Conv(128, 1), Upsample(), Route((-1, 8)), Conv(256), Output(0), Detect(0),
)
YOLOV3_LAYERS = numbered(
    Conv(32), *_residual(64, 1), *_residual(128, 2), *_residual(256, 8), *_residual(512, 8), *_residual(1024, 4),
    *_head(512, 2),
    Route((-4,)), Conv(256, 1), Upsample(), Route((-1, 61)), *_head(256, 1),
    Route((-4,)), Conv(128, 1), Upsample(), Route((-1, 36)), *_head(128, 0),
)
# fmt: on


class ConvBlock(nn.Module):
    """Convolution without bias, BatchNorm, leaky ReLU 0.1."""

    def __init__(self, channels_in: int, layer: Conv, momentum: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, layer.filters, layer.size, stride=layer.stride, padding=layer.size // 2, bias=False
        )
        # PyTorch's epsilon, 1e-5 under the root, is also that of Darknet on a GPU.
        self.norm = nn.BatchNorm2d(layer.filters, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), 0.1, inplace=True)


def _output(channels_in: int, anchors: int, num_classes: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels_in, anchors * (5 + num_classes), 1)
    bias = conv.bias.detach().view(anchors, -1)  # type: ignore[union-attr]
    bias.zero_()
    bias[:, 4] = -math.log((1 - OBJECT_PRIOR) / OBJECT_PRIOR)
    bias[:, 5:] = -math.log(max(num_classes - 1, 1))
    return conv


class YoloNetwork(Detector):
    """A network of the YOLOv3 family, built and run from a table of layers."""

    masks_unlabelled = True

    def __init__(self, spec: YoloSpec, num_classes: int, table: tuple[Layer, ...]) -> None:
        super().__init__()
        self.width, self.height, self.num_classes = spec.width, spec.height, num_classes
        self.spec, self.table = spec, table
        self.scales = tuple(
            YoloScale(
                stride=stride,
                anchors=tuple(spec.anchors[index] for index in mask),
                # Neighbouring cells are assigned an object too. Its centre is up to half a cell beyond their border.
                reach=2.0 if spec.assignment == "side-ratio" else 1.0,
            )
            for stride, mask in zip(spec.strides, spec.masks, strict=True)
        )
        self.layers = nn.ModuleDict()
        channels: list[int] = []
        for number, layer in enumerate(table):
            before = channels[-1] if channels else 3
            match layer:
                case Conv(filters):
                    self.layers[str(number)] = ConvBlock(before, layer, spec.batch_norm_momentum)
                    before = filters
                case Output(scale):
                    self.layers[str(number)] = _output(before, len(spec.masks[scale]), num_classes)
                case Route(sources):
                    before = sum(channels[source] for source in sources)
            channels.append(before)
        routes = [layer.sources for layer in table if isinstance(layer, Route)]
        shortcuts = [layer.source for layer in table if isinstance(layer, Shortcut)]
        # Layers whose output is read again later. The outputs of the others are freed at once.
        self._read_again = frozenset(shortcuts).union(*routes)

    def head_names(self) -> frozenset[str]:
        """Return the tensors of each scale's last convolution, which gives its classes, boxes and objectness."""
        outputs = tuple(f"layers.{number}." for number, layer in enumerate(self.table) if isinstance(layer, Output))
        return frozenset(name for name in self.state_dict() if name.startswith(outputs))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one raw map a scale, finest first, float32 [B, anchors, H / stride, W / stride, 5 + classes].

        The size of ``images`` may differ from the detector's, in multiples of 32. Anchors scale with it.
        """
        x = (images.float() / 255).contiguous(memory_format=torch.channels_last)
        kept: dict[int, Tensor] = {}
        maps: dict[int, Tensor] = {}
        for number, layer in enumerate(self.table):
            match layer:
                case Conv() | Output():
                    x = self.layers[str(number)](x)
                case MaxPool(stride=1):
                    # Darknet pads a stride-1 pool on the right and at the bottom only.
                    x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1)
                case MaxPool():
                    x = functional.max_pool2d(x, 2, 2)
                case Shortcut(source):
                    x = x + kept[source]
                case Upsample():
                    x = functional.interpolate(x, scale_factor=2, mode="nearest")
                case Route(sources):
                    x = torch.cat([kept[source] for source in sources], dim=1) if len(sources) > 1 else kept[sources[0]]
                case Detect(scale):
                    maps[scale] = self._split(x, self.scales[scale])
            if number in self._read_again:
                kept[number] = x
        return [maps[scale] for scale in sorted(maps)]

    def _split(self, raw: Tensor, scale: YoloScale) -> Tensor:
        batch, _, rows, columns = raw.shape
        split = raw.contiguous().view(batch, len(scale.anchors), 5 + self.num_classes, rows, columns)
        return split.permute(0, 1, 3, 4, 2).float()

    def loss(self, outputs: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        return yolo_loss(outputs, targets, self.scales, self.spec)

    def decode(self, outputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        decoded = [decode(output, scale) for output, scale in zip(outputs, self.scales, strict=True)]
        boxes = torch.cat([item[0] for item in decoded], dim=1)
        scores = torch.cat([item[1] for item in decoded], dim=1)
        limits = boxes.new_tensor(self.scales[0].input_size(outputs[0].shape[2:4]) * 2)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        return list(zip(boxes, scores, strict=True))

    def predict(
        self, outputs: list[Tensor], *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[Detections]:
        return [
            suppress(box, score, score_threshold=score_threshold, nms_iou=nms_iou, max_detections=max_detections)
            for box, score in self.decode(outputs)
        ]


class YoloV3Tiny(YoloNetwork):
    """Two scales, at strides 16 and 32. State: 8.7 M parameters with 7 classes (34.8 MB)."""

    def __init__(self, spec: YoloSpec, num_classes: int) -> None:
        super().__init__(spec, num_classes, YOLOV3_TINY_LAYERS)


class YoloV3(YoloNetwork):
    """Darknet-53 and three scales, at strides 8, 16 and 32. State: 61.5 M parameters with 7 classes (246 MB)."""

    def __init__(self, spec: YoloSpec, num_classes: int) -> None:
        super().__init__(spec, num_classes, YOLOV3_LAYERS)
