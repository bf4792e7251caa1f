"""Write a data set in the forms that other tools read: COCO's JSON, and PASCAL VOC folders by device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from tasks.data.samples import FederatedData, ImageSample, has_global_test_set
from tasks.data.voc import ANNOTATIONS, IMAGE_SETS, JPEG_IMAGES
from tasks.errors import DataError
from tasks.metrics.truth import truth_of


def write_coco(data: FederatedData, folder: Path) -> None:
    """Write ``train.json``, ``test.json`` and ``images/`` as ``data: {kind: coco}`` reads them by default.

    Each training image has a ``device``; so has each test image, unless there is one global test set. Ids start at 1,
    because pycocotools takes annotation 0 for no match. An ignore region is a crowd, one of each class if it is of any
    class. A difficult object is a crowd, too, because COCO's form has no other flag.

    Raises:
        DataError: two images share a file name.
    """
    (folder / "images").mkdir(parents=True)
    train = [(device, sample) for device, samples in data.train.items() for sample in samples]
    test: list[tuple[str | None, ImageSample]] = [(d, sample) for d, samples in data.test.items() for sample in samples]
    if has_global_test_set(data):
        test = [(None, sample) for sample in next(iter(data.test.values()))]
    contents: dict[str, str] = {}
    for _, sample in (*train, *test):
        if contents.setdefault(sample.path.name, sample.content) != sample.content:
            raise DataError(f"{sample.path}: expected a file name of its own in COCO's folder, found another image's")
    for file, items in (("train.json", train), ("test.json", test)):
        document = _coco_document(items, data.classes)
        (folder / file).write_text(json.dumps(document), encoding="utf-8")
        for _, sample in items:
            shutil.copyfile(sample.path, folder / "images" / sample.path.name)


def _coco_document(items: Iterable[tuple[str | None, ImageSample]], classes: Sequence[str]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (device, sample) in enumerate(items, 1):
        image = {"id": number, "file_name": sample.path.name, "width": sample.width, "height": sample.height}
        images.append(image if device is None else image | {"device": device})
        boxes, labels, difficult = truth_of(sample, len(classes))
        crowd = [False] * len(labels) if difficult is None else difficult.tolist()
        for label, box, is_crowd in zip(labels.tolist(), boxes.tolist(), crowd, strict=True):
            left, top, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [_plain(edge) for edge in (left, top, right - left, bottom - top)],
                    "area": _plain((right - left) * (bottom - top)),
                    "iscrowd": int(is_crowd),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_voc(data: FederatedData, folder: Path) -> None:
    """Write a PASCAL VOC folder for each device, a form in which Federated Street is also published.

    The paths are ``<device>/{JPEGImages,Annotations,ImageSets/Main/{train,test}.txt}``. A global test set is written
    into each device's folder.

    Raises:
        DataError: an image has ignore regions, for which the form has no place.
    """
    for sample in (sample for part in (data.train, data.test) for own in part.values() for sample in own):
        if sample.regions is not None and len(sample.regions):
            raise DataError(
                f"{sample.path}: expected no ignore regions, for which PASCAL VOC's form has no place, "
                f"found {len(sample.regions)}; COCO's form has crowds"
            )
    for device, samples in data.train.items():
        for part, items in (("train", samples), ("test", data.test[device])):
            _write_voc_part(folder / device, part, items, data.classes)


def _write_voc_part(folder: Path, part: str, samples: Sequence[ImageSample], classes: Sequence[str]) -> None:
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
            add(bounds, edge, _plain(value))
    return root


def _plain(value: float) -> int | float:
    """Return a whole number as an int, because both forms usually write it without a point."""
    return int(value) if value.is_integer() else value
