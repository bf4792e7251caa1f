"""Non-maximum suppression, the same for all detectors."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.detectors.base import Detections

# The most candidates of an image that enter suppression, best first. Worse ones would not reach max_detections.
MAX_CANDIDATES = 3000


def suppress(
    boxes: Tensor, scores: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
) -> Detections:
    """Apply torchvision's non-maximum suppression to each class of one image.

    boxes: [N, 4], or [N, classes, 4] if each class has its own boxes. scores: [N, classes].
    """
    from torchvision.ops import batched_nms

    index, label = (scores > score_threshold).nonzero(as_tuple=True)
    candidate = scores[index, label]
    if len(candidate) > MAX_CANDIDATES:
        # The sort is stable, so that equal scores keep the order of cells in any version of the library.
        order = candidate.sort(descending=True, stable=True).indices[:MAX_CANDIDATES]
        index, label, candidate = index[order], label[order], candidate[order]
    boxes = boxes[index] if boxes.ndim == 2 else boxes[index, label]
    kept = batched_nms(boxes, candidate, label, nms_iou)
    boxes, candidate, label = boxes[kept], candidate[kept], label[kept]
    # The boxes are best first, and a stable sort keeps them so within a class.
    grouped, order = label.sort(stable=True)
    place = torch.arange(len(label), device=label.device) - torch.searchsorted(grouped, grouped)
    rank = torch.zeros_like(label).scatter_(0, order, place)
    keep = rank < max_detections
    return Detections(boxes[keep], candidate[keep], label[keep])
