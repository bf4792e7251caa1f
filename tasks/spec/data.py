"""The data that a federation learns from. Data are given by name; each machine maps the name to its own folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from tasks.spec.base import CHOSEN, MOST, AddedLater, ClientId, Frozen, Sha256
from tasks.spec.clients import (
    ByField,
    ByFolder,
    CocoClients,
    Iid,
    InsidePath,
    VocClients,
    YoloClients,
    devices_of,
    numbered,
)

DataName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
# A path inside the data set's folder, or the folder itself.
InsideFolder = Annotated[str, StringConstraints(pattern=r"^(\.|[^\x00/\\.][^\x00/\\]*(/[^\x00/\\.][^\x00/\\]*)*)$")]
Exif = Literal["as-stored", "applied"]

# The one client of pooled data.
POOLED_CLIENT = "all"


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


class _Data(Frozen):
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

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the data set's devices in order, pooled or not; None if the data must be read to know them."""
        raise NotImplementedError

    @property
    def devices(self) -> tuple[str, ...] | None:
        """Return the clients' ids in order; None if the data must be read to know them."""
        if self.local_only is not None:
            return (self.local_only,)
        return (POOLED_CLIENT,) if self.pooled else self.own_devices

    @model_validator(mode="after")
    def _check_pooled(self) -> _Data:
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


class SyntheticStreet(_Data, title="Synthetic street"):
    """Drawn images of street cameras: fixed backgrounds, seven classes, non-IID devices, nested splits."""

    kind: Literal["synthetic-street"] = Field("synthetic-street", description=CHOSEN)
    split: Literal[5, 20] = Field(
        5, description="Number of devices; the 20 are parts of the 5, as in Federated Street."
    )
    train_images: int = Field(765, ge=40, le=100_000, description="Training images over all devices.")
    test_images: int = Field(191, ge=5, le=100_000, description="Test images in all.")
    test: Literal["global", "per-device"] = Field(
        "global", description="global: one test set for all clients; per-device: one for each, from its own camera."
    )
    width: int = Field(704, ge=64, le=4096, description="Image width in pixels.")
    height: int = Field(576, ge=64, le=4096, description="Image height in pixels.")
    seed: int = Field(7, ge=0, lt=2**32, description="Seed of the drawing; the same seed gives the same images.")

    @property
    def own_devices(self) -> tuple[str, ...]:
        """Return the cameras' numbers."""
        return numbered(self.split)


class _Files(_Data):
    """The fields that all data sets in files have in common."""

    exif: Annotated[Exif, AddedLater()] = Field(
        "as-stored",
        description="as-stored: pixels as they are in the file; applied: turned by the orientation in EXIF, as in most "
        "annotation tools and OpenCV. The boxes must fit this choice; fedbench data check counts which do.",
    )
    drop_duplicate_objects: Annotated[bool, AddedLater()] = Field(
        False, description="If objects of an image have the same class and box, read only the first of them."
    )


class FederatedStreet(_Files, title="Federated Street"):
    """Federated Street (arXiv 1910.11089) as published: 956 images, 7 classes."""

    kind: Literal["federated-street"] = Field("federated-street", description=CHOSEN)
    name: DataName = Field("street", description="Name that each machine maps to its own folder.")
    split: Literal[5, 20] = Field(5, description="5 reads device_2_id, 20 reads device_1_id.")
    form: Literal["json", "voc"] = Field(
        "json",
        description="json: train_label.json, test_label.json and Images/; voc: street_5/ or street_20/, with a "
        "PASCAL VOC folder for each device. The two have different content digests.",
    )
    division: Annotated[Literal["published", "clean"], AddedLater()] = Field(
        "published",
        description="published: training and test images as published, where 36 of the 191 test images are "
        "near-duplicates of a training image; clean: near-duplicates are together in training or together in test. "
        "Figures on the two divisions are not comparable.",
    )
    digest: Sha256 | None = Field(
        None, description="Content digest of the data set; left out, it is filled in when the run starts."
    )

    @property
    def own_devices(self) -> tuple[str, ...]:
        """Return the cameras' numbers."""
        return numbered(self.split)


class _OwnData(_Files):
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

    @model_validator(mode="after")
    def _check_classes(self) -> _OwnData:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes: expected each class once")
        return self


class VocFolders(_OwnData, title="PASCAL VOC"):
    """PASCAL VOC form: JPEGImages/, Annotations/ and ImageSets/Main/, in one folder or in one for each device."""

    kind: Literal["voc-folders"] = Field("voc-folders", description=CHOSEN)
    train: InsidePath = Field("train", description="Training images are listed in ImageSets/Main/<train>.txt.")
    test: InsidePath = Field("test", description="Test images are listed in ImageSets/Main/<test>.txt.")
    clients: VocClients = Field(ByFolder(), description="How devices get their images.")

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the numbers of a division's clients; None if the data must be read to know the devices."""
        return devices_of(self.clients)


class Coco(_OwnData, title="COCO"):
    """COCO form: an annotation file and a folder of images for each of training and test."""

    kind: Literal["coco"] = Field("coco", description=CHOSEN)
    train: InsidePath = Field("train.json", description="Annotations of the training images.")
    test: InsidePath = Field("test.json", description="Annotations of the test images.")
    train_images: InsideFolder = Field(
        "images", description="Folder of the training images; a dot: the data set's folder itself."
    )
    test_images: InsideFolder = Field(
        "images", description="Folder of the test images; a dot: the data set's folder itself."
    )
    clients: CocoClients = Field(ByField(), description="How devices get their images.")

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the numbers of a division's clients; None if the data must be read to know the devices."""
        return devices_of(self.clients)


class Yolo(_OwnData, title="YOLO"):
    """YOLO form as Ultralytics reads it: data.yaml, folders of images, and a text file of labels for each image."""

    kind: Literal["yolo"] = Field("yolo", description=CHOSEN)
    file: InsidePath = Field(
        "data.yaml",
        description="The file of classes and folders, from the data set's folder; where clients.kind is folders, from "
        "each device's folder.",
    )
    test: Literal["val", "test"] | None = Field(
        None,
        description="The images to score on. Left out: those of test where the file has that key, else those of val.",
    )
    classes: tuple[Annotated[str, StringConstraints(min_length=1)], ...] | None = Field(
        None,
        min_length=1,
        description="The classes, in order; any other class of an object is an error. Left out: the file's names, in "
        "their order.",
    )
    clients: YoloClients = Field(Iid(), description="How devices get their images.")

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the numbers of a division's clients; None if the data must be read to know the devices."""
        return devices_of(self.clients)


DataSpec = SyntheticStreet | FederatedStreet | VocFolders | Coco | Yolo
