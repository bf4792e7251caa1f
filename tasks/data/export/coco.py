"""Write a data set in COCO's form."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data.export.parts import Owned, plain, train_and_test
from tasks.data.samples import FederatedData
from tasks.data.truth import truth_of
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


def write_coco(data: FederatedData, folder: Path, files: CocoFiles = OWN_COCO) -> dict[str, Any]:
    """Write annotation files and images. Return the fields of ``data`` that read them, but no name.

    Each training image has a ``device``; so has each test image, unless there is one global test set. Ids start at 1,
    because pycocotools takes annotation 0 for no match. An ignore region is a crowd, one of each class if it is of any
    class. A difficult object is a crowd, too, because COCO's form has no other flag.

    Raises:
        DataError: two images share a file name.
    """
    train, test = train_and_test(data)
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
    return {"kind": "coco"}


def _coco_document(items: Owned, classes: Sequence[str]) -> dict[str, Any]:
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
                    "bbox": [plain(edge) for edge in (left, top, right - left, bottom - top)],
                    "area": plain((right - left) * (bottom - top)),
                    "iscrowd": int(is_crowd),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}
