"""Write a data set in VisDrone's form for detection in images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tasks.data.export.parts import name_with_device, refuse_difficult, refuse_regions, train_and_test, write_text
from tasks.data.samples import FederatedData, ImageSample
from tasks.data.visdrone import ANNOTATIONS, IMAGES
from tasks.errors import DataError
from tasks.spec.clients import ByName
from tasks.spec.data_forms import VISDRONE_CLASSES, VisDrone

_PUBLISHED = VisDrone(name="visdrone")


def write_visdrone(data: FederatedData, folder: Path) -> dict[str, Any]:
    """Write VisDrone's folders. Return the fields of ``data`` that read them, but no name.

    The names of training images begin with their device and an underscore; so do those of test images, unless there is
    one global test set. Boxes are rounded to whole pixels. The classes are categories from 1 on.

    Raises:
        DataError: there are more than ten classes, a device has an underscore, an object is difficult, or an image has
            ignore regions.
    """
    refuse_regions(data, "VisDrone")
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
            write_text(folder / part / ANNOTATIONS / f"{image.stem}.txt", _lines(sample))
    shared = bool(test) and test[0][0] is None
    clients = {"kind": "name", "pattern": ByName().pattern, "test": "global" if shared else "per-device"}
    return {"kind": _PUBLISHED.kind, "classes": list(data.classes), "clients": clients}


def _lines(sample: ImageSample) -> str:
    lines = []
    for label, box in zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True):
        left, top, right, bottom = map(round, box)
        lines.append(f"{left},{top},{right - left},{bottom - top},1,{label + 1},0,0\n")
    return "".join(lines)
