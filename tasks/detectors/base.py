"""The interface of all detectors: build, loss, predict, state.

The rest of the benchmark uses a detector only through this class. A forward pass returns *outputs* that only the
detector itself reads, so that one pass serves both the test loss and the detections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tasks.data.transfer import moved_together


@dataclass(frozen=True)
class Targets:
    """The truth of a batch.

    boxes: one float32 tensor [n, 4] an image, (xmin, ymin, xmax, ymax) in pixels of the network's input.
    labels: one int64 tensor [n] an image, indices of classes.
    regions, region_labels: the ignore regions in the same form, of which each image may have none; a label of -1
    stands for any class. Both are None if no image has a region. A loss must not use a region as background.
    labelled: bool [images, classes], whether objects of a class were annotated in an image; None: all were. A loss with
    the rule for unlabelled classes (:attr:`Detector.masks_unlabelled`) leaves its class terms of the others out.
    host: the same truth on the CPU, if this one was copied from there to a GPU. A loss may compute on the CPU what
    depends on the truth alone, such as an assignment whose size the host must know.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    regions: list[Tensor] | None = None
    region_labels: list[Tensor] | None = None
    labelled: Tensor | None = None
    host: Targets | None = field(default=None, repr=False, compare=False)

    def to(self, device: torch.device) -> Targets:
        """Return the truth on ``device``. All tensors move in one copy, and the host does not wait for a GPU."""
        return self if self.boxes[0].device.type == device.type else self.moved(device)

    def moved(self, device: torch.device) -> Targets:
        """Return a copy of the truth, which is on the CPU, on ``device``."""
        regions, region_labels = self.regions or [], self.region_labels or []
        labelled = [] if self.labelled is None else [self.labelled]
        found = iter(moved_together([*self.boxes, *self.labels, *regions, *region_labels, *labelled], device))

        def next_ones(tensors: list[Tensor]) -> list[Tensor]:
            return [next(found) for _ in tensors]

        boxes, labels = next_ones(self.boxes), next_ones(self.labels)
        has_regions = self.regions is not None and self.region_labels is not None
        return Targets(
            boxes,
            labels,
            next_ones(regions) if has_regions else None,
            next_ones(region_labels) if has_regions else None,
            next(found) if labelled else None,
            host=self,
        )


@dataclass(frozen=True)
class Detections:
    """The detections of one image: boxes float32 [n, 4] in input pixels, scores [n] descending, labels [n]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(nn.Module, ABC):
    """A trainable detector over inputs of one size.

    masks_unlabelled: whether the loss follows ``Targets.labelled``. A specification with ``data.label_space`` is
    refused for a detector whose loss does not.
    needs_unlabelled_regions: whether the loss also needs ignore regions where the round's global model finds unlabelled
    classes, because a negative counts for all classes together. Where each class has a score of its own, the masks do.
    """

    masks_unlabelled: ClassVar[bool] = False
    needs_unlabelled_regions: ClassVar[bool] = True

    width: int
    height: int
    num_classes: int

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """Return the outputs for ``images``, uint8 [B, 3, H, W] in 0…255."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Targets) -> dict[str, Tensor]:
        """Return named scalar terms, each a mean over the batch's images. Training minimises their sum."""

    def learning_rate_factors(self) -> dict[float, list[nn.Parameter]]:
        """Return every parameter once, by the factor that multiplies its learning rate."""
        return {1.0: list(self.parameters())}

    def head_names(self) -> frozenset[str]:
        """Return the names, in the state, of the head's tensors: the last layers, which give classes and boxes.

        Methods that keep the head at the client need them. They refuse a detector that names none.
        """
        return frozenset()

    def decode(self, outputs: Any) -> list[tuple[Tensor, Tensor]]:
        """Return each image's boxes and scores before non-maximum suppression, for `fedbench export-model`.

        Boxes are float32 [N, 4] in input pixels, or [N, classes, 4] if each class has its own; scores [N, classes].

        Raises:
            NotImplementedError: a detector of another package may leave this out. It cannot be exported then.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define decode()")

    @abstractmethod
    def predict(self, outputs: Any, *, score_threshold: float, nms_iou: float, max_detections: int) -> list[Detections]:
        """Return each image's detections after non-maximum suppression, at most ``max_detections`` a class."""
