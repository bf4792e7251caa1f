"""What the three Faster R-CNNs are assembled from: backbone, anchors, pooling and box head, all torchvision's."""

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
# Best anchors of an image that enter non-maximum suppression, in training and in evaluation, where there is one map;
# with a pyramid, as many of each map as there are proposals.
VGG16_CANDIDATES = (12_000, 6_000)
RESNET_STAGES, MOBILENET_STAGES = 5, 6
PYRAMID_FC_WIDTH = 1024


@dataclass(frozen=True)
class Parts:
    """``backbone`` gives maps by name, or one map; ``pool`` and ``head`` are as RoIHeads takes them.

    candidates: anchors of a map that enter non-maximum suppression, in training and in evaluation.
    fc_width: outputs of the box head.
    """

    backbone: nn.Module
    channels: int
    anchors: AnchorGenerator
    pool: nn.Module
    head: nn.Module
    fc_width: int
    candidates: tuple[int, int]


class SingleMapRoIPool(nn.Module):
    """RoIPool (arXiv 1504.08083, section 2.1) of the one map that there is, called as MultiScaleRoIAlign is."""

    output_size = (POOLED, POOLED)

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """[n, channels, 7, 7] from ``boxes``, one float32 [n_i, 4] an image in pixels of the input."""
        pooled: Tensor = roi_pool(maps["0"], boxes, self.output_size, spatial_scale=1 / VGG16_STRIDE)
        return pooled


def parts_of(spec: FasterRcnnSpec) -> Parts:
    """Fresh parts, their weights drawn from torch's global generator."""
    match spec:
        case FasterRcnnVgg16Spec():
            return _vgg16(spec)
        case FasterRcnnResNet50Spec():
            backbone = resnet_fpn_backbone(
                backbone_name="resnet50",
                weights=None,
                norm_layer=_norm(spec),
                trainable_layers=RESNET_STAGES - spec.frozen,
            )
            # arXiv 1612.03144, section 4.1: one size a map.
            return _pyramid(spec, backbone, ((32,), (64,), (128,), (256,), (512,)))
        case FasterRcnnMobileNetV3Spec():
            backbone = mobilenet_backbone(
                backbone_name="mobilenet_v3_large",
                weights=None,
                fpn=True,
                norm_layer=_norm(spec),
                trainable_layers=MOBILENET_STAGES - spec.frozen,
            )
            return _pyramid(spec, backbone, ((32, 64, 128, 256, 512),) * 3)


def _vgg16(spec: FasterRcnnVgg16Spec) -> Parts:
    """``vgg16().features[:-1]`` (without drawing its classifier), fc6 and fc7; arXiv 1506.01497, section 3.1."""
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
    """A normalisation by the name that the specification gives it: a class, called with the channels."""
    return {"batch-norm": nn.BatchNorm2d, "frozen-batch-norm": FrozenBatchNorm2d, "group-norm": GroupNorm}[spec.norm]


class GroupNorm(nn.GroupNorm):
    """32 groups (arXiv 1803.08494, section 4.1), or as many powers of two as divide the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)


def maps_of(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The backbone's maps by name, finest first."""
    maps: Tensor | dict[str, Tensor] = backbone(images)
    return OrderedDict([("0", maps)]) if isinstance(maps, torch.Tensor) else maps
