"""The weights of round 0: drawn from the seed, then overwritten by the file that the specification names, if any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.detectors.base import Detector
from tasks.detectors.darknet import DarknetReport, load_darknet
from tasks.detectors.efficientnet_lite import load_pretrained
from tasks.detectors.fcos import FcosLite0
from tasks.detectors.registry import build_detector
from tasks.detectors.weight_file import check_weights, lite0_file, weight_file_name
from tasks.detectors.yolo_network import YoloNetwork
from tasks.spec.detector import DetectorSpec
from tasks.spec.detector_parts import (
    DarknetWeights,
    EfficientNetLite0Weights,
    TorchvisionHubWeights,
    TorchvisionWeights,
)

if TYPE_CHECKING:
    from tasks.detectors.torchvision_file import CheckpointReport


def initial_detector(
    spec: DetectorSpec, num_classes: int, *, seed: int, file_of: Callable[[str], Path]
) -> tuple[Detector, DarknetReport | CheckpointReport | None]:
    """Return the detector of round 0, and the report on its weight file (None without one).

    ``file_of`` maps the file's name to its path on this machine. Nothing is downloaded here.

    Raises:
        DataError: the file is missing, is not the specified one, or does not fit the detector.
    """
    detector = build_detector(spec, num_classes, seed=seed)
    name = weight_file_name(spec)
    path = Path() if name is None else file_of(name)
    match spec.weights, detector:
        case DarknetWeights() as weights, YoloNetwork():
            check_weights(weights, path)
            return detector, load_darknet(detector, path)
        case (TorchvisionWeights() | TorchvisionHubWeights()) as weights, _:
            from tasks.detectors.faster_rcnn import FasterRcnn
            from tasks.detectors.torchvision_file import load_checkpoint

            assert isinstance(detector, FasterRcnn), "the specification allows these weights for Faster R-CNN alone"
            check_weights(weights, path)
            return detector, load_checkpoint(detector, path)
        case EfficientNetLite0Weights(), FcosLite0():
            load_pretrained(detector.backbone, lite0_file())
    return detector, None
