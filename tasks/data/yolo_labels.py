"""The label files of a YOLO data set: one for each image, a line for each object."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tasks.data.entries import Faults, Thing, box_with_area, shown
from tasks.documents.text_number import read_decimal

# Fraction of the image's side. Files round fractions to a few digits.
SLACK = 1e-3


def label_file(image: str) -> str:
    """Return the path of an image's label file: below ``labels/`` instead of the last ``images/``, with suffix .txt.

    Without a folder ``images/`` the file is beside the image.
    """
    head, found, tail = f"/{image}".rpartition("/images/")
    return os.path.splitext(f"{head}/labels/{tail}" if found else f"/{image}")[0][1:] + ".txt"


def read_labels(path: Path, data: bytes, names: tuple[str, ...], faults: Faults, keypoints: int = 0) -> Iterator[Thing]:
    """Yield the objects in a label file. Boxes are xmin, ymin, xmax, ymax in fractions of the image's size.

    A line is ``class x y width height``, with the box's centre, or a polygon ``class x1 y1 x2 y2 x3 y3 …``, which is
    replaced by its bounding box. With ``keypoints``, it is a box with that many more columns, which are not used, or a
    box alone.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        faults.add(f"{path}: expected lines of numbers in UTF-8: {error}")
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            thing = _read_line(f"{path}: line {number}", line.split(), names, faults, keypoints)
            if thing is not None:
                yield thing


def _read_line(at: str, columns: list[str], names: tuple[str, ...], faults: Faults, keypoints: int) -> Thing | None:
    if keypoints:
        if len(columns) not in (5, 5 + keypoints):
            faults.add(
                f"{at}: expected class x y width height and {keypoints} columns of keypoints (kpt_shape), or the box "
                f"alone, found {len(columns)} columns"
            )
            return None
    elif len(columns) != 5 and (len(columns) < 7 or len(columns) % 2 == 0):
        score = "; a sixth column, a detection's score, is not read" if len(columns) == 6 else ""
        pose = "; keypoints are left out where data.yaml has kpt_shape" if len(columns) > 6 else ""
        faults.add(
            f"{at}: expected class x y width height, or a polygon class x1 y1 x2 y2 x3 y3 …, "
            f"found {len(columns)} columns{score}{pose}"
        )
        return None
    try:
        label, *values = map(read_decimal, columns)
    except ValueError:
        faults.add(f"{at}: expected numbers, found {shown(' '.join(columns))}")
        return None
    if not 0 <= label < len(names) or not label.is_integer():
        faults.add(f"{at}: expected a class from 0 to {len(names) - 1}, found {columns[0]}")
        return None
    if keypoints:
        columns, values = columns[:5], values[:4]
    wrong = [text for text, value in zip(columns[1:], values, strict=True) if not -SLACK <= value <= 1 + SLACK]
    if wrong:
        faults.add(f"{at}: expected fractions of the image's size, from 0 to 1, found {shown(' '.join(wrong))}")
        return None
    if len(values) == 4:
        x, y, width, height = values
        edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        edges = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    box = box_with_area(at, edges, faults)
    return None if box is None else Thing(at, names[int(label)], box)
