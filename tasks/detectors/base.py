"""The interface that every detector fits: build, loss, predict, state.

The rest of the benchmark knows a detector by this class alone. A forward pass gives *outputs* that only the detector
itself reads, so that one pass serves both the test loss and the detections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Targets:
    """The truth of a batch.

    boxes: one float32 tensor [n, 4] an image, (xmin, ymin, xmax, ymax) in pixels of the network's input.
    labels: one int64 tensor [n] an image, indices of classes.
    """

    boxes: list[Tensor]
    labels: list[Tensor]

    def to(self, device: torch.device) -> Targets:
        return Targets([box.to(device) for box in self.boxes], [label.to(device) for label in self.labels])


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image: boxes float32 [n, 4] in input pixels, scores [n] descending, labels [n]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(nn.Module, ABC):
    """A trainable detector over inputs of one size."""

    width: int
    height: int
    num_classes: int

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """Outputs for ``images``, uint8 [B, 3, H, W] in 0…255."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Targets) -> dict[str, Tensor]:
        """Named scalar terms, each a mean over the batch's images; their sum is what training minimises."""

    def learning_rate_factors(self) -> dict[float, list[nn.Parameter]]:
        """Parameters by the part of the learning rate that they are trained at; every parameter once."""
        return {1.0: list(self.parameters())}

    @abstractmethod
    def predict(self, outputs: Any, *, score_threshold: float, nms_iou: float, max_detections: int) -> list[Detections]:
        """Detections of each image after non-maximum suppression, at most ``max_detections`` a class."""
