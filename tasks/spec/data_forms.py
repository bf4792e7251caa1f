"""The published forms of data for driving and for drones: BDD100K, VisDrone and KITTI."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tasks.spec.base import CHOSEN
from tasks.spec.clients import (
    ByField,
    ByName,
    CocoClients,
    DividedClients,
    Iid,
    InsidePath,
    NameClients,
    devices_of,
)
from tasks.spec.data_parts import InsideFolder, OwnDataFields

# VisDrone's categories 1 to 10.
VISDRONE_CLASSES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
)  # fmt: skip


class Bdd100k(OwnDataFields, title="BDD100K"):
    """BDD100K's detection labels: a JSON list of frames, and a folder of images, for each of training and test."""

    kind: Literal["bdd100k"] = Field("bdd100k", description=CHOSEN)
    train: InsidePath = Field(
        "labels/det_20/det_train.json",
        description="Labels of the training images: a file, or a folder with a file for each image.",
    )
    test: InsidePath = Field(
        "labels/det_20/det_val.json",
        description="Labels of the test images: a file, or a folder with a file for each image.",
    )
    train_images: InsideFolder = Field(
        "images/100k/train", description="Folder of the training images; a dot: the data set's folder itself."
    )
    test_images: InsideFolder = Field(
        "images/100k/val", description="Folder of the test images; a dot: the data set's folder itself."
    )
    clients: CocoClients = Field(
        ByField(field="scene"),
        description="How devices get their images. A field is one of the frame's attributes, as weather, scene or "
        "timeofday; blanks and slashes in its value become hyphens.",
    )

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the numbers of a division's clients; None if the data must be read to know the devices."""
        return devices_of(self.clients)


class VisDrone(OwnDataFields, title="VisDrone"):
    """VisDrone's form for detection in images: a folder with images/ and annotations/ for each of training and test."""

    kind: Literal["visdrone"] = Field("visdrone", description=CHOSEN)
    train: InsideFolder = Field("VisDrone2019-DET-train", description="Folder of the training images' two folders.")
    test: InsideFolder = Field("VisDrone2019-DET-val", description="Folder of the test images' two folders.")
    classes: tuple[Annotated[str, StringConstraints(min_length=1)], ...] | None = Field(
        None,
        min_length=1,
        max_length=len(VISDRONE_CLASSES),
        description="Names of the categories 1, 2, 3, and so on. Left out: VisDrone's ten.",
    )
    clients: NameClients = Field(ByName(test="global"), description="How devices get their images.")

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the numbers of a division's clients; None if the data must be read to know the devices."""
        return devices_of(self.clients)


class Kitti(OwnDataFields, title="KITTI"):
    """KITTI's object labels: a text file for each image, and lists of the training and of the test images."""

    kind: Literal["kitti"] = Field("kitti", description=CHOSEN)
    train: InsidePath = Field("ImageSets/train.txt", description="List of the training images, a name in each line.")
    test: InsidePath = Field("ImageSets/val.txt", description="List of the test images, a name in each line.")
    images: InsideFolder = Field("training/image_2", description="Folder of all images.")
    labels: InsideFolder = Field("training/label_2", description="Folder of all label files.")
    clients: DividedClients = Field(
        Iid(), description="How devices get their images. KITTI's names of images say nothing of where they are from."
    )

    @property
    def own_devices(self) -> tuple[str, ...] | None:
        """Return the numbers of a division's clients; None if the data must be read to know the devices."""
        return devices_of(self.clients)
