"""Small folders in the layout of Roboflow's COCO exports, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.tasks.data.published_folders import HEIGHT, WIDTH, write_image

# The first category is the project. Roboflow numbers from 0, and the project may have the name of a class.
CATEGORIES = [
    {"id": 0, "name": "chair", "supercategory": "none"},
    {"id": 1, "name": "chair", "supercategory": "chair"},
    {"id": 2, "name": "table", "supercategory": "chair"},
]
IMAGES = {"train": ("a", "b"), "valid": ("v",), "test": ("t",)}


def document(names: Sequence[str]) -> dict[str, Any]:
    """Return annotations: a chair and a table in each image."""
    return {
        "info": {"description": "Exported from roboflow.com"},
        "categories": CATEGORIES,
        "images": [
            {"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT, "extra": {"name": name}}
            for number, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": 2 * number + category - 1,
                "image_id": number,
                "category_id": category,
                "bbox": [5 * category, 4, 10, 20.5],
                "area": 205,
                "segmentation": [],
                "iscrowd": 0,
            }
            for number in range(len(names))
            for category in (1, 2)
        ],
    }


def write_roboflow(root: Path, parts: Sequence[str] = ("train", "valid", "test")) -> Path:
    """Write ``parts`` of a Roboflow export to ``root``: two training images, one to validate, one to test."""
    for part in parts:
        for name in IMAGES[part]:
            write_image(root / part / f"{name}.png")
        (root / part / "_annotations.coco.json").write_text(json.dumps(document(IMAGES[part])))
    return root
