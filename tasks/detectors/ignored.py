"""Which boxes lie in an ignore region, so that a loss does not take them for background."""

from __future__ import annotations

import torch
from torch import Tensor

# A box lies in a region if at least this part of its own area does. An evaluation by COCO's rule ignores a detection at
# IoU 0.5 by the same measure.
PART_INSIDE = 0.5


def in_region(boxes: Tensor, regions: Tensor) -> Tensor:
    """Return which boxes lie in one of the regions: bool [n] from float32 [n, 4] and [k, 4], both xyxy.

    The measure is the intersection over the box's own area. By intersection over union, a small box in a large region
    would not lie in it.
    """
    if not len(regions):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    corner = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    inside = (torch.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - corner).clamp(min=0).prod(dim=-1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    return (inside.amax(dim=1) >= PART_INSIDE * area) & (area > 0)
