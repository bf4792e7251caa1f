"""Reader of PASCAL VOC folders (Everingham et al., IJCV 2010): JPEGImages, Annotations, ImageSets/Main.

A data set has one such folder, or one for each device (``<device>/JPEGImages/…``), as in Federated Street's second
published form, where each device's ``test.txt`` repeats the global test set. Boxes stay as annotated: VOC counts
pixels from 1, and nothing is subtracted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tasks.data.assemble import assemble_own, check_devices
from tasks.data.entries import (
    LONGEST_NUMBER,
    Entry,
    Faults,
    Parsed,
    Thing,
    check_box,
    natural,
    read_bytes,
    shown,
)
from tasks.data.samples import FederatedData
from tasks.data.voc_files import ImageFiles, list_images, read_list
from tasks.documents.text_number import is_digits, read_decimal
from tasks.spec.clients import ByField, ByFolder
from tasks.spec.data import VocFolders

JPEG_IMAGES, ANNOTATIONS, IMAGE_SETS = "JPEGImages", "Annotations", "ImageSets/Main"
XML_BLANKS = " \t\r\n"
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def load_voc(
    root: Path, spec: VocFolders, *, devices: Sequence[str] | None = None, faults: Faults | None = None
) -> FederatedData:
    """Read lists, annotations and image headers; every image's bytes are read and hashed, none is decoded.

    ``devices`` are the expected devices of a set with a folder for each. None: all folders in VOC form are devices, in
    numeric order. If ``faults`` collects mistakes, the usable part is returned.

    Raises:
        DataError: a folder, list, annotation, class, box, device or image is missing or wrong, or the content is
            not the expected one; the message names the file.
    """
    faults = faults or Faults()
    parsed = Parsed([], [], (), [], (f"{IMAGE_SETS}/{spec.train}.txt", f"{IMAGE_SETS}/{spec.test}.txt"))
    field = spec.clients.field if isinstance(spec.clients, ByField) else None
    found: Sequence[str] | None = devices
    if isinstance(spec.clients, ByFolder):
        found = _device_folders(root, spec, faults, devices)
        for device in found:
            _read_folder(root, f"{device}/", spec, parsed, faults, device=device, field=None)
        # `found` goes in too, so that a folder with an empty list is reported as a device without images.
        check_devices(parsed.train, parsed.test, f"{root}: folders", faults, found or None)
    else:
        _read_folder(root, "", spec, parsed, faults, device=None, field=field)
    parsed.classes = spec.classes or parsed.training_classes()
    return assemble_own(root, spec, parsed, faults, where=str(root / ANNOTATIONS), devices=found)


def _device_folders(root: Path, spec: VocFolders, faults: Faults, devices: Sequence[str] | None) -> list[str]:
    try:
        names = [path.name for path in root.iterdir() if (path / ANNOTATIONS).is_dir()]
    except OSError as error:
        faults.add_unread(f"{root}: the folder of data set {spec.name!r} cannot be read: {error.strerror}")
        return []
    if not names:
        hint = ""
        if (root / ANNOTATIONS).is_dir():
            hint = "; this folder itself has them: set data.clients.kind to field, list, name, iid, dirichlet or size"
        faults.add_unread(
            f"{root}: expected a folder for each device, with {JPEG_IMAGES}/, {ANNOTATIONS}/, {IMAGE_SETS}/{hint}"
        )
        return []
    for device in devices or ():
        if device not in names:
            faults.add_unread(
                f"{root / device / ANNOTATIONS}: no such folder; expected one for each of the {len(devices or ())} "
                "devices"
            )
    if devices is not None:
        for name in sorted(set(names) - set(devices), key=natural):
            faults.add(
                f"{root / name}: expected folders of the devices {devices[0]} to {devices[-1]} only, found another"
            )
    return sorted(set(names) & set(devices) if devices is not None else names, key=natural)


def _read_folder(
    root: Path,
    prefix: str,
    spec: VocFolders,
    parsed: Parsed,
    faults: Faults,
    *,
    device: str | None,
    field: str | None,
) -> None:
    """Add the images of the VOC folder ``root/prefix`` to ``parsed``."""
    images = list_images(root / prefix / JPEG_IMAGES, faults)
    if images is None:
        return
    try:
        annotated = {path.stem for path in (root / prefix / ANNOTATIONS).iterdir() if path.suffix == ".xml"}
    except OSError as error:
        faults.add_unread(f"{root / prefix / ANNOTATIONS}: the folder of annotations cannot be read: {error.strerror}")
        return
    for part, entries in ((spec.train, parsed.train), (spec.test, parsed.test)):
        file = f"{prefix}{IMAGE_SETS}/{part}.txt"
        data = read_bytes(root / file, faults)
        if data is None:
            continue
        parsed.files.append((file, hashlib.sha256(data).hexdigest()))
        for key in read_list(root / file, data, annotated, faults):
            entry = _read_annotation(root, prefix, key, images, parsed, faults, device, field)
            if entry is not None:
                entries.append(entry)


def _read_annotation(
    root: Path,
    prefix: str,
    key: str,
    images: ImageFiles,
    parsed: Parsed,
    faults: Faults,
    device: str | None,
    field: str | None,
) -> Entry | None:
    file = f"{prefix}{ANNOTATIONS}/{key}.xml"
    path = root / file
    data = read_bytes(path, faults)
    if data is None:
        return None
    parsed.files.append((file, hashlib.sha256(data).hexdigest()))
    try:
        document = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        faults.add_unread(f"{path}: expected XML: {error}")
        return None
    if document.tag != "annotation":
        faults.add_unread(f"{path}: expected the element annotation, found {document.tag}")
        return None
    if field is not None:
        device = (document.findtext(field) or "").strip() or None
    image = images.of(key, document.findtext("filename") or "", str(path), faults)
    if image is None:
        return None
    found = (
        _read_object(f"{path}: object {number}", item, faults)
        for number, item in enumerate(document.findall("object"), 1)
    )
    things = tuple(thing for thing in found if thing is not None)
    return Entry(str(path), key, f"{prefix}{JPEG_IMAGES}/{image}", device, things, _size(document))


def _size(document: ElementTree.Element) -> tuple[int, int] | None:
    """Return the stated (width, height), or None: tools that do not know the size leave it out or write 0."""
    texts = [document.findtext(f"size/{side}", "").strip(XML_BLANKS) for side in ("width", "height")]
    # The first digits of an absurdly long number are no image's size either.
    width, height = (int(text[:LONGEST_NUMBER]) if is_digits(text) else 0 for text in texts)
    return (width, height) if width and height else None


def _read_object(at: str, item: ElementTree.Element, faults: Faults) -> Thing | None:
    name = (item.findtext("name") or "").strip()
    if not name:
        faults.add(f"{at}: name: missing; expected the object's class")
        return None
    texts = [item.findtext(f"bndbox/{edge}") for edge in _EDGES]
    try:
        edges = [read_decimal((text or "").strip(XML_BLANKS)) for text in texts]
    except ValueError:
        faults.add(f"{at}: bndbox: expected four numbers {', '.join(_EDGES)}, found {shown(texts)}")
        return None
    box = check_box(f"{at}: bndbox", edges, faults)
    difficult = (item.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        faults.add(f"{at}: difficult: expected 0 or 1, found {shown(difficult)}")
    return None if box is None else Thing(at, name, box, difficult == "1")
