"""What the readers of BDD100K, VisDrone and KITTI share: text files of labels, and the images that belong to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from os.path import splitext
from pathlib import Path

from tasks.data.entries import Faults, Parsed, read_bytes
from tasks.data.pixels import IMAGE_SUFFIXES
from tasks.data.voc_files import ImageFiles
from tasks.documents.text_number import read_decimal

# Pixels. Boxes of published sets extend beyond their images by fractions of a pixel.
SLACK = 1.0


def read_rows(root: Path, file: str, parsed: Parsed, faults: Faults) -> Iterator[tuple[str, str]]:
    """Yield the lines of a text file that are not empty, each with its place for messages. Report an unreadable file.

    The file is added to those of ``parsed``.
    """
    path = root / file
    data = read_bytes(path, faults)
    if data is None:
        return
    parsed.files.append((file, hashlib.sha256(data).hexdigest()))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.add_unread(f"{path}: expected text in UTF-8: {error}")
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield f"{path}: line {number}", line.strip()


def read_numbers(texts: Sequence[str]) -> list[float] | None:
    """Return the numbers, or None if one of the texts is none."""
    try:
        return [read_decimal(text) for text in texts]
    except ValueError:
        return None


def is_image(name: str) -> bool:
    """Return whether the name of a file ends as an image's."""
    return splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_called(stem: str, images: ImageFiles, at: str, faults: Faults) -> str | None:
    """Return the name of the image file that is called ``stem``, or report that there is not exactly one."""
    found = [name for name in images.by_stem.get(stem, []) if is_image(name)]
    if len(found) == 1:
        return found[0]
    have = f"found {' and '.join(found)}" if found else "found none"
    faults.add(f"{at}: expected one image called {stem} in {images.folder}, {have}")
    return None
