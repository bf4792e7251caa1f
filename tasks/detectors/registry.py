"""Build a detector from its specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tasks.detectors.base import Detector
from tasks.detectors.faster_rcnn import FasterRcnn
from tasks.detectors.fcos import FcosLite0
from tasks.detectors.yolo_network import YoloV3, YoloV3Tiny
from tasks.spec.detector import DetectorSpec

DETECTORS: dict[str, Callable[[Any, int], Detector]] = {
    "yolov3": YoloV3,
    "yolov3-tiny": YoloV3Tiny,
    "fcos-lite0": FcosLite0,
    "faster-rcnn-vgg16": FasterRcnn,
    "faster-rcnn-resnet50-fpn": FasterRcnn,
    "faster-rcnn-mobilenetv3-320-fpn": FasterRcnn,
}


def build_detector(spec: DetectorSpec, num_classes: int, *, seed: int) -> Detector:
    """Build a detector with weights drawn from ``seed`` alone. torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset every GPU's generator too
        detector = DETECTORS[spec.kind](spec, num_classes)
    # Convolutions on CPU and on tensor cores run faster with channels innermost.
    return detector.to(memory_format=torch.channels_last)
