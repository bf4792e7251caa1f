"""A detector and its decoding as one network of fixed shapes, which other programs can run.

It takes one image of the detector's size and returns boxes, scores and labels. Only non-maximum suppression and what
follows it have sizes that depend on the image, so each format has its own suppression (:mod:`tasks.portable.select`).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tasks.detectors.base import Detector
from tasks.detectors.suppression import MAX_CANDIDATES
from tasks.errors import SpecError
from tasks.portable.select import Select
from tasks.spec.training import EvaluationSpec

INPUT, OUTPUTS = "images", ("boxes", "scores", "labels")


class PortableNetwork(nn.Module):
    """``detector`` with its decoding, for one image at a time."""

    def __init__(self, detector: Detector, rules: EvaluationSpec, select: Select) -> None:
        """rules: score_threshold, nms_iou and max_detections become part of the network.

        Raises:
            SpecError: the detector, of another package, does not define ``decode``.
        """
        super().__init__()
        if type(detector).decode is Detector.decode:
            raise SpecError(
                f"{type(detector).__name__}: expected a detector that defines decode(), which returns boxes and "
                "scores before suppression; this one cannot be exported"
            )
        self.detector = fixed(copy.deepcopy(detector).cpu().eval().requires_grad_(False), select)
        self.rules, self.select = rules, select
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes float32 [n, 4] in pixels of the input, scores float32 [n] descending, labels int64 [n].

        images: uint8 or float32 [1, 3, height, width] in 0…255, RGB.
        """
        ((boxes, scores),) = self.detector.decode(self.detector(images))
        classes = scores.shape[1]
        score, index = scores.flatten().topk(min(MAX_CANDIDATES, scores.numel()))
        place, label = torch.div(index, classes, rounding_mode="floor"), index % classes
        box = boxes[place] if boxes.ndim == 2 else boxes.flatten(0, 1)[index]
        own = label == torch.arange(classes, device=label.device)[:, None]
        by_class = torch.where(own, score, -1.0)  # no class has a candidate of another one
        rules = self.rules
        found = self.select(
            box.expand(classes, -1, 4), by_class, rules.nms_iou, rules.score_threshold, rules.max_detections
        )
        label, chosen = found[:, 0], found[:, 1]
        score, order = score[chosen].sort(descending=True)
        return box[chosen[order]], score, label[order]


def fixed(detector: Detector, select: Select) -> Detector:
    """Return ``detector`` with parts of fixed shapes in place of those whose shapes depend on the image."""
    rpn = getattr(detector, "rpn", None)
    if rpn is None:
        return detector
    from tasks.portable.proposals import FixedAnchors, FixedProposals

    empty = torch.zeros(1, 3, detector.height, detector.width)
    with torch.no_grad():  # also fixes the scales of the pooling, which depend on the input's size
        anchors = detector(empty).anchors
    rpn.anchor_generator = FixedAnchors(anchors)
    # In the instance's own dictionary: as a submodule it would be found after the class's method of that name.
    object.__setattr__(rpn, "filter_proposals", FixedProposals(rpn, select))
    return detector
