"""Reader of Federated Street in its published JSON form (Luo et al., arXiv 1910.11089).

A folder holds ``Images/<image_id>.jpg``, ``train_label.json`` and ``test_label.json``. An entry of the labels
is ``{"image_id": "000001", "device_1_id": "1", "device_2_id": "2", "items": [{"class": ..., "bbox": [4
strings]}]}``. The published description calls the keys ``device1_id`` and ``device2_id`` and swaps the splits: in
the files, ``device_1_id`` has 20 values (Street-20) and ``device_2_id`` has 5 (Street-5). Test entries have no device
and form one global test set. This reader also accepts test entries that all have a device, and then makes one test
set per device.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from tasks.data.assemble import assemble, check_devices, devices_in_all_or_none
from tasks.data.entries import Box, Entry, Faults, Parsed, Thing, check_box, file_exists, is_utf8, read_json, shown
from tasks.data.images import AS_STORED, Reading
from tasks.data.samples import FederatedData
from tasks.documents.text_number import read_decimal

TRAIN_LABELS, TEST_LABELS, IMAGES = "train_label.json", "test_label.json", "Images"
DEVICE_KEYS: dict[int, str] = {5: "device_2_id", 20: "device_1_id"}

_IMAGE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # part of a path, so neither slash nor leading dot


def load_street(
    root: Path,
    split: Literal[5, 20],
    *,
    name: str,
    expected_digest: str | None,
    faults: Faults | None = None,
    reading: Reading = AS_STORED,
) -> FederatedData:
    """Read labels and image headers; every image's bytes are read and hashed once, none is decoded.

    Clients are the devices "1" to "5" or "20", in numeric order. Classes are in alphabetical order. Boxes
    stay as published. If ``faults`` collects mistakes, the usable part is returned.

    Raises:
        DataError: a folder, file, key, class, box, device or image is missing or wrong, or the content is not
            the expected one; the message names the file and the image.
    """
    faults = faults or Faults()
    for path, kind in ((root, "folder"), (root / IMAGES, "folder"), (root / TRAIN_LABELS, "file"),
                       (root / TEST_LABELS, "file")):  # fmt: skip
        if not (path.is_dir() if kind == "folder" else file_exists(path)):
            needed = f"{IMAGES}/, {TRAIN_LABELS} and {TEST_LABELS}"
            faults.add(f"{path}: no such {kind}; data set {name!r} needs {needed}")
            return FederatedData(name=name, digest="", classes=(), train={}, test={})
    key = DEVICE_KEYS[split]
    train, train_hash = _read_labels(root / TRAIN_LABELS, key, faults)
    test, test_hash = _read_labels(root / TEST_LABELS, key, faults)
    devices = check_devices(
        train, test, f"{root / TRAIN_LABELS}: {key}", faults, [str(number) for number in range(1, split + 1)]
    )
    parsed = Parsed(
        train=train,
        test=test,
        classes=tuple(sorted({thing.name for entry in train for thing in entry.things})),
        files=[(TRAIN_LABELS, train_hash), (TEST_LABELS, test_hash)],
        lists=(TRAIN_LABELS, TEST_LABELS),
    )
    return assemble(root, parsed, faults, name=name, expected_digest=expected_digest, devices=devices, reading=reading)


def _read_labels(path: Path, device_key: str, faults: Faults) -> tuple[list[Entry], str]:
    """Return the entries of one label file, and the sha256 of the file."""
    document, digest = read_json(path, faults)
    if not digest:
        return [], digest
    if not isinstance(document, list) or not document:
        faults.add(f"{path}: expected a list of at least one image's labels, found {shown(document)}")
        return [], digest
    is_train = path.name == TRAIN_LABELS
    found = (_read_entry(path, number, item, device_key, is_train, faults) for number, item in enumerate(document, 1))
    entries = [entry for entry in found if entry is not None]
    return entries if is_train else devices_in_all_or_none(entries, device_key, faults), digest


def _read_entry(path: Path, number: int, item: Any, device_key: str, is_train: bool, faults: Faults) -> Entry | None:
    if not isinstance(item, dict):
        faults.add(f"{path}: entry {number}: expected a mapping with image_id and items, found {shown(item)}")
        return None
    if "image_id" not in item:
        faults.add(f"{path}: entry {number}: image_id: missing key")
        return None
    key = item["image_id"]
    if not isinstance(key, str) or not _IMAGE_ID.fullmatch(key):
        faults.add(f"{path}: entry {number}: image_id: expected a file name without .jpg, found {shown(key)}")
        return None
    where = f"{path}: image {key}"
    items = item.get("items")
    if not isinstance(items, list):
        problem = f"expected a list of objects, found {shown(items)}" if "items" in item else "missing key"
        faults.add(f"{where}: items: {problem}")
        items = []
    device = item.get(device_key)
    if device is None and is_train:
        faults.add(f"{where}: {device_key}: missing key; expected the device that the image came from")
    if device is not None and (isinstance(device, bool) or not isinstance(device, str | int)):
        faults.add(f"{where}: {device_key}: expected a device number, found {shown(device)}")
        device = None
    found = (_read_thing(f"{where}: object {position}", thing, faults) for position, thing in enumerate(items, 1))
    things = tuple(thing for thing in found if thing is not None)
    return Entry(where, key, f"{IMAGES}/{key}.jpg", None if device is None else str(device), things)


def _read_thing(at: str, item: Any, faults: Faults) -> Thing | None:
    if not isinstance(item, dict):
        faults.add(f"{at}: expected a mapping with class and bbox, found {shown(item)}")
        return None
    missing = [field for field in ("class", "bbox") if field not in item]
    if missing:
        faults.add(f"{at}: {missing[0]}: missing key")
        return None
    if not isinstance(item["class"], str) or not item["class"] or not is_utf8(item["class"]):
        faults.add(f"{at}: class: expected a name, found {shown(item['class'])}")
        return None
    box = _read_box(at, item["bbox"], faults)
    return None if box is None else Thing(at, item["class"], box)


def _read_box(at: str, value: Any, faults: Faults) -> Box | None:
    """Return a box of four finite numbers, published as strings, that enclose an area, or report it and return None."""
    try:
        if not isinstance(value, list) or len(value) != 4 or any(isinstance(number, bool) for number in value):
            raise ValueError
        box = [read_decimal(number) if isinstance(number, str) else float(number) for number in value]
    except (TypeError, ValueError, OverflowError):
        faults.add(f"{at}: bbox: expected four numbers xmin, ymin, xmax, ymax, found {shown(value)}")
        return None
    return check_box(f"{at}: bbox", box, faults)
