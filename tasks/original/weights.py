"""Load the original's weights into this benchmark's YOLOv3 and YOLOv3-tiny.

The original sends ``model.parameters()`` of its PyTorch network, built from the cfg: for each convolution its kernel,
then γ and β of its BatchNorm, or its bias if it has no BatchNorm (the outputs). BatchNorm's running statistics are not
among them; see :mod:`tasks.training.batch_norm`. The networks of a cfg are the same here and there, down to BatchNorm's
epsilon (1e-5) and the leaky ReLU (0.1), with one exception: YOLOv3-tiny's pooling of stride 1 pads with zeros there
and with -∞ here, as in Darknet, which makes a difference at the right and the lower border. The original pads images to
a square; here they are stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tasks.detectors.yolo_network import YOLOV3_LAYERS, YOLOV3_TINY_LAYERS, Conv, Output, YoloNetwork
from tasks.errors import DataError


@dataclass(frozen=True)
class ParametersReport:
    """The result of loading a list of parameters.

    other_classes: the number of classes of the list's outputs, if it is not the detector's.
    """

    arrays: int
    dtype: str
    other_classes: int | None = None

    def __str__(self) -> str:
        text = f"{self.arrays} arrays of {self.dtype}: all parameters"
        if self.other_classes is not None:
            text += f" but the outputs, which are for {self.other_classes} classes and left as they were"
        return text


def load_parameters(detector: YoloNetwork, arrays: Sequence[NDArray[Any]], *, source: str) -> ParametersReport:
    """Load ``arrays``, in the original's order, into ``detector``. Nothing is changed unless all of them fit.

    From a list for another number of classes, all but the output convolutions are loaded.

    Raises:
        DataError: the arrays do not fit. The message names ``source``, and an array's index, name, expected and found
            shape, or both numbers of arrays.
    """
    parameters = list(detector.named_parameters())
    if len(arrays) != len(parameters):
        raise DataError(f"{source}: {_count(detector, len(arrays), len(parameters))}")
    other = _other_classes(detector, arrays)
    outputs = {f"layers.{name}" for name, module in detector.layers.items() if isinstance(module, nn.Conv2d)}
    read: list[tuple[Tensor, Tensor]] = []
    for index, ((name, parameter), array) in enumerate(zip(parameters, arrays, strict=True)):
        at = f"{source}: array {index} ({name})"
        if not np.issubdtype(array.dtype, np.floating):
            raise DataError(f"{at}: expected floating-point numbers, found {array.dtype}")
        values = torch.from_numpy(array.astype(np.float32))
        if not bool(torch.isfinite(values).all()):
            raise DataError(f"{at}: holds NaN or infinity; expected weights")
        if other is not None and name.rpartition(".")[0] in outputs:
            continue
        if values.shape != parameter.shape:
            raise DataError(f"{at}: expected shape {list(parameter.shape)}, found {list(values.shape)}")
        read.append((parameter, values))
    with torch.no_grad():
        for target, values in read:
            target.copy_(values)
    types = sorted({str(array.dtype) for array in arrays})
    return ParametersReport(len(arrays), ", ".join(types), other)


def _count(detector: YoloNetwork, found: int, expected: int) -> str:
    """Return the message on a wrong number of arrays. It names the network that has this number."""
    text = f"{found} arrays; expected {expected}, the parameters of {detector.spec.kind}"
    for kind, table in (("yolov3", YOLOV3_LAYERS), ("yolov3-tiny", YOLOV3_TINY_LAYERS)):
        blocks = sum(isinstance(layer, Conv) for layer in table)
        outputs = sum(isinstance(layer, Output) for layer in table)
        if found == 3 * blocks + 2 * outputs:
            return f"{text}; {kind} has {found}"
    return text


def _other_classes(detector: YoloNetwork, arrays: Sequence[NDArray[Any]]) -> int | None:
    """Return the number of classes by the shapes of all outputs, if they agree on one that is not the detector's."""
    found = set()
    for (name, parameter), array in zip(detector.named_parameters(), arrays, strict=True):
        module = detector.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            if array.ndim != parameter.ndim or array.shape[1:] != tuple(parameter.shape[1:]):
                return None
            anchors = module.out_channels // (5 + detector.num_classes)
            classes, rest = divmod(array.shape[0], anchors)
            if rest or classes <= 5:
                return None
            found.add(classes - 5)
    return found.pop() if len(found) == 1 and found != {detector.num_classes} else None
