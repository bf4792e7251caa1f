"""torchvision's checkpoints (``.pth``: a state dict) as initial weights of a Faster R-CNN.

A checkpoint holds a whole detector (torchvision's ``fasterrcnn_*``) or a classifier (``vgg16``, ``resnet50`` and
``mobilenet_v3_large``). A detector's tensors keep their names, except those that torchvision renamed in 2022. From a
classifier come the layers of the backbone, and VGG16's first two fully connected layers as fc6 and fc7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tasks.detectors.faster_rcnn import FasterRcnn
from tasks.detectors.state import value_fault
from tasks.errors import DataError

_PREDICTOR = "roi_heads.box_predictor."
_CLASS_BIAS = f"{_PREDICTOR}cls_score.bias"
# Version 1 of RPNHead and FeaturePyramidNetwork in torchvision's state dicts, and the names in version 2.
_RENAMED = (
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),
    (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2"),
)
_FC = {"classifier.0": "roi_heads.box_head.fc6", "classifier.3": "roi_heads.box_head.fc7"}
_CLASSIFIER = re.compile(r"(?:fc|classifier)\.")
# BatchNorm counts its batches; frozen BatchNorm, and checkpoints of it, do not.
_COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class CheckpointReport:
    """The result of loading a checkpoint: names of the tensors taken from it, and of those drawn from the seed.

    other_classes: the number of classes of the file's outputs, if it is not the detector's.
    """

    file: str
    taken: tuple[str, ...]
    drawn: tuple[str, ...]
    other_classes: int | None = None

    def __str__(self) -> str:
        text = f"{self.file}: {_parts(self.taken)} loaded"
        if self.drawn:
            text += f"; {_parts(self.drawn)} drawn from the seed"
        if self.other_classes is not None:
            text += f" (its outputs are for {self.other_classes} classes)"
        return text


def load_checkpoint(detector: FasterRcnn, path: Path) -> CheckpointReport:
    """Load a checkpoint into ``detector`` in place. Nothing is changed unless the whole file fits.

    Raises:
        DataError: the file is not a state dict, or is that of another network. The message names the first tensor that
            is missing, is unexpected, has another shape or type, or holds NaN or infinity.
    """
    own = detector.state_dict()
    state = _read(path)
    whole = any(name.startswith(("rpn.", "roi_heads.")) for name in state)
    found = _whole(state) if whole else _classifier(state, own)
    other = _other_classes(found, own)
    if other is not None:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(_PREDICTOR)}
    found = {name: tensor for name, tensor in found.items() if name in own or not name.endswith(_COUNTER)}
    drawn = tuple(name for name in own if name not in found and not name.endswith(_COUNTER))
    _check(path, found, own, [name for name in drawn if _expected(name, whole=whole, other=other is not None)])
    detector.load_state_dict({**own, **found})
    return CheckpointReport(path.name, tuple(name for name in own if name in found), drawn, other)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch passes on any error of the archive's reader
        reason = (str(error).splitlines() or [type(error).__name__])[0]  # an empty file's has no text
        raise DataError(f"{path}: expected a state dict of torchvision: {reason}") from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: expected a state dict of torchvision, tensors by name, found something else")
    return {str(name): tensor for name, tensor in state.items()}


def _whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        for pattern, renamed in _RENAMED:
            if pattern.fullmatch(name):
                name = pattern.sub(renamed, name)
        found[name] = tensor
    return found


def _classifier(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the file's tensors by the detector's names, without the classifier's layers that the detector lacks."""
    body = "backbone.body." if any(name.startswith("backbone.body.") for name in own) else "backbone."
    found = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        if not _CLASSIFIER.match(name):
            found[body + name.removeprefix("features.")] = tensor
        elif layer in _FC and body == "backbone.":
            mine = own[f"{_FC[layer]}.{kind}"]
            if mine.shape[0] == tensor.shape[0]:  # the weights of narrower layers are drawn
                found[f"{_FC[layer]}.{kind}"] = tensor
    return found


def _other_classes(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int | None:
    bias = found.get(_CLASS_BIAS)
    return None if bias is None or bias.shape == own[_CLASS_BIAS].shape else len(bias) - 1


def _expected(name: str, *, whole: bool, other: bool) -> bool:
    """Return whether a file must have the tensor ``name``, which it lacks."""
    if whole:
        return not (other and name.startswith(_PREDICTOR))
    return name.startswith("backbone.") and not name.startswith("backbone.fpn.")


def _check(path: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor], missing: list[str]) -> None:
    for name in (*missing, *(name for name in found if name not in own)):
        what = "is missing" if name in missing else "is not of this detector"
        raise DataError(f"{path}: expected a checkpoint of this detector or its backbone: tensor {name} {what}")
    for name, tensor in found.items():
        fault = value_fault(name, own[name], tensor)
        if fault is not None:
            raise DataError(f"{path}: tensor {name}{fault}; expected a checkpoint of this detector or its backbone")


def _parts(names: tuple[str, ...]) -> str:
    """Return the number of tensors by part: ``backbone (26 tensors), roi_heads.box_head (4 tensors)``."""
    counts: dict[str, int] = {}
    for name in names:
        first, second = name.split(".")[:2]
        part = first if second.isdigit() else f"{first}.{second}"
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensors)" for part, count in counts.items()) or "nothing"
