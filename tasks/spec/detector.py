"""The detector to train: its architecture, its input, its loss, and the weights that it starts from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tasks.spec.base import CHOSEN, Frozen
from tasks.spec.detector_parts import DarknetWeights, EfficientNetLite0Weights, RandomWeights, check_input
from tasks.spec.faster_rcnn import FasterRcnnSpec

# At most the whole input, so that anchors in pixels, as in Darknet's files, are refused.
Side = Annotated[float, Field(gt=0, le=1)]
Anchor = tuple[Side, Side]


def _published(*pixels: tuple[int, int]) -> tuple[Anchor, ...]:
    """Return the anchors of a cfg file with an input of 416 x 416 pixels as fractions of the input."""
    return tuple((width / 416, height / 416) for width, height in pixels)


# k-means over COCO's boxes, as in Darknet's yolov3.cfg and yolov3-tiny.cfg.
YOLOV3_ANCHORS = _published(
    (10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326)
)  # fmt: skip
YOLOV3_TINY_ANCHORS = _published((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
# k-means over Street's training boxes, as fractions of the image.
STREET_ANCHORS: tuple[Anchor, ...] = (
    (0.040, 0.063), (0.068, 0.097), (0.099, 0.097), (0.097, 0.170), (0.193, 0.160), (0.352, 0.313),
)  # fmt: skip

# The default comes first (see tasks.spec.form).
InitialWeights = RandomWeights | DarknetWeights

_ANCHORS = "Width and height of each anchor, as fractions of the input, smallest first."
_MASKS = "Indices of the anchors that each scale uses; the finest scale first."


class YoloSpec(Frozen):
    """The fields that YOLOv3 and YOLOv3-tiny (arXiv 1804.02767) have in common; they differ in layers and scales."""

    strides: ClassVar[tuple[int, ...]]

    kind: str = Field(description=CHOSEN)
    width: int = Field(416, ge=64, le=2048, description="Width of the network's input in pixels; a multiple of 32.")
    height: int = Field(416, ge=64, le=2048, description="Height of the network's input in pixels; a multiple of 32.")
    anchors: tuple[Anchor, ...] = Field(description=_ANCHORS)
    masks: tuple[tuple[int, ...], ...] = Field(description=_MASKS)
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
        description="Predictions that overlap an object by more than this IoU are not penalised as background.",
    )
    batch_norm_momentum: float = Field(
        0.1, gt=0, le=1, description="Weight of a batch in BatchNorm's running statistics."
    )
    weights: InitialWeights = Field(
        RandomWeights(),
        title="Initial weights",
        discriminator="kind",
        description="Source of the weights of round 0.",
    )

    @model_validator(mode="after")
    def _check(self) -> YoloSpec:
        check_input(self.width, self.height)
        if not self.anchors:
            raise ValueError("anchors: expected at least one anchor, found []")
        if len(self.masks) != len(self.strides):
            raise ValueError(
                f"masks: expected {len(self.strides)}, one a scale (strides {', '.join(map(str, self.strides))}), "
                f"found {len(self.masks)}"
            )
        for mask in self.masks:
            if not mask or len(set(mask)) < len(mask) or not set(mask) <= set(range(len(self.anchors))):
                raise ValueError(
                    f"masks: expected different indices of the {len(self.anchors)} anchors, "
                    f"0 to {len(self.anchors) - 1}, found {list(mask)}"
                )
        return self


class YoloV3Spec(YoloSpec, title="YOLOv3"):
    """YOLOv3: Darknet-53 and three scales, three anchors each; 61.5 M parameters with 7 classes."""

    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    kind: Literal["yolov3"] = Field("yolov3", description=CHOSEN)
    anchors: tuple[Anchor, ...] = Field(YOLOV3_ANCHORS, description=_ANCHORS)
    masks: tuple[tuple[int, ...], ...] = Field(((0, 1, 2), (3, 4, 5), (6, 7, 8)), description=_MASKS)


class YoloV3TinySpec(YoloSpec, title="YOLOv3-tiny"):
    """YOLOv3-tiny: two scales, three anchors each; 8.7 M parameters with 7 classes.

    Published cfg files differ in the fine scale's mask: (0, 1, 2) or (1, 2, 3).
    """

    strides: ClassVar[tuple[int, ...]] = (16, 32)

    kind: Literal["yolov3-tiny"] = Field("yolov3-tiny", description=CHOSEN)
    anchors: tuple[Anchor, ...] = Field(STREET_ANCHORS, description=_ANCHORS)
    masks: tuple[tuple[int, ...], ...] = Field(((0, 1, 2), (3, 4, 5)), description=_MASKS)


class FcosLite0Spec(Frozen, title="FCOS, EfficientNet-Lite0"):
    """An anchor-free detector for laptops: FCOS (arXiv 1904.01355) over EfficientNet-Lite0; 3.1 M parameters.

    BatchNorm is folded into the backbone's convolutions, and the head has GroupNorm, so there are no running statistics
    that could differ between clients.
    """

    kind: Literal["fcos-lite0"] = Field("fcos-lite0", description=CHOSEN)
    width: int = Field(352, ge=64, le=2048, description="Width of the network's input in pixels; a multiple of 32.")
    height: int = Field(288, ge=64, le=2048, description="Height of the network's input in pixels; a multiple of 32.")
    weights: EfficientNetLite0Weights | RandomWeights = Field(
        EfficientNetLite0Weights(),
        title="Initial weights",
        discriminator="kind",
        description="Source of the backbone's weights in round 0.",
    )
    frozen_blocks: int = Field(
        3, ge=0, le=16, description="The stem and this many of the 16 blocks are not trained; 0 trains the stem too."
    )
    backbone_lr: float = Field(
        0.3, gt=0, le=1, description="Learning rate of the backbone, as a fraction of the optimiser's."
    )

    @model_validator(mode="after")
    def _check(self) -> FcosLite0Spec:
        check_input(self.width, self.height)
        if self.frozen_blocks and isinstance(self.weights, RandomWeights):
            raise ValueError(f"frozen_blocks: expected 0 with random weights, found {self.frozen_blocks}")
        return self


DetectorSpec = Annotated[YoloV3TinySpec | YoloV3Spec | FcosLite0Spec | FasterRcnnSpec, Field(discriminator="kind")]
