"""Reader of Federated Street in its published JSON form (Luo et al., arXiv 1910.11089).

A folder holds ``Images/<image_id>.jpg``, ``train_label.json`` and ``test_label.json``. An entry of the labels
is ``{"image_id": "000001", "device_1_id": "1", "device_2_id": "2", "items": [{"class": ..., "bbox": [4
strings]}]}``. The published description calls the keys ``device1_id`` and ``device2_id`` and has the splits
the other way round: in the files ``device_1_id`` has 20 values (Street-20) and ``device_2_id`` has 5
(Street-5). Test entries have no device: one global test set. This reader also takes test entries that all
carry a device: a test set per device.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tasks.data.samples import FederatedData, ImageSample
from tasks.errors import DataError

TRAIN_LABELS, TEST_LABELS, IMAGES = "train_label.json", "test_label.json", "Images"
DEVICE_KEYS: dict[int, str] = {5: "device_2_id", 20: "device_1_id"}

_IMAGE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # part of a path, so neither slash nor leading dot
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)  # what Pillow raises on bad files
_END_OF_IMAGE = b"\xff\xd9"


@dataclass(frozen=True)
class _Entry:
    """One entry of a label file, checked apart from its image."""

    where: str
    key: str
    device: str | None
    names: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]


def load_street(root: Path, split: Literal[5, 20], *, name: str, expected_digest: str | None) -> FederatedData:
    """Read labels and image headers; every image's bytes are read and hashed once, none is decoded.

    Clients are the devices "1" to "5" or "20", in numeric order. Classes are in alphabetical order. Boxes
    stay as published.

    Raises:
        DataError: a folder, file, key, class, box, device or image is missing or wrong, or the content is not
            the expected one; the message names the file and the image.
    """
    for path, kind in ((root, "folder"), (root / IMAGES, "folder"), (root / TRAIN_LABELS, "file"),
                       (root / TEST_LABELS, "file")):  # fmt: skip
        if not (path.is_dir() if kind == "folder" else path.is_file()):
            needed = f"{IMAGES}/, {TRAIN_LABELS} and {TEST_LABELS}"
            raise DataError(f"{path}: no such {kind}; data set {name!r} needs {needed}")
    train_entries, train_hash = _read_labels(root / TRAIN_LABELS, DEVICE_KEYS[split])
    test_entries, test_hash = _read_labels(root / TEST_LABELS, DEVICE_KEYS[split])
    _refuse_repeated(train_entries, test_entries)
    classes = tuple(sorted({label for entry in train_entries for label in entry.names}))
    _refuse_unknown_classes(test_entries, classes)
    devices = _check_devices(root, split, train_entries, test_entries)

    samples = {entry.key: _read_image(root, entry, classes) for entry in (*train_entries, *test_entries)}
    lines = [f"{TRAIN_LABELS} {train_hash}", f"{TEST_LABELS} {test_hash}"]
    lines += [f"{IMAGES}/{key}.jpg {samples[key].content}" for key in sorted(samples)]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise DataError(
            f"{root}: data set {name!r} is not the one that was asked for: expected content digest "
            f"{expected_digest}, found {digest}"
        )

    train = {d: tuple(samples[e.key] for e in train_entries if e.device == d) for d in devices}
    if any(entry.device is not None for entry in test_entries):
        test = {d: tuple(samples[e.key] for e in test_entries if e.device == d) for d in devices}
    else:
        shared = tuple(samples[entry.key] for entry in test_entries)
        test = dict.fromkeys(devices, shared)
    return FederatedData(name=name, digest=digest, classes=classes, train=train, test=test)


def _read_labels(path: Path, device_key: str) -> tuple[list[_Entry], str]:
    """The entries of one label file, and the sha256 of the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected JSON: {error}") from None
    if not isinstance(document, list) or not document:
        raise DataError(f"{path}: expected a list of at least one image's labels, found {_shown(document)}")
    is_train = path.name == TRAIN_LABELS
    entries = [_read_entry(path, number, item, device_key, is_train) for number, item in enumerate(document, 1)]
    without = next((entry for entry in entries if entry.device is None), None)
    if without is not None and any(entry.device is not None for entry in entries):
        raise DataError(
            f"{without.where}: {device_key}: missing key; expected it in every test image "
            "(a test set per device) or in none (one global test set)"
        )
    return entries, hashlib.sha256(data).hexdigest()


def _read_entry(path: Path, number: int, item: Any, device_key: str, is_train: bool) -> _Entry:
    if not isinstance(item, dict):
        raise DataError(f"{path}: entry {number}: expected a mapping with image_id and items, found {_shown(item)}")
    if "image_id" not in item:
        raise DataError(f"{path}: entry {number}: image_id: missing key")
    key = item["image_id"]
    if not isinstance(key, str) or not _IMAGE_ID.fullmatch(key):
        raise DataError(f"{path}: entry {number}: image_id: expected a file name without .jpg, found {_shown(key)}")
    where = f"{path}: image {key}"
    if "items" not in item:
        raise DataError(f"{where}: items: missing key")
    if not isinstance(item["items"], list):
        raise DataError(f"{where}: items: expected a list of objects, found {_shown(item['items'])}")
    device = item.get(device_key)
    if device is None and is_train:
        raise DataError(f"{where}: {device_key}: missing key; expected the device that the image came from")
    if device is not None and (isinstance(device, bool) or not isinstance(device, str | int)):
        raise DataError(f"{where}: {device_key}: expected a device number, found {_shown(device)}")
    names, boxes = [], []
    for position, thing in enumerate(item["items"], 1):
        at = f"{where}: object {position}"
        if not isinstance(thing, dict):
            raise DataError(f"{at}: expected a mapping with class and bbox, found {_shown(thing)}")
        for field in ("class", "bbox"):
            if field not in thing:
                raise DataError(f"{at}: {field}: missing key")
        if not isinstance(thing["class"], str) or not thing["class"]:
            raise DataError(f"{at}: class: expected a name, found {_shown(thing['class'])}")
        names.append(thing["class"])
        boxes.append(_read_box(at, thing["bbox"]))
    return _Entry(where, key, None if device is None else str(device), tuple(names), tuple(boxes))


def _read_box(at: str, value: Any) -> tuple[float, float, float, float]:
    """Four finite numbers, published as strings, that enclose an area."""
    problem = DataError(f"{at}: bbox: expected four numbers xmin, ymin, xmax, ymax, found {_shown(value)}")
    if not isinstance(value, list) or len(value) != 4 or any(isinstance(number, bool) for number in value):
        raise problem
    try:
        left, top, right, bottom = (float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        raise problem from None
    if not all(math.isfinite(number) for number in (left, top, right, bottom)):
        raise problem
    if right <= left or bottom <= top:
        raise DataError(f"{at}: bbox: expected xmin < xmax and ymin < ymax, found {_shown(value)}")
    return left, top, right, bottom


def _refuse_repeated(train: Sequence[_Entry], test: Sequence[_Entry]) -> None:
    """An image listed twice has two truths; one in both files would be tested on what was trained on."""
    seen: dict[str, str] = {}
    for file, entries in ((TRAIN_LABELS, train), (TEST_LABELS, test)):
        for entry in entries:
            if entry.key in seen:
                raise DataError(f"{entry.where}: expected every image once, found it in {seen[entry.key]} already")
            seen[entry.key] = file


def _refuse_unknown_classes(test: Sequence[_Entry], classes: tuple[str, ...]) -> None:
    for entry in test:
        for name in entry.names:
            if name not in classes:
                known = ", ".join(classes) or "(none)"
                raise DataError(f"{entry.where}: class {name!r} is in no training image; expected one of {known}")


def _check_devices(root: Path, split: int, train: Sequence[_Entry], test: Sequence[_Entry]) -> list[str]:
    devices = [str(number) for number in range(1, split + 1)]
    for entry in (*train, *test):
        if entry.device is not None and entry.device not in devices:
            raise DataError(
                f"{entry.where}: {DEVICE_KEYS[split]}: expected a device from 1 to {split}, found {entry.device!r}"
            )
    present = {entry.device for entry in train}
    missing = [device for device in devices if device not in present]
    if missing:
        raise DataError(
            f"{root / TRAIN_LABELS}: {DEVICE_KEYS[split]}: no images of device {', '.join(missing)}; "
            f"expected some of each device from 1 to {split}"
        )
    return devices


def _read_image(root: Path, entry: _Entry, classes: tuple[str, ...]) -> ImageSample:
    path = root / IMAGES / f"{entry.key}.jpg"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{entry.where}: {path}: the image cannot be read: {error.strerror}") from None
    try:
        with Image.open(io.BytesIO(data)) as image:  # the header only
            (width, height), kind = image.size, image.format
    except _UNREADABLE as error:
        raise DataError(f"{entry.where}: {path}: expected a readable image: {_without_address(error)}") from None
    # A cut file still has a good header. Looking for JPEG's last marker costs nothing; decoding would.
    if kind == "JPEG" and _END_OF_IMAGE not in data[-4096:]:
        raise DataError(f"{entry.where}: {path}: the image is truncated ({len(data)} bytes, no end-of-image marker)")
    for position, (left, top, right, bottom) in enumerate(entry.boxes, 1):
        # Nothing is clipped: all published boxes lie in [1, width] x [1, height], so any other is a mistake.
        if left < 0 or top < 0 or right > width or bottom > height:
            raise DataError(
                f"{entry.where}: object {position}: bbox: expected a box inside the image of "
                f"{width} x {height} pixels, found {left:g}, {top:g}, {right:g}, {bottom:g}"
            )
    return ImageSample(
        path=path,
        width=width,
        height=height,
        boxes=np.array(entry.boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array([classes.index(name) for name in entry.names], dtype=np.int64),
        key=entry.key,
        content=hashlib.sha256(data).hexdigest(),
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _without_address(error: BaseException) -> str:
    """Pillow's message, without the address of the buffer that it was given."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", " ".join(str(error).split()))
