"""Faster R-CNN (arXiv 1506.01497): proposals, then a class and a box for each; assembled from torchvision's parts.

Modules have the same names as in torchvision's ``FasterRCNN``, so that its checkpoints fit. torchvision's resizing is
left out, because inputs have one size already. Class 0 of the box head is the background. On a GPU the host waits in
each step, because torchvision's proposals and samplers choose boxes by masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from tasks.data.transfer import constant
from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.faster_rcnn_loss import head_terms, leave_out, masked
from tasks.detectors.faster_rcnn_parts import maps_of, parts_of
from tasks.detectors.suppression import suppress
from tasks.spec.faster_rcnn import FasterRcnnSpec

# Of the ImageNet images that the backbones were trained on.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Section 3.1.3, and section 2.3 of Fast R-CNN (arXiv 1504.08083).
PROPOSAL_NMS_IOU = 0.7
ANCHOR_OBJECT_IOU, ANCHOR_BACKGROUND_IOU = 0.7, 0.3
ANCHORS_SAMPLED, ANCHORS_ON_OBJECTS = 256, 0.5
PROPOSAL_OBJECT_IOU = 0.5
PROPOSALS_ON_OBJECTS = 0.25
# Pixels. A true box with a thinner side is left out, because the logarithm of its size may not be finite. A detection
# with a thinner side is dropped.
THINNEST = 0.01
# Seed of the samplers in evaluation mode, set anew for each image.
EVALUATION_SEED = 0

Masks = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True)
class FasterRcnnOutputs:
    """The outputs of one pass over a batch.

    maps: the backbone's, by name. anchors: float32 [N, 4] in input pixels, the same for each image. objectness:
    float32 [B, N] logits. deltas: float32 [B, N, 4] from the anchors. proposals: float32 [n, 4] an image, best first.
    scored: the box head's logits [n, 1 + C] and deltas [n, 4 (1 + C)] for each image's proposals; None in training
    mode, in which the loss scores only a sample of them. size: height and width of the input. amp: the type of
    automatic mixed precision that the pass used; None: it used none.
    """

    maps: dict[str, Tensor]
    anchors: Tensor
    objectness: Tensor
    deltas: Tensor
    proposals: list[Tensor]
    scored: tuple[Sequence[Tensor], Sequence[Tensor]] | None
    size: tuple[int, int]
    amp: torch.dtype | None


class _Sample(NamedTuple):
    """By image: proposals and true boxes, the indices drawn from them, and the labels and deltas wanted there."""

    boxes: list[Tensor]
    chosen: list[Tensor]
    labels: list[Tensor]
    wanted: Sequence[Tensor]


class Sampler(nn.Module):
    """torchvision's sampler. In evaluation mode it draws each image's sample from a fixed seed, on the CPU.

    So every evaluation has the same test loss, an image's sample does not depend on its batch, and torch's global
    generators stay as they were.
    """

    def __init__(self, draw: Callable[[list[Tensor]], Masks]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, labels: list[Tensor]) -> Masks:
        """Return masks of the drawn positives and of the drawn negatives, one an image. Labels < 0 are never drawn."""
        if self.training:
            return self.draw(labels)
        positives, negatives = [], []
        for label in labels:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(EVALUATION_SEED)
                (positive,), (negative,) = self.draw([label.cpu()])
            positives.append(positive.to(label.device))
            negatives.append(negative.to(label.device))
        return positives, negatives


class FasterRcnn(Detector):
    """Faster R-CNN with the backbone, proposal network and box head of the specification's kind."""

    masks_unlabelled = True

    def __init__(self, spec: FasterRcnnSpec, num_classes: int) -> None:
        super().__init__()
        self.width, self.height, self.num_classes = spec.width, spec.height, num_classes
        self.backbone_lr = spec.backbone_lr
        parts = parts_of(spec)
        self.backbone = parts.backbone
        self.rpn = RegionProposalNetwork(
            parts.anchors,
            RPNHead(parts.channels, parts.anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=ANCHOR_OBJECT_IOU,
            bg_iou_thresh=ANCHOR_BACKGROUND_IOU,
            batch_size_per_image=ANCHORS_SAMPLED,
            positive_fraction=ANCHORS_ON_OBJECTS,
            pre_nms_top_n=dict(zip(("training", "testing"), parts.candidates, strict=True)),
            post_nms_top_n={"training": spec.train_proposals, "testing": spec.test_proposals},
            nms_thresh=PROPOSAL_NMS_IOU,
            score_thresh=spec.proposal_score,
        )
        self.roi_heads = RoIHeads(
            parts.pool,
            parts.head,
            FastRCNNPredictor(parts.fc_width, 1 + num_classes),
            fg_iou_thresh=PROPOSAL_OBJECT_IOU,
            bg_iou_thresh=PROPOSAL_OBJECT_IOU,
            batch_size_per_image=spec.sampled_proposals,
            positive_fraction=PROPOSALS_ON_OBJECTS,
            bbox_reg_weights=None,
            # Detections are chosen in predict, by the evaluation's rules.
            score_thresh=0.0,
            nms_thresh=1.0,
            detections_per_img=0,
        )
        self.rpn.fg_bg_sampler = Sampler(self.rpn.fg_bg_sampler)
        self.roi_heads.fg_bg_sampler = Sampler(self.roi_heads.fg_bg_sampler)

    def train(self, mode: bool = True) -> FasterRcnn:
        """Set the mode as in any module, but keep the BatchNorm statistics of layers that are not trained."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self

    def learning_rate_factors(self) -> dict[float, list[nn.Parameter]]:
        backbone, rest = list(self.backbone.parameters()), [*self.rpn.parameters(), *self.roi_heads.parameters()]
        return {self.backbone_lr: backbone, 1.0: rest} if self.backbone_lr != 1 else {1.0: backbone + rest}

    def head_names(self) -> frozenset[str]:
        """Return the tensors of the box predictor: the last two layers of the box head, for classes and boxes."""
        return frozenset(name for name in self.state_dict() if name.startswith("roi_heads.box_predictor."))

    def forward(self, images: Tensor) -> FasterRcnnOutputs:
        """Return the outputs for ``images``, whose size may differ from the detector's, in multiples of 32."""
        size = (images.shape[2], images.shape[3])
        mean, std = (constant(value, images.device).view(1, 3, 1, 1) for value in (MEAN, STD))
        x = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        maps = maps_of(self.backbone, x)
        objectness, deltas = ([part.float() for part in parts] for parts in self.rpn.head(list(maps.values())))
        anchors = self.rpn.anchor_generator(ImageList(x, [size] * len(images)), objectness)
        counts = [part[0].numel() for part in objectness]
        logits, changes = concat_box_prediction_layers(objectness, deltas)
        boxes = self.rpn.box_coder.decode(changes.detach(), anchors).view(len(images), -1, 4)
        proposals, _ = self.rpn.filter_proposals(boxes, logits, [size] * len(images), counts)
        outputs = FasterRcnnOutputs(
            maps,
            anchors[0],
            logits.view(len(images), -1),
            changes.view(len(images), -1, 4),
            proposals,
            None,
            size,
            torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None,
        )
        if self.training:
            return outputs
        return replace(outputs, scored=self._score(outputs, proposals))

    def _score(self, outputs: FasterRcnnOutputs, boxes: list[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return logits and deltas of ``boxes``, image by image, from the maps of the pass."""
        # Not every version of torchvision pools in other types than the boxes'.
        maps = {name: x.float() for name, x in outputs.maps.items()}
        with torch.autocast(boxes[0].device.type, dtype=outputs.amp, enabled=outputs.amp is not None):
            pooled = self.roi_heads.box_roi_pool(maps, boxes, [outputs.size] * len(boxes))
            logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        counts = [len(box) for box in boxes]
        return logits.float().split(counts), deltas.float().split(counts)

    def loss(self, outputs: FasterRcnnOutputs, targets: Targets) -> dict[str, Tensor]:
        """Return torchvision's four terms: ``objectness``, ``rpn_box``, ``classifier``, ``box``.

        In training they are means over the batch's samples, as torchvision's are; nearly all images have equally many
        samples. In evaluation mode each image has its own terms, independent of the rest of the batch, and their means
        are returned. Boxes without an area are left out. Anchors and proposals in an ignore region are not sampled as
        background, whatever the region's class. The classifier's softmax runs over the background and the classes that
        are labelled in the image.
        """
        truth = [
            {"boxes": boxes[whole], "labels": labels[whole] + 1}
            for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
            for whole in [(boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= THINNEST]
        ]
        if targets.regions is not None:
            truth = [item | {"regions": regions} for item, regions in zip(truth, targets.regions, strict=True)]
        if self.training:
            terms = self._anchor_terms(outputs, slice(None), truth)  # first: both draw from torch's generator
            return terms | self._sampled_terms(outputs, truth, targets.labelled)
        found = self._scored_terms(outputs, truth, targets.labelled)
        for number, item in enumerate(truth):
            found[number].update(self._anchor_terms(outputs, slice(number, number + 1), [item]))
        return {name: torch.stack([terms[name] for terms in found]).mean() for name in found[0]}

    def _anchor_terms(
        self, outputs: FasterRcnnOutputs, images: slice, truth: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        anchors = [outputs.anchors] * len(truth)
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, truth)
        if leave_out(labels, anchors, truth) and not (torch.cat(labels) >= 0).any():
            # torchvision's means over no samples are not numbers.
            zero = outputs.objectness[images].sum() * 0
            return {"objectness": zero, "rpn_box": zero}
        wanted = self.rpn.box_coder.encode(matched, anchors)
        objectness, box = self.rpn.compute_loss(
            outputs.objectness[images].flatten(), outputs.deltas[images].flatten(0, 1), labels, wanted
        )
        return {"objectness": objectness, "rpn_box": box}

    def _sampled_terms(
        self, outputs: FasterRcnnOutputs, truth: list[dict[str, Tensor]], labelled: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the box head's terms. The head scores a sample of the proposals here."""
        boxes, chosen, labels, wanted = self._sample(outputs.proposals, truth)
        logits, deltas = self._score(outputs, [box[index] for box, index in zip(boxes, chosen, strict=True)])
        return head_terms(masked(logits, labelled), deltas, labels, wanted)

    def _scored_terms(
        self, outputs: FasterRcnnOutputs, truth: list[dict[str, Tensor]], labelled: Tensor | None
    ) -> list[dict[str, Tensor]]:
        """Return the box head's terms, image by image. Proposals are scored already; here it scores the true boxes."""
        scored = outputs.scored or self._score(outputs, outputs.proposals)
        added = self._score(outputs, [item["boxes"] for item in truth])
        logits, deltas = (
            [torch.cat(pair) for pair in zip(of_proposals, of_truth, strict=True)]
            for of_proposals, of_truth in zip(scored, added, strict=True)
        )
        logits = masked(logits, labelled)
        sample = self._sample(outputs.proposals, truth)
        return [
            head_terms([logits[i][index]], [deltas[i][index]], [sample.labels[i]], [sample.wanted[i]])
            for i, index in enumerate(sample.chosen)
        ]

    def _sample(self, proposals: list[Tensor], truth: list[dict[str, Tensor]]) -> _Sample:
        """Draw the proposals that the box head is trained on, and find what it must return for them."""
        true_boxes = [item["boxes"] for item in truth]
        boxes = self.roi_heads.add_gt_proposals(proposals, true_boxes)
        matched, labels = self.roi_heads.assign_targets_to_proposals(
            boxes, true_boxes, [item["labels"] for item in truth]
        )
        leave_out(labels, boxes, truth)
        chosen = self.roi_heads.subsample(labels)
        # In an image without objects, background samples match box 0: an empty box, whose deltas are never used.
        some = [box if len(box) else box.new_zeros(1, 4) for box in true_boxes]
        wanted = self.roi_heads.box_coder.encode(
            [box[match[index]] for box, match, index in zip(some, matched, chosen, strict=True)],
            [box[index] for box, index in zip(boxes, chosen, strict=True)],
        )
        return _Sample(boxes, chosen, [label[index] for label, index in zip(labels, chosen, strict=True)], wanted)

    def decode(self, outputs: FasterRcnnOutputs) -> list[tuple[Tensor, Tensor]]:
        scored = outputs.scored or self._score(outputs, outputs.proposals)
        found = []
        for proposals, logits, deltas in zip(outputs.proposals, *scored, strict=True):
            boxes = self.roi_heads.box_coder.decode_single(deltas, proposals).view(-1, 1 + self.num_classes, 4)[:, 1:]
            boxes = clip_boxes_to_image(boxes, outputs.size)
            whole = (boxes[..., 2:] - boxes[..., :2]).amin(dim=-1) >= THINNEST
            found.append((boxes, logits.softmax(dim=-1)[:, 1:] * whole))
        return found

    def predict(
        self, outputs: FasterRcnnOutputs, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[Detections]:
        return [
            suppress(box, score, score_threshold=score_threshold, nms_iou=nms_iou, max_detections=max_detections)
            for box, score in self.decode(outputs)
        ]
