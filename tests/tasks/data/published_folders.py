"""Small folders in the published forms of BDD100K, VisDrone and KITTI, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
KITTI_END = "1.65 1.67 3.64 -0.65 1.71 46.70 -1.59"


def write_image(path: Path) -> None:
    """Write an image of noise that differs from that of any other name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(path.name.encode())).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def label(category: str, *box: float, **attributes: Any) -> dict[str, Any]:
    """Return a label of BDD100K."""
    return {
        "category": category,
        "attributes": attributes,
        "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
    }


def bdd100k(root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Write the images of a BDD100K folder: a to d for training, t and u for tests. Return the frames of both parts."""
    weathers = {"a": "partly cloudy", "b": "rainy", "c": "partly cloudy", "d": "rainy", "t": "rainy", "u": "rainy"}
    frames: dict[str, dict[str, Any]] = {
        name: {
            "name": f"{name}.jpg",
            "attributes": {"weather": weather, "scene": "city street", "timeofday": "dawn/dusk"},
            "labels": [label("car", 1, 2, 30.5, 40), label("traffic sign", 10, 10, 20, 20)],
        }
        for name, weather in weathers.items()
    }
    frames["b"]["labels"] = None
    del frames["c"]["labels"]
    lane = {"category": "lane", "attributes": {}, "poly2d": [{"vertices": [[0, 0], [1, 1]], "types": "LL"}]}
    frames["d"]["labels"] = [lane, {**lane, "box2d": None}, label("car", 0, 0, 9, 9, crowd=True)]
    for name in frames:
        write_image(root / "images" / "100k" / ("val" if name in "tu" else "train") / f"{name}.jpg")
    return [frames[name] for name in "abcd"], [frames[name] for name in "tu"]


def write_frames(root: Path, train: Any, test: Any) -> None:
    """Write the two files of BDD100K's labels."""
    (root / "labels" / "det_20").mkdir(parents=True, exist_ok=True)
    (root / "labels" / "det_20" / "det_train.json").write_text(json.dumps(train))
    (root / "labels" / "det_20" / "det_val.json").write_text(json.dumps(test))


VISDRONE = {
    "VisDrone2019-DET-train/0000002_00005_d_0000014": ("1,2,30,40,1,1,0,0", "10,10,8,9,1,4,0,1", "40,30,60,60,0,0,0,0"),
    "VisDrone2019-DET-train/0000002_00448_d_0000015": ("5,5,5,5,1,11,0,0", "5,6,7,8,0,4,0,0,", "9,9,0,4,1,4,0,0"),
    "VisDrone2019-DET-train/0000007_04999_d_0000036": (),
    "VisDrone2019-DET-val/0000001_02999_d_0000005": ("0,0,64,48,1,10,0,0",),
}


def write_visdrone(root: Path) -> None:
    """Write a VisDrone folder: two training images of sequence 2, one of sequence 7, one test image of sequence 1."""
    for path, lines in VISDRONE.items():
        part, name = path.split("/")
        write_image(root / part / "images" / f"{name}.jpg")
        write_lines(root / part / "annotations" / f"{name}.txt", *lines)


KITTI = {
    "000000": (f"Car 0.00 0 1.85 1.25 2.50 30.75 40.00 {KITTI_END}", f"DontCare -1 -1 -10 40.5 30 70 60 {KITTI_END}"),
    "000001": (f"Pedestrian 0.00 0 1.85 10.00 10.00 18.00 19.00 {KITTI_END}",),
    "000002": (),
    "000003": (f"Car 0.88 3 -0.69 0.00 0.00 63.00 47.00 {KITTI_END}",),
}


def write_kitti(root: Path) -> None:
    """Write a KITTI folder: images 0 to 2 for training, 3 for tests."""
    for name, lines in KITTI.items():
        write_image(root / "training" / "image_2" / f"{name}.png")
        write_lines(root / "training" / "label_2" / f"{name}.txt", *lines)
    write_lines(root / "ImageSets" / "train.txt", "000000", "000001", "000002")
    write_lines(root / "ImageSets" / "val.txt", "000003")
