"""YOLOv3-tiny (Redmon & Farhadi, arXiv 1804.02767), layer by layer as in Darknet's ``yolov3-tiny.cfg``.

Modules are named by the cfg's layer numbers, so that a Darknet file and a state dict can be laid side by side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.yolo_boxes import YoloScale, decode, suppress
from tasks.detectors.yolo_loss import yolo_loss
from tasks.spec.detector import YoloV3Tiny as YoloV3TinySpec

# A random cell holds an object about this often; biases start there, so that early training is not spent on silence.
OBJECT_PRIOR = 0.01


class ConvBlock(nn.Module):
    """Convolution without bias, BatchNorm, leaky ReLU 0.1: Darknet's ``[convolutional] batch_normalize=1``."""

    def __init__(self, channels_in: int, channels_out: int, size: int, momentum: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, size, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels_out, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), 0.1, inplace=True)


class YoloV3Tiny(Detector):
    """Two scales, at strides 16 and 32. State: 8.7 M parameters with 7 classes (34.8 MB)."""

    def __init__(self, spec: YoloV3TinySpec, num_classes: int) -> None:
        super().__init__()
        self.width, self.height, self.num_classes = spec.width, spec.height, num_classes
        self.spec = spec
        self.scales = tuple(
            YoloScale(
                stride=stride,
                anchors=tuple((spec.anchors[i][0] * spec.width, spec.anchors[i][1] * spec.height) for i in mask),
                # Neighbouring cells answer for an object too: their centres reach half a cell beyond their borders.
                reach=2.0 if spec.assignment == "side-ratio" else 1.0,
            )
            for stride, mask in zip((16, 32), spec.masks, strict=True)
        )

        def block(channels_in: int, channels_out: int, size: int) -> ConvBlock:
            return ConvBlock(channels_in, channels_out, size, spec.batch_norm_momentum)

        def head(channels_in: int, scale: YoloScale) -> nn.Conv2d:
            conv = nn.Conv2d(channels_in, len(scale.anchors) * (5 + num_classes), 1)
            bias = conv.bias.detach().view(len(scale.anchors), -1)  # type: ignore[union-attr]
            bias.zero_()
            bias[:, 4] = -math.log((1 - OBJECT_PRIOR) / OBJECT_PRIOR)
            bias[:, 5:] = -math.log(max(num_classes - 1, 1))
            return conv

        self.layers = nn.ModuleDict(
            {
                "0": block(3, 16, 3),
                "2": block(16, 32, 3),
                "4": block(32, 64, 3),
                "6": block(64, 128, 3),
                "8": block(128, 256, 3),
                "10": block(256, 512, 3),
                "12": block(512, 1024, 3),
                "13": block(1024, 256, 1),
                "14": block(256, 512, 3),
                "15": head(512, self.scales[1]),
                "18": block(256, 128, 1),
                "21": block(384, 256, 3),
                "22": head(256, self.scales[0]),
            }
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """One raw map a scale, float32 [B, anchors, H / stride, W / stride, 5 + classes]."""
        layers = self.layers
        x = (images.float() / 255).contiguous(memory_format=torch.channels_last)
        for name in ("0", "2", "4", "6"):
            x = functional.max_pool2d(layers[name](x), 2, 2)
        fine = layers["8"](x)
        x = layers["10"](functional.max_pool2d(fine, 2, 2))
        # Darknet pads a stride-1 pool on the right and at the bottom only.
        x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 2, 1)
        neck = layers["13"](layers["12"](x))
        coarse_map = layers["15"](layers["14"](neck))
        up = functional.interpolate(layers["18"](neck), scale_factor=2, mode="nearest")
        fine_map = layers["22"](layers["21"](torch.cat([up, fine], dim=1)))
        return [self._split(fine_map, self.scales[0]), self._split(coarse_map, self.scales[1])]

    def _split(self, raw: Tensor, scale: YoloScale) -> Tensor:
        batch, _, rows, columns = raw.shape
        split = raw.contiguous().view(batch, len(scale.anchors), 5 + self.num_classes, rows, columns)
        return split.permute(0, 1, 3, 4, 2).float()

    def loss(self, outputs: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        return yolo_loss(outputs, targets, self.scales, self.spec)

    def predict(
        self, outputs: list[Tensor], *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[Detections]:
        decoded = [decode(output, scale) for output, scale in zip(outputs, self.scales, strict=True)]
        boxes = torch.cat([item[0] for item in decoded], dim=1)
        scores = torch.cat([item[1] for item in decoded], dim=1)
        limits = boxes.new_tensor([self.width, self.height, self.width, self.height])
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        return [
            suppress(box, score, score_threshold=score_threshold, nms_iou=nms_iou, max_detections=max_detections)
            for box, score in zip(boxes, scores, strict=True)
        ]
