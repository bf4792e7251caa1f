"""PASCAL VOC folders for tests: images of noise with annotations, and lists of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult>"
    "<part><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part><bndbox>"
    "<xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
)
CHAIR = {"name": "chair", "box": (1, 2, 30, 40), "difficult": 0}
TABLE = {"name": "table", "box": (10, 10, 64, 48), "difficult": 1}


def add_image(folder: Path, name: str, *things: dict[str, Any], extra: str = "", suffix: str = ".jpg") -> None:
    (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, name))
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}{suffix}")
    objects = "".join(OBJECT.format(**thing) for thing in things)
    text = f"<annotation>{extra}<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{objects}</annotation>"
    (folder / "Annotations" / f"{name}.xml").write_text(text)


def add_lists(folder: Path, train: str, test: str) -> None:
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text(train)
    (folder / "ImageSets" / "Main" / "test.txt").write_text(test)
