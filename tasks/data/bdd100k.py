"""Reader of BDD100K's detection labels (Yu et al., CVPR 2020), which are in Scalabel's form: a JSON list of frames.

A frame has ``name``, the image's file; ``attributes`` such as weather, scene and timeofday; and ``labels``, none or
missing if nothing was annotated. A label with ``box2d`` (x1, y1, x2, y2 in pixels) is an object. Others are lanes and
drivable areas and are not read. Edges stay as annotated; Scalabel's own conversion to COCO adds a pixel to both sides.

An object with the attribute crowd or ignored is an ignore region of its class, which Scalabel's conversion makes a
crowd of COCO. So are objects of the categories that BDD100K does not evaluate (``det.toml``), unless ``classes`` names
them.

The labels of 2018 are read too: the list, and the older folder with a file for each image, whose one frame has
``objects``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from os.path import isdir
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.data.assemble import assemble_own
from tasks.data.entries import Entry, Faults, Parsed, Region, Thing, box_with_area, inside, is_utf8, read_json, shown
from tasks.data.published import SLACK, is_image
from tasks.data.samples import FederatedData
from tasks.spec.clients import ByField
from tasks.spec.data_forms import Bdd100k

_EDGES = ("x1", "y1", "x2", "y2")
# Categories that BDD100K does not evaluate, and the class of which a detection there is not wrong.
NOT_EVALUATED = {"other person": "pedestrian", "other vehicle": "car", "trailer": "truck"}


def load_bdd100k(root: Path, spec: Bdd100k, *, faults: Faults | None = None) -> FederatedData:
    """Read labels and image headers; every image's bytes are read and hashed, none is decoded.

    If the specification lists no classes, they are the training objects' categories in alphabetical order. If
    ``faults`` collects mistakes, the usable part is returned.

    Raises:
        DataError: a file, frame, label, box, device or image is missing or wrong, or the content is not the expected
            one; the message names the file, the frame and the label.
    """
    faults = faults or Faults()
    parsed = Parsed([], [], spec.classes or (), [], (spec.train, spec.test))
    field = spec.clients.field if isinstance(spec.clients, ByField) else None
    for file, folder, entries in (
        (spec.train, spec.train_images, parsed.train),
        (spec.test, spec.test_images, parsed.test),
    ):
        prefix = "" if folder == "." else f"{folder}/"
        for where, frame in _frames(root, file, parsed, faults):
            entry = _read_frame(where, frame, prefix, field, spec.classes or (), faults)
            if entry is not None:
                entries.append(entry)
    if spec.classes is None:
        parsed.classes = parsed.training_classes()
        parsed.train = [_without_other_regions(entry, parsed.classes) for entry in parsed.train]
        parsed.test = [_without_other_regions(entry, parsed.classes) for entry in parsed.test]
    return assemble_own(root, spec, parsed, faults, where=f"{root / spec.train}: attributes", slack=SLACK)


def _frames(root: Path, file: str, parsed: Parsed, faults: Faults) -> Iterator[tuple[str, Any]]:
    """Yield the frames of a file or of a folder of files, each with its place for messages."""
    path = root / file
    if isdir(path):  # Path.is_dir raises for names that are too long
        files = sorted(path.glob("*.json"))
        if not files:
            faults.add_unread(f"{path}: expected a JSON file for each image, found none")
        for one in files:
            document, digest = read_json(one, faults)
            if digest:
                parsed.files.append((f"{file}/{one.name}", digest))
                yield str(one), _frame_of_2018(str(one), document, faults)
        return
    document, digest = read_json(path, faults)
    if not digest:
        return
    parsed.files.append((file, digest))
    frames = document.get("frames") if isinstance(document, dict) else document
    if not isinstance(frames, list):
        faults.add_unread(
            f"{path}: expected a list of frames, or a mapping with the list frames, found {shown(document)}"
        )
        return
    for number, frame in enumerate(frames, 1):
        yield f"{path}: frame {number}", frame


def _frame_of_2018(where: str, document: Any, faults: Faults) -> Any:
    """Return the content of a file of one image as a frame of the later form."""
    if not isinstance(document, dict) or "frames" not in document:
        return document
    frames = document["frames"]
    if not isinstance(frames, list) or len(frames) != 1 or not isinstance(frames[0], dict):
        faults.add_unread(f"{where}: frames: expected a list of one frame, found {shown(frames)}")
        return None
    name = document.get("name")
    if isinstance(name, str) and not is_image(name):
        name += ".jpg"
    return {"name": name, "attributes": document.get("attributes"), "labels": frames[0].get("objects")}


def _read_frame(
    where: str, frame: Any, prefix: str, field: str | None, classes: tuple[str, ...], faults: Faults
) -> Entry | None:
    if frame is None:  # reported already
        return None
    if not isinstance(frame, dict):
        faults.add(f"{where}: expected a mapping with name and labels, found {shown(frame)}")
        return None
    found = frame.get("name")
    name = inside(found) if isinstance(found, str) else None
    if name is None or not is_utf8(name):
        faults.add(f"{where}: name: expected an image's path in UTF-8, relative and without .., found {shown(found)}")
        return None
    where = f"{where} ({name})"
    labels = [] if frame.get("labels") is None else frame["labels"]
    if not isinstance(labels, list):
        faults.add(f"{where}: labels: expected a list, found {shown(labels)}")
        return None
    objects = [
        _read_label(f"{where}: label {number}", label, classes, faults) for number, label in enumerate(labels, 1)
    ]
    return Entry(
        where=where,
        key=str(PurePosixPath(name).with_suffix("")),
        inside=f"{prefix}{name}",
        device=None if field is None else _device(where, frame.get("attributes"), field, faults),
        things=tuple(item for item in objects if isinstance(item, Thing)),
        size=_size(frame.get("size")),
        regions=tuple(item for item in objects if isinstance(item, Region)),
    )


def _without_other_regions(entry: Entry, classes: tuple[str, ...]) -> Entry:
    """Return the entry without ignore regions of classes that no training object has: nothing detects these."""
    return replace(entry, regions=tuple(region for region in entry.regions if region.name in classes))


def _device(where: str, attributes: Any, field: str, faults: Faults) -> str | None:
    """Return the value of the frame's attribute with hyphens for blanks and slashes, which client ids may not have."""
    if attributes is not None and not isinstance(attributes, dict):
        faults.add(f"{where}: attributes: expected a mapping, found {shown(attributes)}")
        return None
    value = (attributes or {}).get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        faults.add(f"{where}: attributes.{field}: expected a name or a whole number, found {shown(value)}")
        return None
    return re.sub(r"[\s/]", "-", str(value))


def _size(value: Any) -> tuple[int, int] | None:
    """Return the stated (width, height), or None if there is none."""
    sides = [value.get(side) for side in ("width", "height")] if isinstance(value, dict) else []
    stated = [side for side in sides if isinstance(side, int) and not isinstance(side, bool) and side > 0]
    return (stated[0], stated[1]) if len(stated) == 2 else None


def _read_label(at: str, label: Any, classes: tuple[str, ...], faults: Faults) -> Thing | Region | None:
    """Return the object or ignore region of a label, or None if it has no box or is reported."""
    if not isinstance(label, dict):
        faults.add(f"{at}: expected a mapping with category and box2d, found {shown(label)}")
        return None
    edges = label.get("box2d")
    if edges is None:
        return None
    category = label.get("category")
    if not isinstance(category, str) or not category or not is_utf8(category):
        faults.add(f"{at}: category: expected a name, found {shown(category)}")
        return None
    values = [edges.get(edge) for edge in _EDGES] if isinstance(edges, dict) else []
    try:
        numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    except OverflowError:
        numbers = []
    if len(numbers) != len(_EDGES):
        faults.add(f"{at}: box2d: expected four numbers {', '.join(_EDGES)}, found {shown(edges)}")
        return None
    uncounted = _is_uncounted(at, label.get("attributes"), faults)
    box = box_with_area(f"{at}: box2d", numbers, faults)
    if box is None:
        return None
    if category in NOT_EVALUATED and category not in classes:
        category = NOT_EVALUATED[category]
        # There is no detection of a class that the specification does not have.
        return Region(at, category, box) if not classes or category in classes else None
    return Region(at, category, box) if uncounted else Thing(at, category, box)


def _is_uncounted(at: str, attributes: Any, faults: Faults) -> bool:
    """Return whether the label's attributes make it an ignore region."""
    flags = [attributes.get(flag) for flag in ("crowd", "ignored")] if isinstance(attributes, dict) else []
    for flag in flags:
        if flag is not None and not isinstance(flag, bool):
            faults.add(f"{at}: attributes: expected true or false for crowd and ignored, found {shown(flag)}")
    return any(flag is True for flag in flags)
