"""Turn an annotated image into a sample: read and hash its file, and check its boxes against its size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.data.entries import Box, Entry, Faults, Thing, is_utf8, without_address
from tasks.data.notes import Oriented
from tasks.data.pixels import UNREADABLE, UPRIGHT, Header, read_header, turned
from tasks.data.samples import ANY_CLASS, ImageSample, Regions
from tasks.documents.regular_file import read_regular
from tasks.spec.data import Exif

# Fraction of the image's side. A shorter box can round to an empty one in 32 bits, here or when scaled to an input.
_SHORTEST = 2.0**-20


@dataclass(frozen=True)
class Reading:
    """How images and objects are read.

    A box up to ``slack`` outside its image counts as rounded, and is cut. ``slack`` is in pixels; for a normalized
    entry, in fractions of the image's sides.
    """

    exif: Exif = "as-stored"
    drop_duplicates: bool = False
    slack: float = 0.0


AS_STORED = Reading()


def read_image(
    root: Path, entry: Entry, classes: tuple[str, ...], faults: Faults, reading: Reading
) -> ImageSample | None:
    """Return the sample of an entry, or report why the image cannot be used and return None.

    The file is read and hashed and its header parsed; nothing is decoded. An object of an unknown class or outside the
    image is reported and left out. An object whose box is empty once cut and stored in 32 bits is noted and left out.
    """
    path = root / entry.inside
    opened = _header(entry, path, faults)
    if opened is None:
        return None
    header, content = opened
    if header.orientation != UPRIGHT:
        faults.notes.oriented.append(Oriented(str(path), header.orientation, header.size, entry.size))
    if header.deep:
        faults.notes.deep.append(str(path))
    turn = header.orientation if reading.exif == "applied" else UPRIGHT
    size = turned(header.size, turn)
    if entry.size is not None and entry.size != size:
        faults.add(
            f"{entry.where}: {path}: expected the annotation's {entry.size[0]} x {entry.size[1]} pixels, "
            f"found {size[0]} x {size[1]}{_other_reading(header, entry.size, reading.exif)}"
        )
        return None
    objects = _objects(entry, size, classes, faults, reading)
    difficult = [thing.difficult for thing, _ in objects]
    return ImageSample(
        path=path,
        width=size[0],
        height=size[1],
        boxes=np.array([box for _, box in objects], dtype=np.float32).reshape(-1, 4),
        labels=np.array([classes.index(thing.name) for thing, _ in objects], dtype=np.int64),
        key=entry.key,
        content=content,
        difficult=np.array(difficult, dtype=np.bool_) if any(difficult) else None,
        turn=turn,
        regions=_regions(entry, size, classes, faults),
    )


def _objects(
    entry: Entry, size: tuple[int, int], classes: tuple[str, ...], faults: Faults, reading: Reading
) -> list[tuple[Thing, Box]]:
    """Return the usable objects of an image of ``size``, with boxes cut to it and rounded to 32 bits."""
    width, height = size
    objects: list[tuple[Thing, Box]] = []
    seen: set[tuple[str, Box]] = set()
    for thing in entry.things:
        left, top, right, bottom = in_pixels(thing.box, size) if entry.normalized else thing.box
        if thing.name not in classes:
            _report_class(entry, thing.name, classes, faults)
            continue
        across, down = (reading.slack * width, reading.slack * height) if entry.normalized else (reading.slack,) * 2
        if left < -across or top < -down or right > width + across or bottom > height + down:
            faults.add(
                f"{thing.at}: bbox: expected a box inside the image of "
                f"{width} x {height} pixels, found {left:g}, {top:g}, {right:g}, {bottom:g}"
            )
            continue
        cut = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        box: Box = tuple(np.array(cut, dtype=np.float32).tolist())
        if box[2] - box[0] < width * _SHORTEST or box[3] - box[1] < height * _SHORTEST:
            faults.notes.emptied.append(thing.at)
            continue
        if (thing.name, box) in seen:
            faults.notes.duplicates.append(thing.at)
            if reading.drop_duplicates:
                continue
        seen.add((thing.name, box))
        objects.append((thing, box))
    return objects


def _report_class(entry: Entry, name: str, classes: tuple[str, ...], faults: Faults) -> None:
    """Report an unknown class, unless there is no class at all because of a mistake that is reported already."""
    if classes or not faults.errors:
        known = ", ".join(classes) or "(none)"
        faults.add(f"{entry.where}: class {name!r} is in no training image; expected one of {known}")


def in_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Return a box of fractions in pixels of an image of ``size``.

    It is rounded to 1e-9 pixels: without that, an edge at 0 would be at 1e-14, because fractions are not exact.
    """
    width, height = size
    left, top, right, bottom = (
        round(edge * side, 9) + 0.0  # -0.0 becomes 0.0, so that digests of equal boxes are equal
        for edge, side in zip(box, (width, height, width, height), strict=True)
    )
    return left, top, right, bottom


def _regions(entry: Entry, size: tuple[int, int], classes: tuple[str, ...], faults: Faults) -> Regions | None:
    """Return the ignore regions of an image of ``size``, cut to it, or None if none of them has an area there.

    Report a region of an unknown class and leave it out.
    """
    width, height = size
    found: list[tuple[Box, int]] = []
    for region in entry.regions:
        if region.name is not None and region.name not in classes:
            _report_class(entry, region.name, classes, faults)
            continue
        left, top, right, bottom = in_pixels(region.box, size) if entry.normalized else region.box
        cut = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
        box: Box = tuple(np.array(cut, dtype=np.float32).tolist())
        if box[2] - box[0] >= width * _SHORTEST and box[3] - box[1] >= height * _SHORTEST:
            found.append((box, ANY_CLASS if region.name is None else classes.index(region.name)))
    if not found:
        return None
    return Regions(
        np.array([box for box, _ in found], dtype=np.float32), np.array([label for _, label in found], dtype=np.int64)
    )


def _header(entry: Entry, path: Path, faults: Faults) -> tuple[Header, str] | None:
    """Return the image's header and the file's sha256 (hex), or report what is wrong and return None."""
    if not is_utf8(entry.inside):
        faults.add(f"{entry.where}: expected a file name in UTF-8, found {entry.inside!r}: rename the file")
        return None
    try:
        data = read_regular(path)
    except OSError as error:
        faults.add(f"{entry.where}: {path}: the image cannot be read: {error.strerror}")
        return None
    try:
        header = read_header(data)
    except UNREADABLE as error:
        faults.add(f"{entry.where}: {path}: expected a readable image: {without_address(error)}")
        return None
    if not header.whole:
        faults.add(f"{entry.where}: {path}: the image is truncated ({len(data)} bytes, no end-of-image marker)")
        return None
    return header, hashlib.sha256(data).hexdigest()


def _other_reading(header: Header, stated: tuple[int, int], exif: Exif) -> str:
    """Return advice for the message if the other setting of ``data.exif`` gives the annotation's size, else ""."""
    other: Exif = "as-stored" if exif == "applied" else "applied"
    found = turned(header.size, header.orientation if other == "applied" else UPRIGHT)
    if found != stated:
        return ""
    return f"; its EXIF orientation is {header.orientation}, and data.exif={other} reads it in the annotation's size"
