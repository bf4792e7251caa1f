"""Write a data set in the form of KITTI's object labels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.data.export.parts import (
    classes_unless_read,
    listed_regions,
    name_with_device,
    refuse_difficult,
    train_and_test,
    write_labels,
    write_text,
)
from tasks.data.kitti import DONT_CARE
from tasks.data.samples import ANY_CLASS, FederatedData, ImageSample
from tasks.errors import DataError
from tasks.spec.clients import ByName
from tasks.spec.data_forms import Kitti

_PUBLISHED = Kitti(name="kitti")
# What KITTI has where a value is not known: not truncated, visible, no angle; no size, place and angle in space.
_BEFORE, _AFTER = "0.00 0 -10", "-1 -1 -1 -1000 -1000 -1000 -10"
_REGION_BEFORE = "-1 -1 -10"  # as published


def write_kitti(data: FederatedData, folder: Path) -> dict[str, Any]:
    """Write KITTI's folders, and a list for each part. Return the fields of ``data`` that read them, but no name.

    The names of training images begin with their device and an underscore; so do those of test images, unless there is
    one global test set. Images keep their format. Boxes are rounded to hundredths of a pixel. An ignore region of any
    class, or of every class, is written as ``DontCare``.

    Raises:
        DataError: a class's name has a blank or is DontCare, a device has an underscore, two images share a name, an
            object is difficult, or an image has an ignore region of some classes only.
    """
    for name in data.classes:
        if name == DONT_CARE:
            raise DataError(f"class {name!r}: expected another name, because KITTI's form calls ignore regions so")
        if name.split() != [name]:
            raise DataError(f"class {name!r}: expected a name without blanks, which end it in KITTI's form")
    train, test = train_and_test(data)
    refuse_difficult((sample for _, sample in (*train, *test)), "KITTI")
    (folder / _PUBLISHED.images).mkdir(parents=True)
    for file, items in ((_PUBLISHED.train, train), (_PUBLISHED.test, test)):
        names = []
        for device, sample in items:
            image = Path(name_with_device(device, sample))
            names.append(image.stem)
            shutil.copyfile(sample.path, folder / _PUBLISHED.images / image)
            write_labels(folder / _PUBLISHED.labels / f"{image.stem}.txt", _lines(sample, data.classes), sample)
        write_text(folder / file, "".join(f"{name}\n" for name in names))
    shared = bool(test) and test[0][0] is None
    clients = {"kind": "name", "pattern": ByName().pattern, "test": "global" if shared else "per-device"}
    return {"kind": _PUBLISHED.kind, **classes_unless_read(data), "clients": clients}


def _lines(sample: ImageSample, classes: Sequence[str]) -> str:
    objects = zip(sample.labels.tolist(), sample.boxes.tolist(), strict=True)
    rows = [(classes[label], _BEFORE, tuple(box)) for label, box in objects]
    rows += [(DONT_CARE, _REGION_BEFORE, box) for box in _regions(sample, classes)]
    edges = [(name, before, " ".join(f"{edge:.2f}" for edge in box)) for name, before, box in rows]
    return "".join(f"{name} {before} {box} {_AFTER}\n" for name, before, box in edges)


def _regions(sample: ImageSample, classes: Sequence[str]) -> list[tuple[float, ...]]:
    """Return the boxes of the ignore regions, each of which must be of any class or of every class.

    Raises:
        DataError: a region is of some classes only.
    """
    labels: dict[tuple[float, ...], set[int]] = {}
    for label, edges in listed_regions(sample):
        labels.setdefault(tuple(edges), set()).add(label)
    for box, found in labels.items():
        if ANY_CLASS not in found and found != {*range(len(classes))}:
            names = ", ".join(classes[label] for label in sorted(found))
            raise DataError(
                f"{sample.path}: ignore region {', '.join(f'{edge:g}' for edge in box)}: expected one of any class, as "
                f"KITTI's {DONT_CARE} is, found one of {names}; the forms of COCO, BDD100K and VisDrone have such ones"
            )
    return [*labels]
