"""Write a data set in VisDrone's form for detection in images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tasks.data.export.parts import listed_regions, name_with_device, refuse_difficult, train_and_test, write_labels
from tasks.data.samples import ANY_CLASS, FederatedData, ImageSample
from tasks.data.visdrone import ANNOTATIONS, IGNORED, IMAGES
from tasks.errors import DataError
from tasks.spec.clients import ByName
from tasks.spec.data_forms import VISDRONE_CLASSES, VisDrone

_PUBLISHED = VisDrone(name="visdrone")


def write_visdrone(data: FederatedData, folder: Path) -> dict[str, Any]:
    """Write VisDrone's folders. Return the fields of ``data`` that read them, but no name.

    The names of training images begin with their device and an underscore; so do those of test images, unless there is
    one global test set. Boxes are rounded to whole pixels. The classes are categories from 1 on. An ignore region has
    score 0, and category 0 if it is of any class.

    Raises:
        DataError: there are more than ten classes, a device has an underscore, two images share a name, or an
            object is difficult.
    """
    if len(data.classes) > len(VISDRONE_CLASSES):
        raise DataError(
            f"expected at most {len(VISDRONE_CLASSES)} classes in VisDrone's form, found {len(data.classes)}"
        )
    train, test = train_and_test(data)
    refuse_difficult((sample for _, sample in (*train, *test)), "VisDrone")
    for part, items in ((_PUBLISHED.train, train), (_PUBLISHED.test, test)):
        for name in (IMAGES, ANNOTATIONS):
            (folder / part / name).mkdir(parents=True)
        for device, sample in items:
            image = Path(name_with_device(device, sample))
            shutil.copyfile(sample.path, folder / part / IMAGES / image)
            write_labels(folder / part / ANNOTATIONS / f"{image.stem}.txt", _lines(sample), sample)
    shared = bool(test) and test[0][0] is None
    clients = {"kind": "name", "pattern": ByName().pattern, "test": "global" if shared else "per-device"}
    return {"kind": _PUBLISHED.kind, "classes": list(data.classes), "clients": clients}


def _lines(sample: ImageSample) -> str:
    objects = [(1, label + 1, box) for label, box in zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True)]
    regions = [(0, IGNORED if label == ANY_CLASS else label + 1, box) for label, box in listed_regions(sample)]
    lines = []
    for score, category, box in (*objects, *regions):
        left, top, right, bottom = map(round, box)
        lines.append(f"{left},{top},{right - left},{bottom - top},{score},{category},0,0\n")
    return "".join(lines)
