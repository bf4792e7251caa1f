"""Build a detector from its specification."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import torch

from tasks.detectors.base import Detector
from tasks.errors import SpecError
from tasks.spec import extensions
from tasks.spec.detector import DetectorSpec

if TYPE_CHECKING:  # a served model has no YAML, which the specification's reader imports
    from tasks.spec.federation import FederationSpec

# The class for each kind, imported when a detector of that kind is built. Importing torchvision takes seconds, which a
# coordinator that only draws a YOLO network's weights need not wait. So where torchvision serves a turn alone (losses,
# suppression, augmentation), the function that calls it imports it.
DETECTORS: dict[str, str] = {
    "yolov3": "tasks.detectors.yolo_network:YoloV3",
    "yolov3-tiny": "tasks.detectors.yolo_network:YoloV3Tiny",
    "fcos-lite0": "tasks.detectors.fcos:FcosLite0",
    "faster-rcnn-vgg16": "tasks.detectors.faster_rcnn:FasterRcnn",
    "faster-rcnn-resnet50-fpn": "tasks.detectors.faster_rcnn:FasterRcnn",
    "faster-rcnn-mobilenetv3-320-fpn": "tasks.detectors.faster_rcnn:FasterRcnn",
}


def detector_class(spec: DetectorSpec) -> type[Any]:
    """Return the class of the detector that ``spec`` describes; that of another package is named by ``spec`` itself.

    Raises:
        SpecError: another package's class cannot be imported, or is no detector.
    """
    path = getattr(spec, "implementation", "")
    if path:
        return extensions.implementation(path, Detector, field=f"detector.kind {spec.kind}")
    kind: type[Any] = resolve_name(DETECTORS[spec.kind])
    return kind


def require_masks(spec: FederationSpec, kind: type[Detector]) -> None:
    """Check that a detector of ``kind`` can learn from images in which some classes are unlabelled, if there are any.

    Raises:
        SpecError: it cannot, and the specification has a label space.
    """
    if spec.data.label_space is not None and not kind.masks_unlabelled:
        raise SpecError(
            f"data.label_space: expected none, because detector.kind {spec.detector.kind} has no rule for unlabelled "
            f"classes ({kind.__module__}.{kind.__qualname__}.masks_unlabelled is false), found classes of "
            f"{', '.join(spec.data.label_space)}; it runs with -s data.label_space=null"
        )


def build_detector(spec: DetectorSpec, num_classes: int, *, seed: int) -> Detector:
    """Build a detector with weights drawn from ``seed`` alone. torch's global generator is left as it was.

    Raises:
        SpecError: another package's class cannot be imported, or is no detector.
    """
    kind = detector_class(spec)  # first, so that an import cannot draw from the seeded generator
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reset every GPU's generator too
        detector: Detector = kind(spec, num_classes)
    # Convolutions on CPU and on tensor cores run faster with channels innermost.
    return detector.to(memory_format=torch.channels_last)
