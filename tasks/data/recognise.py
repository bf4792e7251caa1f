"""Recognise the form of a folder of data by its files, and make the specification that reads it.

Each form has a function that looks at names of files, and into one label file at most, to see how images come to
clients. A form that comes here later adds itself to ``FORMS``.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.data.coco_layout import own_layout
from tasks.data.entries import file_exists
from tasks.data.street import TRAIN_LABELS
from tasks.data.voc import ANNOTATIONS
from tasks.data.yolo import device_folders
from tasks.documents.regular_file import open_regular
from tasks.errors import SpecError
from tasks.spec.clients import ByField, ByFolder, ByList, ByName, Iid
from tasks.spec.data import Bdd100k, Coco, DataSpec, FederatedStreet, Kitti, VisDrone, VocFolders, Yolo

_DEVICE_KEY = re.compile(rb'"device"\s*:')  # of an image in COCO's JSON


@dataclass(frozen=True)
class KnownForm:
    """A form of data: its ``kind`` in a specification, and how a folder in it is recognised.

    ``needs`` names the files that the folder has, for messages. ``find`` returns the specification of a folder with a
    data set's name, or None. ``default`` returns the specification if the user names the form of a folder that does not
    show it.
    """

    kind: str
    needs: str
    find: Callable[[Path, str], DataSpec | None]
    default: Callable[[str], DataSpec]


def recognise(root: Path, name: str, form: str | None = None) -> DataSpec:
    """Return the specification that reads the folder ``root`` as data set ``name``, in ``form`` or in the one it has.

    If nothing in the folder names devices, its images are divided among five clients (IID).

    Raises:
        SpecError: the folder has none of the forms, or several. The message lists what each form needs, or the forms.
    """
    try:
        if form is not None:
            return FORMS[form].find(root, name) or FORMS[form].default(name)
        found = {form: spec for form, known in FORMS.items() if (spec := known.find(root, name)) is not None}
    except OSError as error:
        raise SpecError(f"{error.filename}: cannot be read: {error.strerror}") from None
    if len(found) > 1:
        raise SpecError(f"{root}: expected the files of one form, found those of {' and '.join(found)}")
    if not found:
        raise SpecError(f"{root}: expected {', '.join(f'{known.needs} ({form})' for form, known in FORMS.items())}")
    return next(iter(found.values()))


def _street(root: Path, name: str) -> DataSpec | None:
    return FederatedStreet(name=name) if file_exists(root / TRAIN_LABELS) else None


def _coco(root: Path, name: str) -> DataSpec | None:
    fields = {} if file_exists(root / "train.json") else own_layout(root)
    if fields is None:
        return None
    spec = Coco.model_validate({"name": name, **fields})
    listed, fielded = file_exists(root / ByList().file), _has(root / spec.train, _DEVICE_KEY)
    return spec.model_copy(update={"clients": ByList() if listed else ByField() if fielded else Iid()})


def _voc(root: Path, name: str) -> DataSpec | None:
    if not _has_folder(root, ANNOTATIONS):
        with os.scandir(root) as items:
            by_device = any(item.is_dir() and _has_folder(Path(item.path), ANNOTATIONS) for item in items)
        return VocFolders(name=name) if by_device else None
    with os.scandir(root / ANNOTATIONS) as items:
        first = min((item.path for item in items if item.name.endswith(".xml")), default=None)
    fielded = first is not None and _has(Path(first), re.compile(rb"<device>"))
    listed = file_exists(root / ByList().file)
    return VocFolders(name=name, clients=ByList() if listed else ByField() if fielded else Iid())


def _yolo(root: Path, name: str) -> DataSpec | None:
    default = Yolo(name=name)
    file = _yolo_file(root, default.file)
    if file is not None:
        clients = ByList() if file_exists(root / ByList().file) else Iid()
        return default.model_copy(update={"file": file, "clients": clients})
    return default.model_copy(update={"clients": ByFolder()}) if device_folders(root, default.file) else None


def _yolo_file(root: Path, usual: str) -> str | None:
    """Return the name of the file of classes and folders: the usual one, or the only YAML file with their keys."""
    if file_exists(root / usual):
        return usual
    with os.scandir(root) as items:
        names = [item.name for item in items if item.name.endswith((".yaml", ".yml")) and item.is_file()]
    keys = (re.compile(rb"^names\s*:", re.MULTILINE), re.compile(rb"^train\s*:", re.MULTILINE))
    found = [name for name in names if not name.startswith(".") and all(_has(root / name, key) for key in keys)]
    return found[0] if len(found) == 1 else None


def _has_folder(root: Path, name: str) -> bool:
    """Return whether ``root`` has a folder of this name, in upper and lower case too."""
    return (root / name).is_dir() and name in os.listdir(root)


def _has(file: Path, text: re.Pattern[bytes]) -> bool:
    """Return whether ``text`` is in the file, which may be larger than memory."""
    with open_regular(file) as opened:
        if os.fstat(opened.fileno()).st_size == 0:
            return False
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return text.search(content) is not None


def _bdd100k(root: Path, name: str) -> DataSpec | None:
    spec = Bdd100k(name=name)
    parts = ((spec.train, spec.train_images), (spec.test, spec.test_images))
    if not all(file_exists(root / file) and (root / images).is_dir() for file, images in parts):
        return None
    listed, fielded = file_exists(root / ByList().file), _has(root / spec.train, re.compile(rb'"scene"\s*:'))
    return spec.model_copy(update={"clients": ByList() if listed else spec.clients if fielded else Iid()})


def _visdrone(root: Path, name: str) -> DataSpec | None:
    spec = VisDrone(name=name)
    if not all((root / part / "annotations").is_dir() for part in (spec.train, spec.test)):
        return None
    return spec.model_copy(update={"clients": ByList()}) if file_exists(root / ByList().file) else spec


def _kitti(root: Path, name: str) -> DataSpec | None:
    spec = Kitti(name=name)
    if not file_exists(root / spec.train) or not (root / spec.labels).is_dir():
        return None
    # KITTI's own names are numbers.
    named = not _has(root / spec.train, re.compile(rb"^[^_\r\n]+\r?$", re.MULTILINE))
    listed = file_exists(root / ByList().file)
    return spec.model_copy(update={"clients": ByList() if listed else ByName() if named else spec.clients})


# By the name of the form on the command line.
FORMS: dict[str, KnownForm] = {
    "street": KnownForm("federated-street", TRAIN_LABELS, _street, lambda name: FederatedStreet(name=name)),
    "coco": KnownForm(
        "coco",
        "train.json, or annotations/instances_train*.json and instances_val*.json beside train*/ and val*/, or "
        "_annotations.coco.json in train/ and in test/ or valid/",
        _coco,
        lambda name: Coco(name=name),
    ),
    "voc": KnownForm(
        "voc-folders",
        "Annotations/ in it or in a folder for each device",
        _voc,
        lambda name: VocFolders(name=name),
    ),
    "yolo": KnownForm("yolo", "data.yaml in it or in a folder for each device", _yolo, lambda name: Yolo(name=name)),
    "bdd100k": KnownForm(
        "bdd100k",
        "labels/det_20/det_train.json and det_val.json beside images/100k/train/ and val/",
        _bdd100k,
        lambda name: Bdd100k(name=name),
    ),
    "visdrone": KnownForm(
        "visdrone",
        "annotations/ in VisDrone2019-DET-train/ and VisDrone2019-DET-val/",
        _visdrone,
        lambda name: VisDrone(name=name),
    ),
    "kitti": KnownForm(
        "kitti",
        "ImageSets/train.txt beside training/label_2/",
        _kitti,
        lambda name: Kitti(name=name),
    ),
}
