"""Reader of COCO's JSON (Lin et al., arXiv 1405.0312): an annotation file and a folder of images for each part.

``bbox`` is x, y, width, height in pixels; ``iscrowd`` makes it an ignore region of its class. An image may name its
device in an attribute of its own. Segmentations and keypoints are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os.path import exists
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from tasks.data.assemble import assemble_own
from tasks.data.coco_layout import ROBOFLOW_FILE, advice, unused_part, with_own_layout, without_headings
from tasks.data.entries import (
    Entry,
    Faults,
    Parsed,
    Region,
    Thing,
    box_with_area,
    file_exists,
    inside,
    is_utf8,
    read_json,
    shown,
)
from tasks.data.samples import FederatedData
from tasks.spec.clients import ByField
from tasks.spec.data import Coco

# Pixels. COCO's own boxes extend beyond their images by fractions of a pixel.
SLACK = 1.0


def load_coco(root: Path, spec: Coco, *, faults: Faults | None = None) -> FederatedData:
    """Read annotations and image headers; every image's bytes are read and hashed, none is decoded.

    If the specification lists no classes, they are the training file's categories in alphabetical order. A box that
    extends up to one pixel beyond its image is cut. If the specification names no files and there is no train.json,
    COCO's own layout or Roboflow's is read (:func:`tasks.data.coco_layout.own_layout`). If ``faults`` collects
    mistakes, the usable part is returned.

    Raises:
        DataError: a file, key, category, box, device or image is missing or wrong, or the content is not the
            expected one; the message names the file, and the image or annotation.
    """
    faults = faults or Faults()
    spec = with_own_layout(root, spec)
    if spec.train == Coco.model_fields["train"].default and not exists(root / spec.train):
        faults.add_unread(f"{root / spec.train}: cannot be read: No such file or directory; {advice(root)}")
        return FederatedData(name=spec.name, digest="", classes=(), train={}, test={})
    unused = unused_part(root, spec)
    if unused is not None:
        faults.notes.parts.append(unused)
    parsed = Parsed([], [], (), [], (spec.train, spec.test))
    field = spec.clients.field if isinstance(spec.clients, ByField) else None
    parsed.train, categories = _read_part(root, spec.train, spec.train_images, field, parsed, faults)
    parsed.test, _ = _read_part(root, spec.test, spec.test_images, field, parsed, faults)
    parsed.classes = spec.classes or tuple(sorted(set(categories.values())))
    return assemble_own(root, spec, parsed, faults, where=str(root / spec.train), slack=SLACK)


def _read_part(
    root: Path, file: str, images: str, field: str | None, parsed: Parsed, faults: Faults
) -> tuple[list[Entry], dict[int, str]]:
    """Return the entries of one annotation file, in its order, and its categories by id."""
    path = root / file
    document, digest = read_json(path, faults)
    if not digest:
        return [], {}
    parsed.files.append((file, digest))
    if not isinstance(document, dict):
        faults.add_unread(
            f"{path}: expected a mapping with images, annotations and categories, found {shown(document)}"
        )
        return [], {}
    lists = {key: _mappings(path, document, key, faults) for key in ("images", "annotations", "categories")}
    if path.name == ROBOFLOW_FILE:
        used = {item["category_id"] for item in lists["annotations"] if _is_id(item.get("category_id"))}
        lists["categories"] = without_headings(lists["categories"], used)
    categories = _categories(path, lists["categories"], faults)
    known = {item["id"] for item in lists["images"]}
    things: dict[int, list[Thing | Region]] = {}
    for item in lists["annotations"]:
        at = f"{path}: annotation {item['id']}"
        image = item.get("image_id")
        if not _is_id(image) or image not in known:
            faults.add(f"{at}: image_id: expected the id of one of the images, found {shown(image)}")
            continue
        thing = _read_thing(at, item, categories, faults)
        if thing is not None:
            things.setdefault(image, []).append(thing)
    found = (
        _read_image_entry(path, item, _Images(root, images), field, things.get(item["id"], []), faults)
        for item in lists["images"]
    )
    return [entry for entry in found if entry is not None], categories


@dataclass(frozen=True)
class _Images:
    """The folder of one part's images: the specification's ``folder``, relative to ``root``."""

    root: Path
    folder: str

    def inside(self, name: str) -> str:
        """Return the path from the root of an image whose path from the folder is ``name``.

        Some tools write the path from the root. ``name`` is read that way if a file exists only there.
        """
        path = name if self.folder == "." else f"{self.folder}/{name}"
        from_root = path != name and "/" in name
        # The functions are os.path's, because Path.exists raises for names that are too long.
        return name if from_root and not exists(self.root / path) and file_exists(self.root / name) else path


def _mappings(path: Path, document: Mapping[str, Any], key: str, faults: Faults) -> list[dict[str, Any]]:
    """Return the mappings in the list under ``key``. Report and leave out items without an ``id`` of their own."""
    if not isinstance(document.get(key), list):
        faults.add_unread(f"{path}: {key}: expected a list, found {shown(document.get(key))}")
        return []
    good: dict[int, dict[str, Any]] = {}
    for number, item in enumerate(document[key], 1):
        found = item.get("id") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not _is_id(found):
            faults.add(
                f"{path}: {key}: item {number}: expected a mapping with a whole number as id, found {shown(item)}"
            )
        elif found in good:
            faults.add(f"{path}: {key}: item {number}: id: expected every id once, found {found} again")
        else:
            good[item["id"]] = item
    return list(good.values())


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _categories(path: Path, items: list[dict[str, Any]], faults: Faults) -> dict[int, str]:
    ids: dict[str, int] = {}
    for item in items:
        name = item.get("name")
        if not isinstance(name, str) or not name or not is_utf8(name):
            faults.add(f"{path}: category {item['id']}: name: expected a name, found {shown(name)}")
        elif name in ids:
            faults.add(f"{path}: category {item['id']}: name: expected every category once, found {name!r} again")
        else:
            ids[name] = item["id"]
    return {number: name for name, number in ids.items()}


def _read_image_entry(
    path: Path, item: dict[str, Any], images: _Images, field: str | None, things: list[Thing | Region], faults: Faults
) -> Entry | None:
    where = f"{path}: image {item['id']}"
    found = item.get("file_name")
    name = inside(found) if isinstance(found, str) else None
    if name is None:
        faults.add(
            f"{where}: file_name: expected a path inside the folder of images, relative and without .., "
            f"found {shown(found)}"
        )
        return None
    if not is_utf8(name):
        faults.add(f"{where}: file_name: expected a name in UTF-8, found {shown(found)}; rename the file")
        return None
    where = f"{where} ({name})"
    device = item.get(field) if field is not None else None
    if device is not None and (isinstance(device, bool) or not isinstance(device, str | int)):
        faults.add(f"{where}: {field}: expected a device's name or number, found {shown(device)}")
        device = None
    width, height = item.get("width"), item.get("height")
    stated = isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0
    return Entry(
        where=where,
        key=str(PurePosixPath(name).with_suffix("")),
        inside=images.inside(name),
        device=None if device is None else str(device),
        things=tuple(thing for thing in things if isinstance(thing, Thing)),
        size=(int(item["width"]), int(item["height"])) if stated else None,
        regions=tuple(thing for thing in things if isinstance(thing, Region)),
    )


def _read_thing(at: str, item: dict[str, Any], categories: Mapping[int, str], faults: Faults) -> Thing | Region | None:
    category = item.get("category_id")
    if not _is_id(category) or category not in categories:
        faults.add(f"{at}: category_id: expected the id of one of the categories, found {shown(category)}")
        return None
    value = item.get("bbox")
    numbers = isinstance(value, list) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value)
    if not isinstance(value, list) or not numbers or len(value) != 4:
        faults.add(f"{at}: bbox: expected four numbers x, y, width, height, found {shown(value)}")
        return None
    crowd = item.get("iscrowd", 0)
    if crowd not in (0, 1):
        faults.add(f"{at}: iscrowd: expected 0 or 1, found {shown(crowd)}")
    try:
        left, top, width, height = (float(number) for number in value)
    except OverflowError:
        faults.add(f"{at}: bbox: expected four numbers x, y, width, height, found {shown(value)}")
        return None
    box = box_with_area(f"{at}: bbox", (left, top, left + width, top + height), faults)
    return None if box is None else (Region if crowd == 1 else Thing)(at, categories[category], box)
