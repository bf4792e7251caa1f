"""Write a data set in the form of BDD100K's detection labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.data.bdd100k import NOT_EVALUATED
from tasks.data.export.parts import (
    Owned,
    classes_unless_read,
    listed_regions,
    plain,
    refuse_difficult,
    train_and_test,
    write_text,
)
from tasks.data.samples import ANY_CLASS, FederatedData, ImageSample
from tasks.spec.data_forms import Bdd100k

_PUBLISHED = Bdd100k(name="bdd100k")


def write_bdd100k(data: FederatedData, folder: Path) -> dict[str, Any]:
    """Write BDD100K's files and folders of images. Return the fields of ``data`` that read them, but no name.

    The attribute ``scene`` of a training image is its device; so is that of a test image, unless there is one global
    test set. An ignore region is an object with the attribute crowd, one of each class if it is of any class.

    Raises:
        DataError: an object is difficult.
    """
    train, test = train_and_test(data)
    refuse_difficult((sample for _, sample in (*train, *test)), "BDD100K")
    _write_part(folder, _PUBLISHED.train, _PUBLISHED.train_images, train, data.classes)
    _write_part(folder, _PUBLISHED.test, _PUBLISHED.test_images, test, data.classes)
    # Only classes that the specification names are read from categories that BDD100K does not evaluate.
    named = {"classes": list(data.classes)} if NOT_EVALUATED.keys() & {*data.classes} else classes_unless_read(data)
    return {"kind": _PUBLISHED.kind, **named}


def _write_part(folder: Path, file: str, images: str, items: Owned, classes: Sequence[str]) -> None:
    (folder / images).mkdir(parents=True)
    frames = []
    for device, sample in items:
        attributes = {"weather": "undefined", "timeofday": "undefined"}
        frame = {
            "name": sample.path.name,
            "attributes": attributes if device is None else attributes | {"scene": device},
            "timestamp": 10000,
        }
        labels = _labels(sample, classes)
        # As published, a frame without objects has no labels at all.
        frames.append(frame | {"labels": labels} if labels else frame)
        shutil.copyfile(sample.path, folder / images / sample.path.name)
    write_text(folder / file, json.dumps(frames))


def _labels(sample: ImageSample, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the objects, then the ignore regions."""
    found = [(label, box, False) for label, box in zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True)]
    for region, box in listed_regions(sample):
        found += [(label, box, True) for label in (range(len(classes)) if region == ANY_CLASS else [region])]
    return [
        {
            "id": str(number),
            "category": classes[label],
            "attributes": {"occluded": False, "truncated": False, "crowd": is_crowd},
            "box2d": dict(zip(("x1", "y1", "x2", "y2"), map(plain, box), strict=True)),
        }
        for number, (label, box, is_crowd) in enumerate(found)
    ]
