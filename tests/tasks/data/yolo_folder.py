"""YOLO folders for tests: images of noise, label files and data.yaml. Also a short reader, independent of ours."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

WIDTH, HEIGHT = 64, 48
LABELS = "0 0.5 0.5 0.25 0.5\n2 0.1 0.2 0.1 0.1\n"


def add_image(root: Path, inside: str, labels: str | None = LABELS) -> None:
    """Write the image ``inside`` and its label file; None: no label file."""
    path = root / inside
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(f"{root.name}/{inside}".encode())).integers(
        0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8
    )
    Image.fromarray(pixels).save(path)
    if labels is not None:
        label = root / re.sub(r"images/(?!.*images/)", "labels/", inside)
        label.parent.mkdir(parents=True, exist_ok=True)
        label.with_suffix(".txt").write_text(labels)


def write_yolo_folder(root: Path, *, text: str = "") -> Path:
    """Write training images 1 to 6, val 7 and 8, and data.yaml with two parts and three names. Return ``root``."""
    for number in range(1, 9):
        add_image(root, f"images/{'train' if number < 7 else 'val'}/{number}.png")
    default = "path: .\ntrain: images/train\nval: images/val\nnc: 3\nnames: [ant, bee, cat]\n"
    (root / "data.yaml").write_text(text or default)
    return root


def read_independently(file: Path) -> dict[str, list[tuple[str, list[float]]]]:
    """Return by image name the class and box in pixels of each object of data.yaml's part train."""
    document = yaml.safe_load(file.read_text())
    names = document["names"]
    found = {}
    for image in (file.parent / document["train"]).rglob("*.[pj][np]g"):
        with Image.open(image) as opened:
            width, height = opened.size
        labels = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
        objects = []
        for line in labels.read_text().split("\n") if labels.exists() else []:
            if line:
                label, x, y, w, h = map(float, line.split())
                box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
                objects.append((names[int(label)], box))
        found[image.name] = objects
    return found
