"""What readers of all forms share: an image as its annotation has it, mistakes, and the image's own file."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.data.samples import ImageSample
from tasks.errors import DataError

Box = tuple[float, float, float, float]

# What Pillow raises on bad files.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_END_OF_IMAGE = b"\xff\xd9"


class Faults:
    """Where readers report mistakes: the first one is raised, or all are collected (``collect=True``)."""

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self.errors: list[str] = []

    def add(self, message: str) -> None:
        """
        Raises:
            DataError: with ``message``, unless mistakes are collected.
        """
        if not self.collect:
            raise DataError(message)
        self.errors.append(message)


@dataclass(frozen=True)
class Thing:
    """An object as annotated; ``at`` is how messages name it."""

    at: str
    name: str
    box: Box
    difficult: bool = False


@dataclass(frozen=True)
class Entry:
    """One image as annotated, apart from its file: ``where`` is how messages name it, ``size`` its stated size.

    ``inside`` is the image's path from the data set's folder, with forward slashes: part of the content digest.
    """

    where: str
    key: str
    inside: str
    device: str | None
    things: tuple[Thing, ...]
    size: tuple[int, int] | None = None


@dataclass
class Parsed:
    """What a reader found before any image was opened.

    ``files`` are the label files and their sha256, in order; ``lists`` is how messages name the two lists of images.
    """

    train: list[Entry]
    test: list[Entry]
    classes: tuple[str, ...]
    files: list[tuple[str, str]]
    lists: tuple[str, str]


def read_bytes(path: Path, faults: Faults) -> bytes | None:
    """The file, or None with the mistake reported."""
    try:
        return path.read_bytes()
    except OSError as error:
        faults.add(f"{path}: cannot be read: {error.strerror}")
        return None


def read_json(path: Path, faults: Faults) -> tuple[Any, str]:
    """A JSON document and the file's sha256 (hex); (None, "") with the mistake reported."""
    data = read_bytes(path, faults)
    if data is None:
        return None, ""
    try:
        return json.loads(data), hashlib.sha256(data).hexdigest()
    except (ValueError, RecursionError) as error:
        faults.add(f"{path}: expected JSON: {error}")
        return None, ""


def check_box(at: str, box: Sequence[float], faults: Faults) -> Box | None:
    """xmin, ymin, xmax, ymax if they are finite and enclose an area, else None with the mistake reported."""
    left, top, right, bottom = box
    if not all(math.isfinite(edge) for edge in box):
        faults.add(f"{at}: expected four numbers xmin, ymin, xmax, ymax, found {left}, {top}, {right}, {bottom}")
    elif right <= left or bottom <= top:
        faults.add(
            f"{at}: expected xmin < xmax and ymin < ymax, found the empty box {left:g}, {top:g}, {right:g}, {bottom:g}"
        )
    else:
        return left, top, right, bottom
    return None


def read_image(
    root: Path, entry: Entry, classes: tuple[str, ...], faults: Faults, *, slack: float
) -> ImageSample | None:
    """The sample of an entry: its file is read and hashed, its header parsed, nothing decoded.

    An object of an unknown class or outside of the image is reported and left out. ``slack`` pixels outside are
    taken for rounding, and cut.
    """
    path = root / entry.inside
    opened = _header(entry, path, faults)
    if opened is None:
        return None
    width, height, content = opened
    if entry.size is not None and entry.size != (width, height):
        faults.add(
            f"{entry.where}: {path}: expected the annotation's {entry.size[0]} x {entry.size[1]} pixels, "
            f"found {width} x {height}"
        )
        return None
    boxes, labels, difficult = [], [], []
    for thing in entry.things:
        left, top, right, bottom = thing.box
        if thing.name not in classes:
            known = ", ".join(classes) or "(none)"
            faults.add(f"{entry.where}: class {thing.name!r} is in no training image; expected one of {known}")
        elif left < -slack or top < -slack or right > width + slack or bottom > height + slack:
            faults.add(
                f"{thing.at}: bbox: expected a box inside the image of "
                f"{width} x {height} pixels, found {left:g}, {top:g}, {right:g}, {bottom:g}"
            )
        else:
            boxes.append((max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)))
            labels.append(classes.index(thing.name))
            difficult.append(thing.difficult)
    return ImageSample(
        path=path,
        width=width,
        height=height,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        key=entry.key,
        content=content,
        difficult=np.array(difficult, dtype=np.bool_) if any(difficult) else None,
    )


def _header(entry: Entry, path: Path, faults: Faults) -> tuple[int, int, str] | None:
    """Width, height and the file's sha256 (hex)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        faults.add(f"{entry.where}: {path}: the image cannot be read: {error.strerror}")
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:  # the header only
            (width, height), kind = image.size, image.format
    except UNREADABLE as error:
        faults.add(f"{entry.where}: {path}: expected a readable image: {without_address(error)}")
        return None
    # A cut file still has a good header. Looking for JPEG's last marker costs nothing; decoding would.
    if kind == "JPEG" and _END_OF_IMAGE not in data[-4096:]:
        faults.add(f"{entry.where}: {path}: the image is truncated ({len(data)} bytes, no end-of-image marker)")
        return None
    return width, height, hashlib.sha256(data).hexdigest()


def inside(name: str) -> bool:
    """Whether ``name`` is a path that stays below the folder it is looked up in."""
    parts = name.split("/")
    return "\\" not in name and "\0" not in name and all(part not in ("", ".", "..") for part in parts)


def shown(value: Any) -> str:
    """``value`` in a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def without_address(error: BaseException) -> str:
    """Pillow's message, without the address of the buffer that it was given."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", " ".join(str(error).split()))


def natural(device: str) -> tuple[int, int, str]:
    """Sort key: device 10 after device 9; names that are no number come last."""
    return (0, int(device), device) if device.isascii() and device.isdecimal() else (1, 0, device)
