"""What the readers of all forms share: annotated images, and the report of mistakes."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.data.notes import Notes, named
from tasks.documents import json_text
from tasks.documents.errors import DuplicateKey
from tasks.documents.regular_file import read_regular
from tasks.documents.text_number import is_digits
from tasks.errors import DataError

Box = tuple[float, float, float, float]
LONGEST_NUMBER = 64  # digits; Python refuses to convert more than a few thousand


class Faults:
    """The mistakes that readers report. The first one is raised, or all are collected (``collect=True``).

    ``notes`` holds findings that are not mistakes. ``unread`` is True once a file or folder could not be read: what is
    left of the data set is not its content.
    """

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self.errors: list[str] = []
        self._kinds: dict[tuple[str, int], list[str]] = {}
        self.notes = Notes()
        self.unread = False

    def add(self, message: str) -> None:
        """Report ``message``. Characters that UTF-8 cannot encode, as in some file names, are escaped.

        Raises:
            DataError: with ``message``, unless mistakes are collected.
        """
        message = message.encode(errors="backslashreplace").decode()
        if not self.collect:
            raise DataError(message)
        self.errors.append(message)
        self._kinds.setdefault(_reporter(), []).append(message)

    def by_kind(self) -> list[tuple[str, ...]]:
        """Return the mistakes grouped by kind, in the order of the first of each. A kind is what one line reports."""
        return [tuple(messages) for messages in self._kinds.values()]

    def add_unread(self, message: str) -> None:
        """Report a file or folder that cannot be read.

        Raises:
            DataError: with ``message``, unless mistakes are collected.
        """
        self.unread = True
        self.add(message)

    def add_summed(self, places: Sequence[str], problem: str, where: str) -> None:
        """Report a problem that several images have: one after its place, more as a problem of ``where``, summed up.

        One cause, as a list of images that is named twice, has hundreds of places.

        Raises:
            DataError: as :meth:`add`.
        """
        if len(places) == 1:
            self.add(f"{places[0]}: {problem}")
        elif places:
            begin = "" if problem.startswith(where) else f"{where}: "
            self.add(f"{begin}{problem}; so in {len(places)} images: {named(places)}")


def _reporter() -> tuple[str, int]:
    """Return the file and line that called :class:`Faults`."""
    frame = inspect.currentframe()
    own = {function.__code__ for function in (_reporter, Faults.add, Faults.add_unread, Faults.add_summed)}
    while frame is not None and frame.f_code in own:
        frame = frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)


@dataclass(frozen=True)
class Thing:
    """An annotated object. Messages name it as ``at``."""

    at: str
    name: str
    box: Box
    difficult: bool = False


@dataclass(frozen=True)
class Region:
    """An ignore region: it may hold objects of class ``name`` (None: of any class) that nobody annotated one by one."""

    at: str
    name: str | None
    box: Box


@dataclass(frozen=True)
class Entry:
    """The annotation of one image. Messages name it as ``where``; ``size`` is the stated (width, height).

    ``inside`` is the image's path from the data set's folder, with forward slashes. It is part of the content digest.
    The boxes of a ``normalized`` entry are fractions of the image's width and height.
    """

    where: str
    key: str
    inside: str
    device: str | None
    things: tuple[Thing, ...]
    size: tuple[int, int] | None = None
    regions: tuple[Region, ...] = ()
    normalized: bool = False


@dataclass
class Parsed:
    """What a reader found before any image was opened.

    ``files`` are the label files and their sha256, in order. Messages name the training and the test list as ``lists``.
    """

    train: list[Entry]
    test: list[Entry]
    classes: tuple[str, ...]
    files: list[tuple[str, str]]
    lists: tuple[str, str]

    def training_classes(self) -> tuple[str, ...]:
        """Return the classes of the training images' objects, in alphabetical order."""
        return tuple(sorted({thing.name for entry in self.train for thing in entry.things}))


def file_exists(path: Path) -> bool:
    """Return whether there is a file, even one that its reader refuses: a named pipe, a socket or a device."""
    # The functions are os.path's, because Path.exists raises for names that are too long.
    return os.path.exists(path) and not os.path.isdir(path)


def read_bytes(path: Path, faults: Faults) -> bytes | None:
    """Return the file's bytes, or report that it cannot be read and return None."""
    try:
        return read_regular(path)
    except OSError as error:
        faults.add_unread(f"{path}: cannot be read: {error.strerror}")
        return None


def read_json(path: Path, faults: Faults) -> tuple[Any, str]:
    """Return a JSON document, in which no key may repeat, and the file's sha256 (hex).

    Report a file that is no such document and return (None, "").
    """
    data = read_bytes(path, faults)
    if data is None:
        return None, ""
    try:
        return json_text.read_json(data), hashlib.sha256(data).hexdigest()
    except DuplicateKey as error:
        faults.add_unread(f"{path}: {error}")
        return None, ""
    except (ValueError, RecursionError) as error:
        faults.add_unread(f"{path}: expected JSON: {error}")
        return None, ""


def check_box(at: str, box: Sequence[float], faults: Faults) -> Box | None:
    """Return xmin, ymin, xmax, ymax if they are finite and enclose an area. Else report the box and return None."""
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


def box_with_area(at: str, box: Sequence[float], faults: Faults) -> Box | None:
    """Return the box xmin, ymin, xmax, ymax. Note a box without width or height and return None, report a wrong one.

    COCO's training images of 2017 and VisDrone were published with a few boxes that are lines. They hold nothing that a
    detector could learn or find.
    """
    left, top, right, bottom = box
    if (left == right and top <= bottom) or (top == bottom and left <= right):
        faults.notes.emptied.append(at)
        return None
    return check_box(at, box, faults)


def inside(name: str) -> str | None:
    """Return ``name`` as a path below a folder, with forward slashes and without ``.``, or None if it leads elsewhere.

    Windows' backslashes and a leading ``./``, which some tools write, are accepted.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    if not parts or "\0" in name or any(part in ("", "..") for part in parts):
        return None
    return "/".join(parts)


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can encode ``text``: half a character of UTF-16 and bytes of other encodings it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """Return ``repr(value)`` for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def without_address(error: BaseException) -> str:
    """Return the message of Pillow's error without the memory address of the buffer that Pillow read."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", " ".join(str(error).split()))


def natural(device: str) -> tuple[int, int, str]:
    """Return a sort key that puts device 10 after device 9, and names that are not numbers last."""
    is_number = is_digits(device) and len(device) <= LONGEST_NUMBER
    return (0, int(device), device) if is_number else (1, 0, device)
