"""A small specification of every detector, for tests that run over all of them."""

from __future__ import annotations

from tasks.spec.detector import DetectorSpec, FcosLite0Spec, RandomWeights, YoloV3Spec, YoloV3TinySpec
from tasks.spec.faster_rcnn import FasterRcnnMobileNetV3Spec, FasterRcnnResNet50Spec, FasterRcnnVgg16Spec

SIDE = 64
_INPUT = {"width": SIDE, "height": SIDE}
_PROPOSALS = {"train_proposals": 40, "test_proposals": 20, "sampled_proposals": 16}

# Each detector by its kind, and those that a choice makes another network.
TINY: dict[str, DetectorSpec] = {
    "yolov3": YoloV3Spec(**_INPUT),
    "yolov3-tiny": YoloV3TinySpec(**_INPUT, assignment="side-ratio", box_loss="ciou"),
    "fcos-lite0": FcosLite0Spec(**_INPUT, weights=RandomWeights(), frozen_blocks=0),
    "faster-rcnn-vgg16": FasterRcnnVgg16Spec(**_INPUT, **_PROPOSALS, fc_width=32),
    "faster-rcnn-resnet50-fpn": FasterRcnnResNet50Spec(**_INPUT, **_PROPOSALS),
    "faster-rcnn-mobilenetv3-320-fpn": FasterRcnnMobileNetV3Spec(**_INPUT, **_PROPOSALS),
    "faster-rcnn-mobilenetv3-320-fpn, batch-norm": FasterRcnnMobileNetV3Spec(**_INPUT, **_PROPOSALS, norm="batch-norm"),
}
