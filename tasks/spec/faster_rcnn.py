"""Faster R-CNN (arXiv 1506.01497) over three backbones. Each is a kind of its own, because their fields differ."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tasks.spec.base import CHOSEN, Frozen
from tasks.spec.detector_parts import RandomWeights, TorchvisionHubWeights, TorchvisionWeights, check_input

# The default comes first (see tasks.spec.form).
FirstWeights = RandomWeights | TorchvisionWeights | TorchvisionHubWeights

_WIDTH = "Width of the network's input in pixels; a multiple of 32."
_HEIGHT = "Height of the network's input in pixels; a multiple of 32."
_TEST_PROPOSALS = "Number of an image's proposals that the box head scores in evaluation."
_SAMPLED = "Number of an image's proposals that the box head is trained on; at most a quarter of them are on objects."


class _FasterRcnn(Frozen):
    """The fields that the three kinds have in common."""

    # Number of first layers that are not trained if the weights come from a checkpoint and frozen_layers is left out.
    frozen_of_checkpoint: ClassVar[int]

    kind: str = Field(description=CHOSEN)
    width: int = Field(ge=64, le=2048, description=_WIDTH)
    height: int = Field(ge=64, le=2048, description=_HEIGHT)
    weights: FirstWeights = Field(
        RandomWeights(),
        title="Initial weights",
        discriminator="kind",
        description="Source of the weights of round 0.",
    )
    backbone_lr: float = Field(
        1.0, gt=0, le=1, description="Learning rate of the backbone, as a fraction of the optimiser's."
    )
    train_proposals: int = Field(
        2000, ge=1, le=10_000, description="Number of an image's proposals that the box head's training draws from."
    )
    test_proposals: int = Field(ge=1, le=10_000, description=_TEST_PROPOSALS)
    proposal_score: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Proposals under this objectness are dropped. torchvision's detector for 320 pixels uses 0.05, "
        "with which a detector that starts from scratch has no proposals.",
    )
    sampled_proposals: int = Field(ge=4, le=4096, description=_SAMPLED)
    frozen_layers: int | None

    @property
    def frozen(self) -> int:
        """Return the number of first layers of the backbone that are not trained."""
        if self.frozen_layers is not None:
            return self.frozen_layers
        return 0 if isinstance(self.weights, RandomWeights) else self.frozen_of_checkpoint

    @model_validator(mode="after")
    def _check(self) -> _FasterRcnn:
        check_input(self.width, self.height)
        if self.frozen_layers and isinstance(self.weights, RandomWeights):
            raise ValueError(f"frozen_layers: expected 0 with random weights, found {self.frozen_layers}")
        return self


class FasterRcnnVgg16Spec(_FasterRcnn, title="Faster R-CNN, VGG16"):
    """Faster R-CNN as published: VGG16, its fc6 and fc7 as box head, anchors of 128, 256 and 512 pixels.

    136.8 M parameters with 7 classes (547 MB). VGG16 has no normalisation; there is no dropout.
    """

    frozen_of_checkpoint: ClassVar[int] = 4

    kind: Literal["faster-rcnn-vgg16"] = Field("faster-rcnn-vgg16", description=CHOSEN)
    # Street's 704 x 576 at 733 x 600: the shorter side 600, the longer at most 1000; then to the nearest 32.
    width: int = Field(736, ge=64, le=2048, description=_WIDTH)
    height: int = Field(608, ge=64, le=2048, description=_HEIGHT)
    roi_pool: Literal["roi-pool", "roi-align"] = Field(
        "roi-pool", description="How a proposal is pooled to 7 x 7 values: by RoIPool, as published, or RoIAlign."
    )
    fc_width: int = Field(
        4096,
        ge=16,
        le=4096,
        description="Outputs of fc6 and fc7. With fewer than 4096, the weights of both are drawn, not loaded. With "
        "4096, fc6 makes up three quarters of an update.",
    )
    frozen_layers: int | None = Field(
        None,
        ge=0,
        le=13,
        description="Number of first convolutions that are not trained; left out, 4 with a checkpoint's weights, as "
        "published, and 0 with random ones.",
    )
    test_proposals: int = Field(300, ge=1, le=10_000, description=_TEST_PROPOSALS)
    sampled_proposals: int = Field(128, ge=4, le=4096, description=_SAMPLED)

    @model_validator(mode="after")
    def _check_vgg(self) -> FasterRcnnVgg16Spec:
        if isinstance(self.weights, TorchvisionHubWeights) and self.weights.trained_on == "coco":
            raise ValueError("weights.trained_on: expected imagenet, for torchvision has no VGG16 detector, found coco")
        return self


class FasterRcnnPyramidSpec(_FasterRcnn):
    """Faster R-CNN over a backbone with normalisation and a feature pyramid (arXiv 1612.03144)."""

    # Number of the backbone's stages, which frozen_layers counts.
    stages: ClassVar[int]

    norm: Literal["group-norm", "batch-norm", "frozen-batch-norm"] = Field(
        "group-norm",
        title="Normalisation",
        description="group-norm: no statistics that could differ between clients, for training from scratch; "
        "batch-norm: trained, and its statistics averaged like weights; frozen-batch-norm: fixed at a checkpoint's "
        "values, as torchvision does in fine-tuning.",
    )

    @model_validator(mode="after")
    def _check_norm(self) -> FasterRcnnPyramidSpec:
        random = isinstance(self.weights, RandomWeights)
        if random and self.norm == "frozen-batch-norm":
            raise ValueError(
                "norm: expected group-norm or batch-norm with random weights, for frozen statistics that nobody "
                "measured normalise nothing, found frozen-batch-norm"
            )
        if not random and self.norm == "group-norm":
            raise ValueError(
                "norm: expected frozen-batch-norm or batch-norm with the weights of a checkpoint, which was trained "
                "with BatchNorm, found group-norm"
            )
        return self


class FasterRcnnResNet50Spec(FasterRcnnPyramidSpec, title="Faster R-CNN, ResNet-50-FPN"):
    """torchvision's fasterrcnn_resnet50_fpn; 41.3 M parameters with 7 classes."""

    stages: ClassVar[int] = 5
    frozen_of_checkpoint: ClassVar[int] = 2

    kind: Literal["faster-rcnn-resnet50-fpn"] = Field("faster-rcnn-resnet50-fpn", description=CHOSEN)
    width: int = Field(736, ge=64, le=2048, description=_WIDTH)
    height: int = Field(608, ge=64, le=2048, description=_HEIGHT)
    frozen_layers: int | None = Field(
        None,
        ge=0,
        le=5,
        description="Number of first stages (stem, layer1 to layer4) that are not trained; left out, 2 with a "
        "checkpoint's weights, as in torchvision, and 0 with random ones.",
    )
    test_proposals: int = Field(1000, ge=1, le=10_000, description=_TEST_PROPOSALS)
    sampled_proposals: int = Field(512, ge=4, le=4096, description=_SAMPLED)


class FasterRcnnMobileNetV3Spec(FasterRcnnPyramidSpec, title="Faster R-CNN, MobileNetV3-320-FPN"):
    """torchvision's fasterrcnn_mobilenet_v3_large_320_fpn; 18.9 M parameters with 7 classes."""

    stages: ClassVar[int] = 6
    frozen_of_checkpoint: ClassVar[int] = 3

    kind: Literal["faster-rcnn-mobilenetv3-320-fpn"] = Field("faster-rcnn-mobilenetv3-320-fpn", description=CHOSEN)
    # Street's 704 x 576 at 391 x 320, to the nearest 32.
    width: int = Field(384, ge=64, le=2048, description=_WIDTH)
    height: int = Field(320, ge=64, le=2048, description=_HEIGHT)
    frozen_layers: int | None = Field(
        None,
        ge=0,
        le=6,
        description="Number of the first of six stages that are not trained; left out, 3 with a checkpoint's weights, "
        "as in torchvision, and 0 with random ones.",
    )
    test_proposals: int = Field(150, ge=1, le=10_000, description=_TEST_PROPOSALS)
    sampled_proposals: int = Field(512, ge=4, le=4096, description=_SAMPLED)


FasterRcnnSpec = FasterRcnnVgg16Spec | FasterRcnnResNet50Spec | FasterRcnnMobileNetV3Spec
