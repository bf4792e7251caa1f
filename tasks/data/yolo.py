"""Reader of YOLO's text files as Ultralytics reads them: data.yaml, folders of images, a label file for each image.

A data set has one data.yaml, or one in a folder for each device. Images that several devices' files name as test images
are one global test set if all devices name the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tasks.data.assemble import assemble_own, check_devices
from tasks.data.entries import Entry, Faults, Parsed, Thing, file_exists, natural
from tasks.data.samples import FederatedData
from tasks.data.yolo_files import PARTS, Part, YoloFile, read_yolo_file
from tasks.data.yolo_labels import SLACK, label_file, read_labels
from tasks.documents.regular_file import read_regular
from tasks.spec.clients import ByFolder
from tasks.spec.data import Yolo

_Test = Literal["val", "test"]


def load_yolo(root: Path, spec: Yolo, *, faults: Faults | None = None) -> FederatedData:
    """Read files, labels and image headers; every image's bytes are read and hashed, none is decoded.

    If the specification lists no classes, they are the file's names in their order. A box that extends up to a
    thousandth of the image's side beyond it is cut. The content digest covers names, parts, labels and images, not
    other text of data.yaml. If ``faults`` collects mistakes, the usable part is returned.

    Raises:
        DataError: a file, folder, class, box, device or image is missing or wrong, or the content is not the expected
            one; the message names the file and the line.
    """
    faults = faults or Faults()
    devices: tuple[str, ...] | None = None
    if isinstance(spec.clients, ByFolder):
        devices = tuple(_require_folders(root, spec, faults))
    else:
        _hint_at_folders(root, spec, faults)
    files = _read_files(root, spec, devices, faults)
    names = _common_names(files, faults)
    test = _choose_test(files, spec, faults)
    parsed = Parsed([], [], spec.classes or names, [], ("train", test))
    reader = _Labels(root, names, parsed, faults)
    shared = len({file.parts.get(test) for file in files.values()}) == 1
    for place, (device, file) in enumerate(files.items()):
        images = {"names": names, "train": file.parts["train"], "test": file.parts.get(test, ())}
        inside = str(file.path.relative_to(root).as_posix())
        parsed.files.append((inside, hashlib.sha256(json.dumps(images).encode()).hexdigest()))
        points = file.keypoints
        parsed.train += [reader.entry(image, device, points) for image in file.parts["train"]]
        if not shared or place == 0:
            owner = None if shared else device
            parsed.test += [reader.entry(image, owner, points) for image in file.parts.get(test, ())]
    reader.report_missing()
    reader.note_shared()
    if devices is not None:
        check_devices(parsed.train, parsed.test, f"{root}: folders", faults, devices or None)
    return assemble_own(root, spec, parsed, faults, where=str(root / spec.file), slack=SLACK, devices=devices)


class _Labels:
    """Reads the label files of images, each once, and adds them to the files that the digest covers."""

    def __init__(self, root: Path, names: tuple[str, ...], parsed: Parsed, faults: Faults) -> None:
        self._root = root
        self._names = names
        self._parsed = parsed
        self._faults = faults
        self._read: dict[str, tuple[Thing, ...] | None] = {}

    def entry(self, image: str, device: str | None, keypoints: int) -> Entry:
        """Return the entry of the image at the path ``image``. keypoints: as in :class:`YoloFile`."""
        file = label_file(image)
        if file not in self._read:
            self._read[file] = self._things(file, keypoints)
        things = self._read[file]
        where = str(self._root / (image if things is None else file))
        key = os.path.splitext(image)[0]
        return Entry(where, key, image, device, things or (), normalized=True)

    def _things(self, file: str, keypoints: int) -> tuple[Thing, ...] | None:
        """Return the objects in a label file, or None if there is no such file."""
        path = self._root / file
        try:
            data = read_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._faults.add_unread(f"{path}: cannot be read: {error.strerror}")
            return ()
        self._parsed.files.append((file, hashlib.sha256(data).hexdigest()))
        return tuple(read_labels(path, data, self._names, self._faults, keypoints))

    def report_missing(self) -> None:
        """Note the images without a label file. If no training image has one, report that."""
        without = [
            entry.inside
            for entry in (*self._parsed.train, *self._parsed.test)
            if self._read[label_file(entry.inside)] is None
        ]
        train = self._parsed.train
        if train and all(self._read[label_file(entry.inside)] is None for entry in train):
            self._faults.add_unread(
                f"{self._root}: none of the {len(train)} training images has a label file; expected "
                f"{label_file(train[0].inside)} for {train[0].inside}"
            )
        else:
            self._faults.notes.without_labels += [str(self._root / image) for image in without]

    def note_shared(self) -> None:
        """Note the label files that belong to several images, as ``a.jpg`` and ``a.png``."""
        images: dict[str, set[str]] = {}
        for entry in (*self._parsed.train, *self._parsed.test):
            images.setdefault(label_file(entry.inside), set()).add(entry.inside)
        self._faults.notes.shared_labels += [
            f"{self._root / file} ({' and '.join(sorted(own))})"
            for file, own in images.items()
            if len(own) > 1 and self._read[file] is not None
        ]


def _read_files(root: Path, spec: Yolo, devices: Sequence[str] | None, faults: Faults) -> dict[str | None, YoloFile]:
    """Return the readable data.yaml of each device, or of the data set (None)."""
    parts: tuple[Part, ...] = PARTS if spec.test is None else ("train", spec.test)
    files: dict[str | None, YoloFile] = {}
    for device in (None,) if devices is None else devices:
        file = read_yolo_file(root, spec.file if device is None else f"{device}/{spec.file}", faults, parts)
        if file is not None:
            files[device] = file
    return files


def device_folders(root: Path, file: str) -> list[str]:
    """Return the names of the folders in ``root`` that have a ``file``, in order."""
    with os.scandir(root) as items:
        return sorted((item.name for item in items if file_exists(root / item.name / file)), key=natural)


def _require_folders(root: Path, spec: Yolo, faults: Faults) -> list[str]:
    """Return the folders that have a data.yaml of their own, in order. Report that there are none."""
    try:
        found = device_folders(root, spec.file)
    except OSError as error:
        faults.add_unread(f"{root}: the folder of data set {spec.name!r} cannot be read: {error.strerror}")
        return []
    if not found:
        hint = ""
        if file_exists(root / spec.file):
            hint = "; this folder itself has one: set data.clients.kind to list, iid, dirichlet or size"
        faults.add_unread(f"{root}: expected a folder with {spec.file} for each device{hint}")
    return found


def _hint_at_folders(root: Path, spec: Yolo, faults: Faults) -> None:
    """Report a missing data.yaml if folders have one. Other mistakes are left to the reader of the file."""
    if file_exists(root / spec.file) or not os.path.isdir(root):
        return
    found = device_folders(root, spec.file)
    if found:
        faults.add_unread(
            f"{root / spec.file}: no such file, but the folders {', '.join(found)} have one each: set "
            "data.clients.kind to folders"
        )


def _common_names(files: dict[str | None, YoloFile], faults: Faults) -> tuple[str, ...]:
    """Return the classes. Report files with other ones."""
    first = next(iter(files.values()), None)
    for file in files.values():
        if first is not None and file.names != first.names:
            faults.add(
                f"{file.path}: names: expected those of {first.path} in the same order, {', '.join(first.names)}, "
                f"found {', '.join(file.names)}"
            )
    return first.names if first is not None else ()


def _choose_test(files: dict[str | None, YoloFile], spec: Yolo, faults: Faults) -> _Test:
    """Return the part that is the test set: the specification's, else test if the files have it, else val.

    Report files without that part. Note a choice that the specification does not make, if it leaves images unused or
    scores on val.
    """
    having = [file for file in files.values() if "test" in file.parts]
    chosen: _Test = spec.test or ("test" if having else "val")
    for file in files.values():
        if chosen not in file.parts:
            other = f"; {having[0].path} has it" if having and spec.test is None else ""
            expected = "val or test" if chosen == "val" and spec.test is None else chosen
            faults.add_unread(f"{file.path}: {expected}: missing; expected the images to score on{other}")
    if spec.test is None and files:
        where = f"{next(iter(files.values())).path}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
        unused = {image for file in files.values() for image in file.parts.get("val", ())}
        unused -= {image for file in files.values() for part in ("train", "test") for image in file.parts.get(part, ())}
        if chosen == "val":
            faults.notes.parts.append(f"{where}: there is no test, so val is the test set (data.test: val)")
        elif unused:
            faults.notes.parts.append(
                f"{where}: the {len(unused)} images of val are not used, because test is the test set; data.test=val "
                "scores on them instead, data.test=test leaves them out knowingly"
            )
    return chosen
