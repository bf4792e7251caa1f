"""Find the files of a PASCAL VOC folder: the images that its lists name, and the image of each annotation."""

from __future__ import annotations

import codecs
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from tasks.data.entries import Faults, file_exists, inside, is_utf8, shown
from tasks.data.pixels import IMAGE_SUFFIXES, UNREADABLE
from tasks.documents.regular_file import open_regular

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_list(path: Path, data: bytes, annotated: Collection[str], faults: Faults) -> Iterator[str]:
    """Yield the names in a list of images whose file has the bytes ``data``. Report lines that are not a name.

    ``annotated`` are the names that have an annotation. A line may give a name with its file's suffix.
    """
    if data.startswith(_UTF16):
        faults.add(f"{path}: expected UTF-8, found UTF-16")
        return
    for number, line in enumerate(data.decode("utf-8-sig", errors="surrogateescape").splitlines(), 1):
        key, at = line.strip(), f"{path}: line {number}"
        if not key:
            continue
        stem, suffix = os.path.splitext(key)
        columns = key.split()
        if not is_utf8(key):
            faults.add(f"{at}: expected an image's name in UTF-8, found {shown(key)}")
        elif inside(key) != key or "/" in key:
            faults.add(f"{at}: expected an image's name, found {shown(key)}")
        elif key in annotated:
            yield key
        elif stem in annotated and suffix.lower() in {*IMAGE_SUFFIXES, ".xml"}:
            yield stem
        elif len(columns) > 1 and columns[0] in annotated:
            faults.add(
                f"{at}: expected an image's name alone, found columns, {shown(key)}; the lists of VOC's classes name "
                "every image, whether it has the class or not"
            )
        else:
            yield key


@dataclass(frozen=True)
class ImageFiles:
    """The files of a folder of images: their ``names``, and in ``by_stem`` the names by name without suffix."""

    folder: Path
    names: frozenset[str]
    by_stem: dict[str, list[str]]

    def of(self, key: str, filename: str, where: str, faults: Faults) -> str | None:
        """Return the image file of annotation ``key``: the file that ``filename`` names, else the one called ``key``.

        ``filename`` is the text of ``<filename>``. It may name a missing file, because tools rename and convert
        images. If it does, and several image files are called ``key``, report that and return None.
        """
        candidates = self._images(key)
        chosen = PurePosixPath(filename.strip().replace("\\", "/")).name
        if chosen in self.names:
            others = [name for name in candidates if name != chosen]
            if others:
                faults.notes.several_files.append(f"{where}: {chosen}, beside {' and '.join(others)}")
            return chosen
        if len(candidates) > 1:
            faults.add(
                f"{where}: expected one image, found {' and '.join(candidates)} in {self.folder}; name it in <filename>"
            )
            return None
        return candidates[0] if candidates else f"{key}.jpg"

    def _images(self, stem: str) -> list[str]:
        names = self.by_stem.get(stem, [])
        by_suffix = [name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]
        # A single file is taken for the image. If it is not one, the message that follows names it.
        return by_suffix or (names if len(names) < 2 else [name for name in names if _opens(self.folder / name)])


def list_images(folder: Path, faults: Faults) -> ImageFiles | None:
    """List a folder of images, or report that it cannot be read and return None."""
    try:
        with os.scandir(folder) as items:
            names = sorted(item.name for item in items if item.is_file() or file_exists(Path(item.path)))
    except OSError as error:
        faults.add_unread(f"{folder}: the folder of images cannot be read: {error.strerror}")
        return None
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    return ImageFiles(folder, frozenset(names), by_stem)


def _opens(path: Path) -> bool:
    try:
        with open_regular(path) as file, Image.open(file):
            return True
    except UNREADABLE:
        return False
