"""Read a YOLO data set's data.yaml and lists of images.

The rules are those of Ultralytics (``check_det_dataset``, ``img2label_paths``), except that no path leaves the data
set's folder. Paths here are from that folder, with forward slashes; "" is the folder itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tasks.data.entries import Faults, file_exists, is_utf8, read_bytes, shown
from tasks.data.notes import named
from tasks.data.pixels import IMAGE_SUFFIXES
from tasks.documents.errors import DocumentError
from tasks.documents.plain import Plain
from tasks.documents.yaml_text import read_document

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
_OTHER: dict[Part, Part] = {"val": "test", "test": "val"}
# Images that other tools read, and that fedbench does not look for.
UNREAD_SUFFIXES = frozenset(
    {".avif", ".dng", ".heic", ".heif", ".jfif", ".jp2", ".jpeg2000", ".jpe", ".jxl", ".mpo", ".pfm"}
)
VALIDATION = "validation"  # what some tools call val
_DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(frozen=True)
class YoloFile:
    """The content of a data.yaml: the classes, and the images of each part that it names, in order.

    keypoints: number of columns that a label line has after its box; 0 if the labels are boxes or polygons.
    """

    path: Path
    names: tuple[str, ...]
    parts: dict[str, tuple[str, ...]]
    keypoints: int = 0


def read_yolo_file(root: Path, file: str, faults: Faults, parts: Sequence[Part] = PARTS) -> YoloFile | None:
    """Return the content of the data.yaml ``file`` in the data set's folder ``root``, or report it and return None.

    Other parts than ``parts`` are not read: exported files often name folders that do not exist.
    """
    path = root / file
    data = read_bytes(path, faults)
    if data is None:
        return None
    try:
        document = read_document(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        faults.add_unread(f"{path}: expected YAML: {error}")
        return None
    except DocumentError as error:
        faults.add_unread(error.of(path))
        return None
    if not isinstance(document, dict):
        faults.add_unread(f"{path}: expected a mapping with names, train and val, found {shown(document)}")
        return None
    # Tools write null for a part that a set does not have.
    document = {key: None if isinstance(value, Plain) and value.is_null else value for key, value in document.items()}
    names = _names(path, document, faults)
    base = _base(root, file, document.get("path"), faults)
    keypoints = _keypoints(path, document.get("kpt_shape"), faults)
    if names is None or base is None or keypoints is None:
        faults.unread = True
        return None
    found: dict[str, tuple[str, ...]] = {}
    for part in parts:
        key = _key(path, document, part, faults)
        if key is not None:
            other = _OTHER.get(part)
            hint = f"; data.test={other} does not read {key}" if other in parts and document.get(other) else ""
            found[part] = tuple(_images(root, base, key, document[key], path, faults, hint))
    if "train" not in found:
        faults.add_unread(f"{path}: train: missing; expected a folder of images, or a text file that lists them")
        return None
    return YoloFile(path, names, found, keypoints)


def _key(path: Path, document: dict[str, Any], part: str, faults: Faults) -> str | None:
    """Return the key that names the images of ``part``, or None if none does. Report two keys of val that differ."""
    found = [key for key in ((part, VALIDATION) if part == "val" else (part,)) if document.get(key)]
    if len(found) > 1 and document[found[0]] != document[found[1]]:
        faults.add(
            f"{path}: {VALIDATION}: expected val or {VALIDATION} alone, found both: {shown(document[found[0]])} and "
            f"{shown(document[found[1]])}"
        )
    return found[0] if found else None


def _keypoints(path: Path, value: Any, faults: Faults) -> int | None:
    """Return the number of columns that ``kpt_shape`` adds to a label line, or report it and return None."""
    if value is None:
        return 0
    try:
        shape = [item.value("kpt_shape") if isinstance(item, Plain) else item for item in value]
    except (DocumentError, TypeError):
        shape = []
    whole = all(isinstance(item, int) and not isinstance(item, bool) for item in shape)
    if len(shape) != 2 or not whole or shape[0] < 1 or shape[1] not in (2, 3):
        faults.add(
            f"{path}: kpt_shape: expected the number of keypoints and 2 or 3 values for each, as [17, 3], found "
            f"{shown(value)}"
        )
        return None
    return int(shape[0] * shape[1])


def _names(path: Path, document: dict[str, Any], faults: Faults) -> tuple[str, ...] | None:
    """Return the classes in order, or report what is wrong and return None."""
    found = document.get("names")
    if found and isinstance(found, dict):
        if found.keys() != {str(number) for number in range(len(found))}:
            last = len(found) - 1
            faults.add(f"{path}: names: expected the numbers from 0 to {last} as keys, found {shown([*found])}")
            return None
        found = [found[str(number)] for number in range(len(found))]
    if not isinstance(found, list) or not found:
        faults.add(f"{path}: names: expected the classes, as a list or by number from 0, found {shown(found)}")
        return None
    names: dict[str, None] = {}  # in order, each once
    for number, name in enumerate(found):
        if not isinstance(name, str) or not name.strip() or not is_utf8(name):
            faults.add(f"{path}: names: {number}: expected a name, found {shown(name)}")
            return None
        if str(name) in names:
            faults.add(f"{path}: names: {number}: expected every class once, found {str(name)!r} again")
            return None
        names[str(name)] = None
    count = document.get("nc")
    try:
        count = count.value("nc") if isinstance(count, Plain) else count
    except DocumentError as error:
        faults.add(str(error))
        return None
    if count is not None and (isinstance(count, bool) or count != len(names)):
        faults.add(f"{path}: nc: expected {len(names)}, the number of names, found {shown(count)}")
        return None
    return tuple(names)


def _base(root: Path, file: str, value: Any, faults: Faults) -> str | None:
    """Return the folder at which the paths in ``file`` start, or report the key ``path`` and return None.

    It is relative to the file's folder or, as a second choice, to the data set's.
    """
    folder = os.path.dirname(file)
    if value in (None, ""):
        return folder
    if isinstance(value, str):
        for start in (folder, ""):
            found = inside_root(root, start, value)
            if found is not None and os.path.isdir(root / found):
                return found
    faults.add(
        f"{root / file}: path: expected a folder inside {root}, found {shown(value)}; without this key, the other "
        "paths start at the file's own folder: remove it"
    )
    return None


def _images(root: Path, base: str, part: str, value: Any, path: Path, faults: Faults, hint: str = "") -> Iterator[str]:
    """Yield the images of one part: of a folder, of a list of folders, or those that a text file lists.

    hint: for messages, how to do without this part.
    """
    for place in value if isinstance(value, list) else [value]:
        found = _located(root, base, place) if isinstance(place, str) else None
        if found is None:
            faults.add_unread(
                f"{path}: {part}: expected a folder of images, or a text file that lists them, inside {root}, "
                f"found {shown(place)}{hint}"
            )
        elif os.path.isdir(root / found):
            yield from _in_folder(root, found, f"{path}: {part}", faults)
        elif found.endswith(".txt"):
            yield from _listed(root, base, found, faults)
        else:
            faults.add_unread(f"{path}: {part}: expected a folder or a text file (.txt), found {shown(place)}")


def _located(root: Path, base: str, value: str) -> str | None:
    """Return the existing path that ``value`` names, or None. A leading ``../`` that leads nowhere is dropped.

    Tools that export to YOLO's form write ``../train/images`` for the folder train/images beside data.yaml.
    """
    for text in (value, value[3:]) if value.startswith("../") else (value,):
        found = inside_root(root, base, text)
        if found is not None and os.path.exists(root / found):
            return found
    return None


def inside_root(root: Path, base: str, value: str) -> str | None:
    """Return the path from ``root`` of ``value``, which is absolute or starts at ``base``.

    None: it leads elsewhere.
    """
    text = value.strip().replace("\\", "/")
    if "\0" in text:
        return None
    if text.startswith("/") or _DRIVE.match(text):
        known = [at for at in (root.absolute(), root.resolve()) if PurePosixPath(text).is_relative_to(at)]
        if not known:
            return None
        base, text = "", str(PurePosixPath(text).relative_to(known[0]))
    parts: list[str] = []
    for part in (*base.split("/"), *text.split("/")):
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _in_folder(root: Path, folder: str, at: str, faults: Faults) -> list[str]:
    """Return the images in ``folder`` and below it, sorted. Report that there are none, or that it cannot be read."""
    try:
        files = sorted(_walk(root, folder, set()))
    except OSError as error:
        faults.add_unread(f"{at}: {error.filename}: cannot be read: {error.strerror}")
        return []
    images = [file for file in files if _suffix(file) in IMAGE_SUFFIXES]
    others = [str(root / file) for file in files if _suffix(file) in UNREAD_SUFFIXES]
    if not images:
        also = f", but {named(others)}; images end in {', '.join(sorted(IMAGE_SUFFIXES))}" if others else ""
        faults.add_unread(f"{at}: expected a folder of images, found none in {root / folder}{also}")
    elif others:
        faults.notes.parts.append(
            f"{at}: {len(others)} files have a suffix of images that are not read; write them as PNG or JPEG: "
            f"{named(others)}"
        )
    return images


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _walk(root: Path, folder: str, seen: set[str]) -> Iterator[str]:
    """Yield the files in ``folder`` and below it. Hidden files are left out.

    Links are followed, but no folder is entered twice.
    """
    real = os.path.realpath(root / folder)
    if real in seen:
        return
    seen.add(real)
    with os.scandir(root / folder) as items:
        for item in items:
            if item.name.startswith("."):
                continue
            path = f"{folder}/{item.name}" if folder else item.name
            if item.is_dir():
                yield from _walk(root, path, seen)
            else:
                yield path


def _listed(root: Path, base: str, file: str, faults: Faults) -> Iterator[str]:
    """Yield the images that the text file lists: one a line, from its own folder, ``base`` or the data set's folder."""
    path = root / file
    data = read_bytes(path, faults)
    if data is None:
        return
    for number, line in enumerate(data.decode("utf-8-sig", errors="surrogateescape").splitlines(), 1):
        if not line.strip():
            continue
        places = (inside_root(root, start, line) for start in (os.path.dirname(file), base, ""))
        found = next((place for place in places if place is not None and file_exists(root / place)), None)
        if found is None or not is_utf8(line):
            faults.add_unread(
                f"{path}: line {number}: expected the path of an image inside {root}, found {shown(line.strip())}"
            )
        else:
            yield found
