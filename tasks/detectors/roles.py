"""The role of every tensor of a detector's state: a federated method's rule applies to parameters only.

An adaptive server step on BatchNorm's running variance makes it negative, and the loss NaN (adap/flower issue 1060). So
buffers are averaged, and counters take the maximum, whatever the rule does to parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from tasks.detectors.base import Detector
from tasks.detectors.registry import build_detector
from tasks.spec.detector import DetectorSpec

# Layers with weights or statistics of their own that normalise. torchvision's FrozenBatchNorm2d is none of them: it is
# a constant of the checkpoint.
NORMALISATION = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class TensorRole:
    """What a tensor of the state is.

    kind: a *parameter* is trained by gradient, a *buffer* holds statistics, a *counter* is no floating number.
    rate: factor of the parameter's learning rate; 0 for a frozen parameter and for what is no parameter.
    normalisation: whether it belongs to a normalisation layer.
    head: whether the detector counts it to its head (:meth:`tasks.detectors.base.Detector.head_names`).
    """

    kind: Literal["parameter", "buffer", "counter"]
    rate: float = 0.0
    normalisation: bool = False
    head: bool = False

    @property
    def trained(self) -> bool:
        """Whether local steps change the tensor by its gradient."""
        return self.rate > 0


Roles = dict[str, TensorRole]


def tensor_roles(detector: Detector) -> Roles:
    """Return the role of each tensor of ``detector``'s state, by its name there."""
    rates = {
        id(parameter): factor
        for factor, parameters in detector.learning_rate_factors().items()
        for parameter in parameters
        if parameter.requires_grad
    }
    parameters = dict(detector.named_parameters(remove_duplicate=False))
    layers = tuple(f"{name}." for name, module in detector.named_modules() if isinstance(module, NORMALISATION))
    head = detector.head_names()
    roles = {}
    for name, tensor in detector.state_dict().items():
        kind: Literal["parameter", "buffer", "counter"] = "buffer" if tensor.is_floating_point() else "counter"
        rate = 0.0
        if name in parameters:
            kind, rate = "parameter", rates.get(id(parameters[name]), 0.0)
        roles[name] = TensorRole(kind, rate, name.startswith(layers), name in head)
    return roles


@lru_cache(maxsize=4)
def roles_of(spec: DetectorSpec, num_classes: int) -> Roles:
    """Return the roles of the detector that ``spec`` describes. It is built for that, and then dropped."""
    return tensor_roles(build_detector(spec, num_classes, seed=0))
