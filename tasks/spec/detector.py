"""Which detector is trained: its architecture, its input and its loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tasks.spec.base import Frozen

# At most the whole input: anchors in pixels, as Darknet's files have them, are refused.
Side = Annotated[float, Field(gt=0, le=1)]
Anchor = tuple[Side, Side]

# k-means over Street's training boxes, as fractions of the image; the published COCO anchors are 416-pixel ones.
STREET_ANCHORS: tuple[Anchor, ...] = (
    (0.040, 0.063), (0.068, 0.097), (0.099, 0.097), (0.097, 0.170), (0.193, 0.160), (0.352, 0.313),
)  # fmt: skip


class YoloV3Tiny(Frozen):
    """YOLOv3-tiny (arXiv 1804.02767): two scales, at strides 16 and 32, three anchors each."""

    kind: Literal["yolov3-tiny"] = "yolov3-tiny"
    width: int = Field(416, ge=64, le=2048, description="Width of the network's input in pixels; a multiple of 32.")
    height: int = Field(416, ge=64, le=2048, description="Height of the network's input in pixels; a multiple of 32.")
    anchors: tuple[Anchor, ...] = Field(
        STREET_ANCHORS,
        description="Width and height of each anchor, as fractions of the input, smallest first.",
    )
    masks: tuple[tuple[int, ...], tuple[int, ...]] = Field(
        ((0, 1, 2), (3, 4, 5)),
        description="Which anchors the stride-16 scale uses, and which the stride-32 one.",
    )
    assignment: Literal["best-prior", "side-ratio"] = Field(
        "best-prior",
        description="best-prior: one anchor per object, as published; side-ratio: every anchor whose sides are "
        "within a factor of four, in the object's cell and the two nearest.",
    )
    box_loss: Literal["squared-error", "ciou"] = Field(
        "squared-error", description="squared-error on the box parameters, as published, or complete IoU."
    )
    ignore_iou: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Predictions that overlap an object more than this are not punished as background.",
    )
    batch_norm_momentum: float = Field(
        0.1, gt=0, le=1, description="Weight of a batch in BatchNorm's running statistics."
    )

    @model_validator(mode="after")
    def _check(self) -> YoloV3Tiny:
        for field in ("width", "height"):
            if getattr(self, field) % 32:
                raise ValueError(f"{field}: expected a multiple of 32, found {getattr(self, field)}")
        for mask in self.masks:
            if not mask or any(not 0 <= index < len(self.anchors) for index in mask):
                raise ValueError(f"masks: expected indices from 0 to {len(self.anchors) - 1}, found {mask}")
        return self


DetectorSpec = YoloV3Tiny
