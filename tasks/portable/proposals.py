"""Faster R-CNN's anchors and proposals with fixed shapes: as many proposals for each image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import clip_boxes_to_image

from tasks.portable.select import Select


class FixedAnchors(nn.Module):
    """The anchors of one size of input, in place of torchvision's ``AnchorGenerator``."""

    anchors: Tensor

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchors", anchors.clone())

    def forward(self, images: object, maps: object) -> list[Tensor]:
        return [self.anchors]


class FixedProposals:
    """``RegionProposalNetwork.filter_proposals`` for one image. Where it drops a proposal, this has an empty box.

    An empty box becomes a detection without an area, and ``FasterRcnn.decode`` gives it the score 0.
    """

    def __init__(self, rpn: RegionProposalNetwork, select: Select) -> None:
        self.candidates, self.most = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
        self.nms_iou, self.least_score, self.least_side = rpn.nms_thresh, rpn.score_thresh, rpn.min_size
        self.select = select

    def __call__(
        self, boxes: Tensor, objectness: Tensor, sizes: Sequence[tuple[int, int]], counts: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the proposals [P, 4] and their scores [P], each in a list of one.

        boxes: [1, N, 4]. objectness: logits, in the order of the boxes. sizes: the image's height and width.
        counts: number of boxes of each map.
        """
        width = min(self.candidates, max(counts))
        by_map, logits = [], []
        at = 0
        for count in counts:
            logit, index = objectness.reshape(-1)[at : at + count].topk(min(self.candidates, count))
            padding = width - len(logit)
            by_map.append(functional.pad(boxes[0, at : at + count][index], (0, 0, 0, padding)))
            logits.append(functional.pad(logit, (0, padding), value=-1e4))  # sigmoid: 0; its box is empty
            at += count
        boxes = clip_boxes_to_image(torch.stack(by_map), sizes[0])
        scores = torch.stack(logits).sigmoid()
        sides = boxes[..., 2:] - boxes[..., :2]
        usable = (sides >= self.least_side).all(dim=-1) & (scores >= self.least_score)
        scores = torch.where(usable, scores, -1.0)
        found = self.select(boxes, scores, self.nms_iou, -0.5, width)
        kept = (
            torch.zeros_like(usable)
            .flatten()
            .index_put((found[:, 0] * width + found[:, 1],), torch.ones_like(found[:, 0], dtype=torch.bool))
        )
        scores = torch.where(kept, scores.flatten(), -1.0)
        best, index = scores.topk(min(self.most, len(scores)))
        proposals = torch.where(best[:, None] >= 0, boxes.flatten(0, 1)[index], 0.0)
        return [proposals], [best]
