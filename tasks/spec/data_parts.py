"""The fields that the kinds of data have in common."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from tasks.spec.base import MOST, AddedLater, ClientId, Frozen, Sha256
from tasks.spec.label_space import LabelSpace, label_space_faults

DataName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
# A path inside the data set's folder, or the folder itself.
InsideFolder = Annotated[str, StringConstraints(pattern=r"^(\.|[^\x00/\\.][^\x00/\\]*(/[^\x00/\\.][^\x00/\\]*)*)$")]
Exif = Literal["as-stored", "applied"]

# The one client of pooled data.
POOLED_CLIENT = "all"

UNLABELLED_SCORE = 0.1


class Holdout(Frozen, title="Held-out images"):
    """Training images of each client that it keeps out of training, to be scored on beside the test set.

    They are drawn for each client by itself, from the seed and the client's id. Near-duplicates stay together.
    """

    fraction: float = Field(
        0.2, gt=0, le=0.5, description="Part of each client's training images, up to near-duplicates."
    )
    seed: int = Field(1, ge=0, lt=2**32, description="Seed of the draw.")
    least: int = Field(
        10, ge=1, le=MOST, description="A client with fewer held-out images is not scored on them; it has no figure."
    )


class DataFields(Frozen):
    """The fields that all kinds of data have in common."""

    pooled: Annotated[bool, AddedLater()] = Field(
        False, description="Train on all devices' images at one client, named all: the centralised reference."
    )
    pooled_devices: Annotated[tuple[ClientId, ...] | None, AddedLater(along_with="pooled")] = Field(
        None, min_length=1, description="Devices whose images are pooled; left out, every device of the data set."
    )
    local_only: Annotated[ClientId | None, AddedLater()] = Field(
        None,
        description="Train on this device's images alone, score on all test images: the local-only reference.",
    )
    holdout: Annotated[Holdout | None, AddedLater()] = Field(
        None,
        title="Held-out images",
        description="Training images that each client keeps out of training, for evaluation.on and for the figures of "
        "its own model. Left out: none.",
    )
    label_space: Annotated[LabelSpace | None, AddedLater()] = Field(
        None,
        description="The classes that a device labels, by device; a device that is not named labels all. Objects of "
        "other classes in its images are unlabelled, and not background. Left out: every device labels all classes.",
    )
    unlabelled_score: Annotated[float, AddedLater(along_with="label_space")] = Field(
        UNLABELLED_SCORE,
        gt=0,
        lt=1,
        description="With label_space: where the round's global model finds an unlabelled class with a higher score, "
        "YOLO and Faster R-CNN do not learn that there is no object.",
    )

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the data set's devices in order, pooled or not; None if the data must be read to know them."""
        raise NotImplementedError

    @property
    def own_classes(self) -> tuple[str, ...] | None:
        """Return the data set's classes in order; None if the data must be read to know them."""
        return None

    @property
    def devices(self) -> tuple[str, ...] | None:
        """Return the clients' ids in order; None if the data must be read to know them."""
        if self.local_only is not None:
            return (self.local_only,)
        return (POOLED_CLIENT,) if self.pooled else self.own_devices

    @model_validator(mode="after")
    def _check_pooled(self) -> DataFields:
        own, alone = self.own_devices, self.local_only
        if alone is not None and self.pooled:
            raise ValueError("local_only: expected none where pooled is true")
        if alone is not None and own is not None and alone not in own:
            raise ValueError(f"local_only: expected a device of the data set, {own[0]} to {own[-1]}, found {alone}")
        chosen = self.pooled_devices
        if chosen is None:
            return self
        if not self.pooled:
            raise ValueError("pooled_devices: expected none unless pooled is true")
        if len(set(chosen)) < len(chosen):
            raise ValueError("pooled_devices: expected each device once")
        unknown = [device for device in chosen if own is not None and device not in own]
        if own is not None and unknown:
            raise ValueError(
                f"pooled_devices: expected devices of the data set, {own[0]} to {own[-1]}, found {', '.join(unknown)}"
            )
        return self

    @model_validator(mode="after")
    def _check_label_space(self) -> DataFields:
        if self.label_space is None:
            if self.unlabelled_score != UNLABELLED_SCORE:
                raise ValueError("unlabelled_score: expected none unless label_space is set")
            return self
        faults = list(label_space_faults(self.label_space, devices=self.own_devices, classes=self.own_classes))
        if faults:
            raise ValueError("\n".join(faults))
        return self


class FileFields(DataFields):
    """The fields that all data sets in files have in common."""

    exif: Annotated[Exif, AddedLater()] = Field(
        "as-stored",
        description="as-stored: pixels as they are in the file; applied: turned by the orientation in EXIF, as in most "
        "annotation tools and OpenCV. The boxes must fit this choice; fedbench data check counts which do.",
    )
    drop_duplicate_objects: Annotated[bool, AddedLater()] = Field(
        False, description="If objects of an image have the same class and box, read only the first of them."
    )


class OwnDataFields(FileFields):
    name: DataName = Field(description="Name that each machine maps to its own folder, in the setting data_roots.")
    digest: Sha256 | None = Field(
        None, description="Content digest of the data set; left out, it is filled in when the run starts."
    )
    classes: tuple[Annotated[str, StringConstraints(min_length=1)], ...] | None = Field(
        None,
        min_length=1,
        description="The classes, in order; any other class in the files is an error. Left out: the classes in the "
        "training annotations (in COCO, their categories), in alphabetical order.",
    )

    @property
    def own_classes(self) -> tuple[str, ...] | None:
        """Return the classes that the specification names."""
        return self.classes

    @model_validator(mode="after")
    def _check_classes(self) -> OwnDataFields:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: expected each class once")
        return self
