"""Write a data set as YOLO folders, one for each device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.data.export.parts import refuse_regions
from tasks.data.samples import FederatedData, ImageSample, has_global_test_set
from tasks.errors import DataError


def write_yolo(data: FederatedData, folder: Path) -> dict[str, Any]:
    """Write a folder with a ``data.yaml`` for each device. Return the fields of ``data`` that read them, but no name.

    The paths are ``<device>/{data.yaml,images/train/,labels/train/}``. A global test set is in a folder of its own,
    ``test/``, which all files name; separate ones are in ``<device>/images/test``. An empty one is an empty list,
    ``test.txt``. The test set is also ``val``, because Ultralytics trains with one only.

    Raises:
        DataError: two images of a folder share a name, an object is difficult, or an image has ignore regions.
    """
    refuse_regions(data, "YOLO")
    shared = has_global_test_set(data)
    common = "test"
    while common in data.train:
        common += "-all"
    if shared:
        _write_images(next(iter(data.test.values())), folder / common, "test")
    for device, samples in data.train.items():
        _write_images(samples, folder / device, "train")
        test = f"../{common}/images/test" if shared else "images/test"
        if not data.test[device]:
            test = "test.txt"
            (folder / device / test).touch()
        elif not shared:
            _write_images(data.test[device], folder / device, "test")
        # JSON's texts and lists are YAML too.
        names = json.dumps(data.classes, ensure_ascii=False)
        text = f"train: images/train\nval: {test}\ntest: {test}\nnc: {len(data.classes)}\nnames: {names}\n"
        (folder / device / "data.yaml").write_text(text, encoding="utf-8")
    return {"kind": "yolo", "clients": {"kind": "folders"}}


def _write_images(samples: Sequence[ImageSample], folder: Path, part: str) -> None:
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
