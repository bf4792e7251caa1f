"""How the bytes of an image file become pixels: one reading for training, evaluation, prediction, serving and checks.

Every image is read as RGB with 8 bits a channel. Of 16 bits the upper 8 are read (value // 256), in grey and in colour,
as Pillow and OpenCV read 16-bit colour. Wider integers and floats have no stated range and are refused.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from tasks.spec.data import Exif

# What Pillow raises on bad files.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Suffixes that are searched for in a folder. A file that an annotation names may have any suffix that Pillow reads.
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
UPRIGHT = 1

# By EXIF orientation: how to turn the stored pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_BACK = {**_TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_SIDEWAYS = frozenset({5, 6, 7, 8})

# Marks of PNG chunks with an orientation. These may follow the pixels, and Pillow decodes all pixels to find them.
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")
_WIDTH_TAG, _HEIGHT_TAG, _BITS_TAG = 256, 257, 258  # of TIFF

# A JPEG marker: 0xFF, and a byte that is neither stuffing within a scan (0) nor a restart (0xD0 to 0xD7).
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_START, _TEMPORARY, _SCAN, _END = 0xD8, 0x01, 0xDA, 0xD9
_LAST_BYTES = 4096


@dataclass(frozen=True)
class Header:
    """The properties of an image file that can be read without decoding its pixels.

    ``size`` is (width, height) of the stored pixels. ``orientation`` is EXIF's, 1 to 8, or 1 if the file has none.
    ``deep`` is True for more than 8 bits a channel. ``whole`` is False for a truncated JPEG.
    """

    size: tuple[int, int]
    orientation: int
    deep: bool
    whole: bool


def read_header(data: bytes) -> Header:
    """Read the header of the image file with these bytes. Nothing is decoded.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: Pillow cannot read it, or its pixels have no
            stated range.
    """
    with Image.open(io.BytesIO(data)) as image:
        _require_range(image)
        whole = image.format not in ("JPEG", "MPO") or _jpeg_is_whole(data)
        return Header(_stored_size(image), _orientation(image, data), _is_deep(image, data), whole)


def read_rgb(data: bytes, exif: Exif = "as-stored") -> Image.Image:
    """Decode these bytes to an image in mode RGB, with pixels as stored or turned by the EXIF orientation.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: Pillow cannot decode it, or its pixels have no
            stated range.
    """
    with Image.open(io.BytesIO(data)) as image:
        orientation = _orientation(image, data)
        turned_by_pillow = image.format == "TIFF"
        pixels = _eight_bits(image)
        # `convert` would copy an image that is RGB already.
        pixels.load()
        if pixels.mode != "RGB":
            pixels = pixels.convert("RGB")
    if turned_by_pillow == (exif == "applied"):
        return pixels
    turn = (_TURNS_BACK if turned_by_pillow else _TURNS).get(orientation)
    return pixels if turn is None else pixels.transpose(turn)


def has_orientation(data: bytes) -> bool:
    """Return whether the EXIF orientation of the image with these bytes turns or mirrors it.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: Pillow cannot read it.
    """
    with Image.open(io.BytesIO(data)) as image:
        return _orientation(image, data) != UPRIGHT


def turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the (width, height) of an image of stored ``size`` once its EXIF orientation is applied."""
    return size[::-1] if orientation in _SIDEWAYS else size


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG" and not any(name in data for name in _PNG_ORIENTATION):
        return UPRIGHT
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except (*UNREADABLE, struct.error):  # broken EXIF does not make the pixels unusable
        return UPRIGHT
    return found if found in _TURNS else UPRIGHT


def _stored_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":  # here Pillow's `size` is the turned one
        tags = image.tag_v2  # type: ignore[attr-defined]
        return int(tags[_WIDTH_TAG]), int(tags[_HEIGHT_TAG])
    return image.size


def _is_deep(image: Image.Image, data: bytes) -> bool:
    if image.format == "PNG":
        return data[24] > 8  # IHDR is the first chunk
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_TAG, (1,))) > 8  # type: ignore[attr-defined]
    return _has_sixteen_bits(image)


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Return whether the image is 16-bit grey. Pillow opens some such files as 32-bit.

    ``convert`` would clip their values at 255.
    """
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _require_range(image: Image.Image) -> None:
    if image.format == "EPS":
        raise ValueError("it is EPS, a program that Pillow would run with Ghostscript; write it as PNG or JPEG")
    if image.mode in ("I", "F") and not _has_sixteen_bits(image):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind}, which have no stated range; write it with 8 or 16 bits a channel")


def _eight_bits(image: Image.Image) -> Image.Image:
    _require_range(image)
    if not _has_sixteen_bits(image):
        return image
    return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))


def _jpeg_is_whole(data: bytes) -> bool:
    """Return whether the first image of a JPEG file has its end marker.

    Decoding would answer this too, but costs much more. Usually the marker is at the end of the file. If a camera
    appended a video or other data, the segments are skipped one by one, so that the end marker of a thumbnail in the
    header does not count.
    """
    if bytes((0xFF, _END)) in data[-_LAST_BYTES:]:
        return True
    position, scanned = 0, False
    while found := _MARKER.search(data, position):
        marker, position = found.group(1)[0], found.end()
        if marker == _END and scanned:
            return True
        scanned = scanned or marker == _SCAN
        if marker not in (_START, _TEMPORARY, _END):
            position += int.from_bytes(data[position : position + 2])  # a segment states its own length
    return False
