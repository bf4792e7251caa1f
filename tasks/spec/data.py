"""The data that a federation learns from. Data are given by name; each machine maps the name to its own folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tasks.spec.base import CHOSEN, AddedLater, Sha256
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
from tasks.spec.data_forms import Bdd100k, Kitti, VisDrone
from tasks.spec.data_parts import (
    POOLED_CLIENT,
    DataFields,
    DataName,
    Exif,
    FileFields,
    Holdout,
    InsideFolder,
    OwnDataFields,
)

__all__ = [
    "POOLED_CLIENT",
    "Bdd100k",
    "Coco",
    "DataSpec",
    "Exif",
    "FederatedStreet",
    "Holdout",
    "Kitti",
    "SyntheticStreet",
    "VisDrone",
    "VocFolders",
    "Yolo",
]


class SyntheticStreet(DataFields, title="Synthetic street"):
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


class FederatedStreet(FileFields, title="Federated Street"):
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


class VocFolders(OwnDataFields, title="PASCAL VOC"):
    """PASCAL VOC form: JPEGImages/, Annotations/ and ImageSets/Main/, in one folder or in one for each device."""

    kind: Literal["voc-folders"] = Field("voc-folders", description=CHOSEN)
    train: InsidePath = Field("train", description="Training images are listed in ImageSets/Main/<train>.txt.")
    test: InsidePath = Field("test", description="Test images are listed in ImageSets/Main/<test>.txt.")
    clients: VocClients = Field(ByFolder(), description="How devices get their images.")

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the numbers of a division's clients; None if the data must be read to know the devices."""
        return devices_of(self.clients)


class Coco(OwnDataFields, title="COCO"):
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


class Yolo(OwnDataFields, title="YOLO"):
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


# Data that people hold in files, of forms that other tools read too.
OwnData = VocFolders | Coco | Yolo | Bdd100k | VisDrone | Kitti
DataSpec = SyntheticStreet | FederatedStreet | OwnData
