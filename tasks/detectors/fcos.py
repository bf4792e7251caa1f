"""An anchor-free detector for laptops: FCOS (arXiv 1904.01355) over EfficientNet-Lite0, with separable convolutions.

Every point of three maps (strides 8, 16, 32) predicts a score for each class and the distances to the four sides of a
box. The score is trained to be the box's overlap with its object (varifocal loss, arXiv 2008.13367), so that no
centerness is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.efficientnet_lite import OUTPUT_CHANNELS, EfficientNetLite0
from tasks.detectors.fcos_loss import Points, fcos_loss
from tasks.detectors.suppression import suppress
from tasks.spec.detector import FcosLite0Spec

STRIDES = (8, 16, 32)
CHANNELS = 96
GROUPS = 8
TOWER = 2  # blocks before the output of each branch
# About this part of the points is on an object. The bias starts at it (arXiv 1708.02002, section 4.1).
OBJECT_PRIOR = 0.01
# Distances are exp(t) strides; cut at e^5 = 148 strides.
MAX_LOG_DISTANCE = 5.0
# The untrained network predicts two strides to each side.
FIRST_LOG_DISTANCE = math.log(2.0)


@dataclass(frozen=True)
class FcosOutputs:
    """The outputs of a batch at its N points: logits float32 [B, N, C], boxes float32 [B, N, 4] in input pixels."""

    logits: Tensor
    boxes: Tensor
    points: Points
    width: int
    height: int


class Separable(nn.Sequential):
    """A separable convolution: depthwise 3 x 3, pointwise 1 x 1, GroupNorm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.GroupNorm(GROUPS, channels),
            nn.ReLU(inplace=True),
        )


class FcosLite0(Detector):
    """Backbone, a top-down pyramid (arXiv 1612.03144) of 96 channels, and one head for all three maps.

    State: 3.5 M parameters (14.1 MB) with 7 classes.
    """

    masks_unlabelled = True
    needs_unlabelled_regions = False

    def __init__(self, spec: FcosLite0Spec, num_classes: int) -> None:
        super().__init__()
        self.width, self.height, self.num_classes = spec.width, spec.height, num_classes
        self.backbone_lr = spec.backbone_lr
        self.backbone = EfficientNetLite0()
        self.backbone.freeze(spec.frozen_blocks)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, CHANNELS, 1) for channels in OUTPUT_CHANNELS)
        self.smooth = nn.ModuleList(Separable(CHANNELS) for _ in STRIDES)
        self.class_tower = nn.Sequential(*(Separable(CHANNELS) for _ in range(TOWER)))
        self.box_tower = nn.Sequential(*(Separable(CHANNELS) for _ in range(TOWER)))
        self.class_output = nn.Conv2d(CHANNELS, num_classes, 3, padding=1)
        self.box_output = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(STRIDES)))
        for output, bias in (
            (self.class_output, -math.log((1 - OBJECT_PRIOR) / OBJECT_PRIOR)),
            (self.box_output, FIRST_LOG_DISTANCE),
        ):
            nn.init.normal_(output.weight, std=0.01)
            nn.init.constant_(output.bias, bias)  # type: ignore[arg-type]

    def learning_rate_factors(self) -> dict[float, list[nn.Parameter]]:
        backbone = list(self.backbone.parameters())
        known = {id(parameter) for parameter in backbone}
        rest = [parameter for parameter in self.parameters() if id(parameter) not in known]
        return {self.backbone_lr: backbone, 1.0: rest} if self.backbone_lr != 1 else {1.0: backbone + rest}

    def head_names(self) -> frozenset[str]:
        """Return the tensors of the last convolutions: for the classes, and for the boxes. There is no centerness."""
        return frozenset(name for name in self.state_dict() if name.startswith(("class_output.", "box_output.")))

    def forward(self, images: Tensor) -> FcosOutputs:
        """Return the outputs for ``images``, whose size may differ from the detector's, in multiples of 32."""
        maps = self._pyramid(self.backbone(images))
        points = Points.of([(x.shape[2], x.shape[3]) for x in maps], STRIDES, maps[0].device)
        logits, distances = [], []
        for x, stride, scale in zip(maps, STRIDES, self.scales, strict=True):
            logits.append(_flat(self.class_output(self.class_tower(x))))
            raw = _flat(self.box_output(self.box_tower(x))) * scale
            distances.append(raw.clamp(max=MAX_LOG_DISTANCE).exp() * stride)
        distance = torch.cat(distances, dim=1)
        boxes = torch.cat([points.centres - distance[..., :2], points.centres + distance[..., 2:]], dim=-1)
        height, width = images.shape[2:]
        return FcosOutputs(torch.cat(logits, dim=1), boxes, points, width, height)

    def _pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        out: list[Tensor] = []
        above: Tensor | None = None
        for x, lateral, smooth in zip(reversed(maps), reversed(self.laterals), reversed(self.smooth), strict=True):
            x = lateral(x)
            if above is not None:
                x = x + functional.interpolate(above, size=x.shape[2:], mode="nearest")
            above = x
            out.append(smooth(x))
        return out[::-1]

    def loss(self, outputs: FcosOutputs, targets: Targets) -> dict[str, Tensor]:
        return fcos_loss(outputs.logits, outputs.boxes, outputs.points, targets)

    def decode(self, outputs: FcosOutputs) -> list[tuple[Tensor, Tensor]]:
        limits = outputs.boxes.new_tensor([outputs.width, outputs.height] * 2)
        boxes = torch.minimum(outputs.boxes.clamp(min=0), limits)
        return list(zip(boxes, outputs.logits.sigmoid(), strict=True))

    def predict(
        self, outputs: FcosOutputs, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[Detections]:
        return [
            suppress(box, score, score_threshold=score_threshold, nms_iou=nms_iou, max_detections=max_detections)
            for box, score in self.decode(outputs)
        ]


def _flat(x: Tensor) -> Tensor:
    """Return [B, C, H, W] as float32 [B, H · W, C]."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).float()
