"""A detector of a few convolutions: each cell of a grid predicts its class and the sides of a box around its centre."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedbench_example.spec import TinyGridSpec
from tasks.detectors.base import Detections, Detector, Targets
from tasks.detectors.suppression import suppress

STRIDE = 32


class TinyGrid(Detector):
    """Outputs are [B, classes + 4, H / 32, W / 32]: logits, and the logarithms of four distances in cells."""

    def __init__(self, spec: TinyGridSpec, num_classes: int) -> None:
        super().__init__()
        self.width, self.height, self.num_classes = spec.width, spec.height, num_classes
        layers: list[nn.Module] = []
        channels = 3
        for depth in range(5):
            layers += [nn.Conv2d(channels, spec.channels * (depth + 1), 3, stride=2, padding=1), nn.ReLU()]
            channels = spec.channels * (depth + 1)
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, num_classes + 4, 1)
        nn.init.constant_(self.head.get_parameter("bias"), -2.0)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(images.float() / 255))
        return outputs

    def loss(self, outputs: Tensor, targets: Targets) -> dict[str, Tensor]:
        logits, sides = outputs[:, : self.num_classes], outputs[:, self.num_classes :]
        wanted = torch.zeros_like(logits)
        distances = outputs.new_zeros(())
        for image, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels, strict=True)):
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            columns = (centres[:, 0] / STRIDE).long().clamp(0, outputs.shape[3] - 1)
            rows = (centres[:, 1] / STRIDE).long().clamp(0, outputs.shape[2] - 1)
            wanted[image, labels, rows, columns] = 1
            cell = (torch.stack([columns, rows], 1) + 0.5) * STRIDE
            truth = (torch.cat([cell - boxes[:, :2], boxes[:, 2:] - cell], 1) / STRIDE).clamp(min=0.05).log()
            distances = distances + functional.l1_loss(sides[image, :, rows, columns].T, truth, reduction="sum")
        classes = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return {"class": classes / len(outputs), "box": distances / len(outputs)}

    def predict(
        self, outputs: Tensor, *, score_threshold: float, nms_iou: float, max_detections: int
    ) -> list[Detections]:
        rows, columns = outputs.shape[2:]
        x = (torch.arange(columns, device=outputs.device) + 0.5).expand(rows, columns)
        y = (torch.arange(rows, device=outputs.device) + 0.5)[:, None].expand(rows, columns)
        limits = outputs.new_tensor([self.width, self.height, self.width, self.height])
        found = []
        for image in outputs:
            left, top, right, bottom = image[self.num_classes :].clamp(max=6).exp()
            boxes = torch.stack([x - left, y - top, x + right, y + bottom], -1).reshape(-1, 4) * STRIDE
            found.append(
                suppress(
                    boxes.clamp(min=0).minimum(limits),
                    image[: self.num_classes].sigmoid().flatten(1).T,
                    score_threshold=score_threshold,
                    nms_iou=nms_iou,
                    max_detections=max_detections,
                )
            )
        return found
