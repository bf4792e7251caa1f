"""Find the files of a COCO data set: those that the specification names, those of COCO's own layout, or Roboflow's."""

from __future__ import annotations

import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from tasks.data.entries import file_exists
from tasks.spec.data import Coco

ANNOTATIONS = "annotations"
# The fields that name files and folders. COCO's own layout is looked for only if all have their defaults.
_PLACES = ("train", "test", "train_images", "test_images")
_INSTANCES = re.compile(r"instances_((train|val)[^/]*)\.json")
_NAMED = 6  # most files in a message
# Roboflow's exports have this file in each of the folders train, valid and test, beside the images.
ROBOFLOW_FILE = "_annotations.coco.json"
_ROBOFLOW_TESTS = ("test", "valid")  # the first that is there is the test set


def with_own_layout(root: Path, spec: Coco) -> Coco:
    """Return ``spec`` with the files of COCO's own layout if it names none and there is no train.json."""
    default = not _PLACES & spec.model_dump(exclude_defaults=True, include=set(_PLACES)).keys()
    if not default or os.path.exists(root / spec.train):
        return spec
    found = own_layout(root)
    return spec if found is None else spec.model_copy(update=found)


def own_layout(root: Path) -> dict[str, str] | None:
    """Return the fields that read COCO's own layout or Roboflow's; None if ``root`` has neither, or COCO's twice.

    COCO's layout is ``annotations/instances_train2017.json``, ``instances_val2017.json``, and folders of images called
    ``train2017`` and ``val2017``, in ``root`` or in ``images/``. val becomes the test set, because the annotations of
    COCO's own test images are not published. Roboflow's is ``train/_annotations.coco.json`` with the images beside it,
    and ``test/`` or else ``valid/`` likewise, which becomes the test set.
    """
    roboflow = [folder for folder in ("train", *_ROBOFLOW_TESTS) if file_exists(root / folder / ROBOFLOW_FILE)]
    if roboflow[:1] == ["train"] and len(roboflow) > 1:
        train, test = roboflow[:2]
        files = {"train": f"{train}/{ROBOFLOW_FILE}", "test": f"{test}/{ROBOFLOW_FILE}"}
        return {**files, "train_images": train, "test_images": test}
    parts = {kind: [match for match in _instances(root) if match[2] == kind] for kind in ("train", "val")}
    if any(len(found) != 1 for found in parts.values()):
        return None
    fields: dict[str, str] = {}
    for field, kind in (("train", "train"), ("test", "val")):
        (match,) = parts[kind]
        folders = [folder for folder in (match[1], f"images/{match[1]}") if os.path.isdir(root / folder)]
        if not folders:
            return None
        fields |= {field: f"{ANNOTATIONS}/{match[0]}", f"{field}_images": folders[0]}
    return fields


def unused_part(root: Path, spec: Coco) -> str | None:
    """Return the line that says which images of Roboflow's layout are not used; None: all are."""
    used, other = _ROBOFLOW_TESTS
    if spec.test != f"{used}/{ROBOFLOW_FILE}" or not file_exists(root / other / ROBOFLOW_FILE):
        return None
    return (
        f"{root}: the images of {other} are not used, because {used} is the test set; "
        f"data.test={other}/{ROBOFLOW_FILE} with data.test_images={other} scores on them instead"
    )


def without_headings(categories: list[dict[str, Any]], used: Container[object]) -> list[dict[str, Any]]:
    """Return the categories of a Roboflow export without those that only name a group of others.

    Its first category stands for the whole project: other categories name it as ``supercategory``, and no annotation
    has it. used: the ids that annotations have.
    """
    groups = {item.get("supercategory") for item in categories if isinstance(item.get("supercategory"), str)}
    return [
        item
        for item in categories
        if item["id"] in used or item.get("supercategory") != "none" or item.get("name") not in groups
    ]


def advice(root: Path) -> str:
    """Return the text that says which fields to set, with the JSON files that ``root`` has."""
    found = []
    for folder in ("", ANNOTATIONS):
        names = os.listdir(root / folder) if os.path.isdir(root / folder) else []
        found += sorted(f"{folder}/{name}".lstrip("/") for name in names if name.endswith(".json"))
    listed = ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
    return (
        "set data.train and data.test to the annotation files, and data.train_images and data.test_images to the "
        f"folders of their images; JSON files here: {listed or '(none)'}"
    )


def _instances(root: Path) -> list[re.Match[str]]:
    folder = root / ANNOTATIONS
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [match for match in map(_INSTANCES.fullmatch, names) if match]
