"""The parts of the three Faster R-CNNs: backbone, anchors, pooling and box head, all from torchvision."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_pool

from tasks.spec.faster_rcnn import (
    FasterRcnnMobileNetV3Spec,
    FasterRcnnPyramidSpec,
    FasterRcnnResNet50Spec,
    FasterRcnnSpec,
    FasterRcnnVgg16Spec,
)

POOLED = 7
RATIOS = (0.5, 1.0, 2.0)
VGG16_STRIDE = 16
VGG16_CHANNELS = 512
# How many of an image's best anchors enter non-maximum suppression, in training and in evaluation. With a pyramid it
# is the number of proposals for each map.
VGG16_CANDIDATES = (12_000, 6_000)
PYRAMID_FC_WIDTH = 1024


@dataclass(frozen=True)
class Parts:
    """The parts of one detector. ``backbone`` returns maps by name, or one map; RoIHeads takes ``pool`` and ``head``.

    candidates: number of anchors of a map that enter non-maximum suppression, in training and in evaluation.
    fc_width: number of outputs of the box head.
    """

    backbone: nn.Module
    channels: int
    anchors: AnchorGenerator
    pool: nn.Module
    head: nn.Module
    fc_width: int
    candidates: tuple[int, int]


class SingleMapRoIPool(nn.Module):
    """RoIPool (arXiv 1504.08083, section 2.1) over a single map, with the interface of MultiScaleRoIAlign."""

    output_size = (POOLED, POOLED)

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """Return [n, channels, 7, 7] for ``boxes``, one float32 [n_i, 4] an image in pixels of the input."""
        pooled: Tensor = roi_pool(maps["0"], boxes, self.output_size, spatial_scale=1 / VGG16_STRIDE)
        return pooled


def parts_of(spec: FasterRcnnSpec) -> Parts:
    """Build the parts, with weights drawn from torch's global generator."""
    match spec:
        case FasterRcnnVgg16Spec():
            return _vgg16(spec)
        case FasterRcnnResNet50Spec():
            backbone = resnet_fpn_backbone(
                backbone_name="resnet50",
                weights=None,
                norm_layer=_norm(spec),
                trainable_layers=spec.stages - spec.frozen,
            )
            # arXiv 1612.03144, section 4.1: one anchor size a map.
            return _pyramid(spec, backbone, ((32,), (64,), (128,), (256,), (512,)))
        case FasterRcnnMobileNetV3Spec():
            backbone = mobilenet_backbone(
                backbone_name="mobilenet_v3_large",
                weights=None,
                fpn=True,
                norm_layer=_norm(spec),
                trainable_layers=spec.stages - spec.frozen,
            )
            return _pyramid(spec, backbone, ((32, 64, 128, 256, 512),) * 3)


def _vgg16(spec: FasterRcnnVgg16Spec) -> Parts:
    """Build ``vgg16().features[:-1]``, without drawing its classifier, and fc6 and fc7 (arXiv 1506.01497, 3.1)."""
    backbone = make_layers(cfgs["D"])[:-1]
    convolutions = [layer for layer in backbone if isinstance(layer, nn.Conv2d)]
    for number, layer in enumerate(convolutions):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        layer.requires_grad_(number >= spec.frozen)
    pool: nn.Module = SingleMapRoIPool()
    if spec.roi_pool == "roi-align":
        pool = MultiScaleRoIAlign(["0"], output_size=POOLED, sampling_ratio=2)
    return Parts(
        backbone,
        VGG16_CHANNELS,
        AnchorGenerator(((128, 256, 512),), (RATIOS,)),
        pool,
        TwoMLPHead(VGG16_CHANNELS * POOLED**2, spec.fc_width),
        spec.fc_width,
        VGG16_CANDIDATES,
    )


def _pyramid(spec: FasterRcnnPyramidSpec, backbone: nn.Module, sizes: tuple[tuple[int, ...], ...]) -> Parts:
    channels = int(backbone.out_channels)  # type: ignore[arg-type]
    return Parts(
        backbone,
        channels,
        AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=POOLED, sampling_ratio=2),
        TwoMLPHead(channels * POOLED**2, PYRAMID_FC_WIDTH),
        PYRAMID_FC_WIDTH,
        (spec.train_proposals, spec.test_proposals),
    )


def _norm(spec: FasterRcnnPyramidSpec) -> type[nn.Module]:
    """Return the class of the normalisation that the specification names. It is called with the channels."""
    return {"batch-norm": nn.BatchNorm2d, "frozen-batch-norm": FrozenBatchNorm2d, "group-norm": GroupNorm}[spec.norm]


class GroupNorm(nn.GroupNorm):
    """GroupNorm of 32 groups (arXiv 1803.08494, 4.1), or of the largest smaller power of two that divides channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)


def maps_of(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the backbone's maps by name, finest first."""
    maps: Tensor | dict[str, Tensor] = backbone(images)
    return OrderedDict([("0", maps)]) if isinstance(maps, torch.Tensor) else maps
