"""Write a data set as PASCAL VOC folders, one for each device."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from tasks.data.export.parts import plain, refuse_regions
from tasks.data.samples import FederatedData, ImageSample
from tasks.data.voc import ANNOTATIONS, IMAGE_SETS, JPEG_IMAGES


def write_voc(data: FederatedData, folder: Path) -> dict[str, Any]:
    """Write a PASCAL VOC folder for each device. Return the fields of ``data`` that read them, but no name.

    Federated Street is also published in this form. The paths are
    ``<device>/{JPEGImages,Annotations,ImageSets/Main/{train,test}.txt}``. A global test set is written
    into each device's folder.

    Raises:
        DataError: an image has ignore regions.
    """
    refuse_regions(data, "PASCAL VOC")
    for device, samples in data.train.items():
        for part, items in (("train", samples), ("test", data.test[device])):
            _write_part(folder / device, part, items, data.classes)
    return {"kind": "voc-folders"}


def _write_part(folder: Path, part: str, samples: Sequence[ImageSample], classes: Sequence[str]) -> None:
    for name in (JPEG_IMAGES, ANNOTATIONS, IMAGE_SETS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for sample in samples:
        shutil.copyfile(sample.path, folder / JPEG_IMAGES / sample.path.name)
        document = ElementTree.ElementTree(_annotation(sample, classes))
        ElementTree.indent(document)
        document.write(folder / ANNOTATIONS / f"{sample.path.stem}.xml", encoding="utf-8")
    lines = "".join(f"{PurePosixPath(sample.path.name).stem}\n" for sample in samples)
    (folder / IMAGE_SETS / f"{part}.txt").write_text(lines, encoding="utf-8")


def _annotation(sample: ImageSample, classes: Sequence[str]) -> ElementTree.Element:
    def add(parent: ElementTree.Element, tag: str, value: object) -> None:
        ElementTree.SubElement(parent, tag).text = str(value)

    root = ElementTree.Element("annotation")
    add(root, "folder", JPEG_IMAGES)
    add(root, "filename", sample.path.name)
    size = ElementTree.SubElement(root, "size")
    for side, value in (("width", sample.width), ("height", sample.height), ("depth", 3)):
        add(size, side, value)
    difficult = [False] * len(sample.labels) if sample.difficult is None else sample.difficult.tolist()
    for label, box, hard in zip(sample.labels.tolist(), sample.boxes.tolist(), difficult, strict=True):
        thing = ElementTree.SubElement(root, "object")
        add(thing, "name", classes[label])
        add(thing, "difficult", int(hard))
        bounds = ElementTree.SubElement(thing, "bndbox")
        for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            add(bounds, edge, plain(value))
    return root
