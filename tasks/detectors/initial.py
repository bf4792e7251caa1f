"""The weights of round 0: drawn from the seed, then a named file over them if the specification says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasks.detectors.base import Detector
from tasks.detectors.darknet import DarknetReport, load_darknet
from tasks.detectors.efficientnet_lite import load_pretrained
from tasks.detectors.fcos import FcosLite0
from tasks.detectors.registry import build_detector
from tasks.detectors.weight_file import check_weights, lite0_file
from tasks.detectors.yolo_network import YoloNetwork
from tasks.spec.detector import DarknetWeights, DetectorSpec, EfficientNetLite0Weights


def initial_detector(
    spec: DetectorSpec, num_classes: int, *, seed: int, file_of: Callable[[str], Path]
) -> tuple[Detector, DarknetReport | None]:
    """The detector of round 0, and what a Darknet file gave it (None without one).

    ``file_of`` maps the file's name to its path on this machine.

    Raises:
        DataError: the file is missing, is not the one that was specified, or does not fit the detector.
    """
    detector = build_detector(spec, num_classes, seed=seed)
    match spec.weights, detector:
        case DarknetWeights() as weights, YoloNetwork():
            path = file_of(weights.name)
            check_weights(weights, path)
            return detector, load_darknet(detector, path)
        case EfficientNetLite0Weights(), FcosLite0():
            load_pretrained(detector.backbone, lite0_file())
    return detector, None
