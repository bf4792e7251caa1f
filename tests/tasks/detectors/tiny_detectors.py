"""A small specification of every detector, for tests that run over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.detectors.faster_rcnn import FasterRcnn
from tasks.detectors.registry import build_detector
from tasks.spec.detector import DetectorSpec, FcosLite0Spec, RandomWeights, YoloV3Spec, YoloV3TinySpec
from tasks.spec.faster_rcnn import FasterRcnnMobileNetV3Spec, FasterRcnnResNet50Spec, FasterRcnnVgg16Spec

VGG, RESNET, MOBILE = "faster-rcnn-vgg16", "faster-rcnn-resnet50-fpn", "faster-rcnn-mobilenetv3-320-fpn"
SIDE = 64
_INPUT = {"width": SIDE, "height": SIDE}
_PROPOSALS = {"train_proposals": 40, "test_proposals": 20, "sampled_proposals": 16}

# Each detector by its kind, and variants whose choices make another network.
TINY: dict[str, DetectorSpec] = {
    "yolov3": YoloV3Spec(**_INPUT),
    "yolov3-tiny": YoloV3TinySpec(**_INPUT, assignment="side-ratio", box_loss="ciou"),
    "fcos-lite0": FcosLite0Spec(**_INPUT, weights=RandomWeights(), frozen_blocks=0),
    "faster-rcnn-vgg16": FasterRcnnVgg16Spec(**_INPUT, **_PROPOSALS, fc_width=32),
    "faster-rcnn-resnet50-fpn": FasterRcnnResNet50Spec(**_INPUT, **_PROPOSALS),
    "faster-rcnn-mobilenetv3-320-fpn": FasterRcnnMobileNetV3Spec(**_INPUT, **_PROPOSALS),
    "faster-rcnn-mobilenetv3-320-fpn, batch-norm": FasterRcnnMobileNetV3Spec(**_INPUT, **_PROPOSALS, norm="batch-norm"),
}


def tiny(kind: str, **fields: Any) -> Any:
    """Return the kind's small specification with other values. With weights of a file it gets the norm they need."""
    if "weights" in fields and kind != VGG:
        fields = {"norm": "frozen-batch-norm", **fields}
    spec = TINY[kind]
    return type(spec).model_validate({**spec.model_dump(), **fields})


def built(spec: Any, classes: int = 3, seed: int = 1) -> FasterRcnn:
    """Return a Faster R-CNN with weights of ``seed``."""
    detector = build_detector(spec, classes, seed=seed)
    assert isinstance(detector, FasterRcnn)
    return detector


def noise(count: int, rows: int = SIDE, columns: int = SIDE, *, seed: int = 0, below: int = 256) -> Tensor:
    """Return uint8 images [count, 3, rows, columns] of values below ``below``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, below, (count, 3, rows, columns), generator=generator).to(torch.uint8)
