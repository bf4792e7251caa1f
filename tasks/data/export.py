"""Write a data set in the forms that other tools read: COCO's JSON, and PASCAL VOC and YOLO folders by device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from tasks.data.samples import FederatedData, ImageSample, has_global_test_set
from tasks.data.voc import ANNOTATIONS, IMAGE_SETS, JPEG_IMAGES
from tasks.errors import DataError


@dataclass(frozen=True)
class CocoFiles:
    """Where COCO's form has its annotation files and folders of images."""

    train: str = "train.json"
    test: str = "test.json"
    train_images: str = "images"
    test_images: str = "images"


OWN_COCO = CocoFiles()
# The layout of COCO as published. val is the test set.
COCO_2017 = CocoFiles(
    "annotations/instances_train2017.json", "annotations/instances_val2017.json", "train2017", "val2017"
)


def write_coco(data: FederatedData, folder: Path, files: CocoFiles = OWN_COCO) -> None:
    """Write annotation files and images as ``data: {kind: coco}`` reads them without further fields.

    Each training image has a ``device``; so has each test image, unless there is one global test set. Ids start at 1,
    because pycocotools takes annotation 0 for no match.

    Raises:
        DataError: two images share a file name.
    """
    train = [(device, sample) for device, samples in data.train.items() for sample in samples]
    test: list[tuple[str | None, ImageSample]] = [(d, sample) for d, samples in data.test.items() for sample in samples]
    if has_global_test_set(data):
        test = [(None, sample) for sample in next(iter(data.test.values()))]
    contents: dict[str, str] = {}
    for _, sample in (*train, *test):
        if contents.setdefault(sample.path.name, sample.content) != sample.content:
            raise DataError(f"{sample.path}: expected a file name of its own in COCO's folder, found another image's")
    for file, images, items in ((files.train, files.train_images, train), (files.test, files.test_images, test)):
        for needed in ((folder / file).parent, folder / images):
            needed.mkdir(parents=True, exist_ok=True)
        document = _coco_document(items, data.classes)
        (folder / file).write_text(json.dumps(document), encoding="utf-8")
        for _, sample in items:
            shutil.copyfile(sample.path, folder / images / sample.path.name)


def _coco_document(items: Iterable[tuple[str | None, ImageSample]], classes: Sequence[str]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (device, sample) in enumerate(items, 1):
        image = {"id": number, "file_name": sample.path.name, "width": sample.width, "height": sample.height}
        images.append(image if device is None else image | {"device": device})
        crowd = [False] * len(sample.labels) if sample.difficult is None else sample.difficult.tolist()
        for label, box, is_crowd in zip(sample.labels.tolist(), sample.boxes.tolist(), crowd, strict=True):
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
    """
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


def write_yolo(data: FederatedData, folder: Path) -> None:
    """Write a folder with a ``data.yaml`` for each device, as ``clients: {kind: folders}`` of YOLO's form reads them.

    The paths are ``<device>/{data.yaml,images/train/,labels/train/}``. A global test set is in a folder of its own,
    ``test/``, which all files name; separate ones are in ``<device>/images/test``. An empty one is an empty list,
    ``test.txt``. The test set is also ``val``, because Ultralytics trains with one only.

    Raises:
        DataError: two images of a folder share a name, or an object is difficult, which the form cannot say.
    """
    shared = has_global_test_set(data)
    common = "test"
    while common in data.train:
        common += "-all"
    if shared:
        _write_yolo_images(next(iter(data.test.values())), folder / common, "test")
    for device, samples in data.train.items():
        _write_yolo_images(samples, folder / device, "train")
        test = f"../{common}/images/test" if shared else "images/test"
        if not data.test[device]:
            test = "test.txt"
            (folder / device / test).touch()
        elif not shared:
            _write_yolo_images(data.test[device], folder / device, "test")
        # JSON's texts and lists are YAML too.
        names = json.dumps(data.classes, ensure_ascii=False)
        text = f"train: images/train\nval: {test}\ntest: {test}\nnc: {len(data.classes)}\nnames: {names}\n"
        (folder / device / "data.yaml").write_text(text, encoding="utf-8")


def _write_yolo_images(samples: Sequence[ImageSample], folder: Path, part: str) -> None:
    images, labels = folder / "images" / part, folder / "labels" / part
    for needed in (images, labels):
        needed.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        if sample.difficult is not None and sample.difficult.any():
            raise DataError(f"{sample.path}: expected no difficult objects, because YOLO's form cannot mark them")
        label = labels / f"{sample.path.stem}.txt"
        if label.exists():
            raise DataError(f"{sample.path}: expected a file name of its own in YOLO's folder, found another image's")
        shutil.copyfile(sample.path, images / sample.path.name)
        lines = (
            f"{name} {_fractions(box, sample.width, sample.height)}\n"
            for name, box in zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True)
        )
        label.write_text("".join(lines), encoding="utf-8")


def _fractions(box: Sequence[float], width: int, height: int) -> str:
    """Return a box's centre and size as fractions, with digits enough to read the same box in 32 bits."""
    left, top, right, bottom = box
    values = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    return " ".join(f"{value:.15g}" for value in values)


# By the form's name on the command line; each reads without further fields but the classes' order.
WRITERS: dict[str, Callable[[FederatedData, Path], None]] = {
    "coco": write_coco,
    "coco2017": lambda data, folder: write_coco(data, folder, COCO_2017),
    "voc": write_voc,
    "yolo": write_yolo,
}
