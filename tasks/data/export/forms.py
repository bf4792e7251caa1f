"""The forms that a data set can be written in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.data.export.bdd100k import write_bdd100k
from tasks.data.export.coco import COCO_2017, write_coco
from tasks.data.export.kitti import write_kitti
from tasks.data.export.visdrone import write_visdrone
from tasks.data.export.voc import write_voc
from tasks.data.export.yolo import write_yolo
from tasks.data.samples import FederatedData

# By the form's name on the command line: a function that writes a data set to a folder, and returns the fields of
# ``data`` that read it, but no name.
WRITERS: dict[str, Callable[[FederatedData, Path], dict[str, Any]]] = {
    "coco": write_coco,
    "coco2017": lambda data, folder: write_coco(data, folder, COCO_2017),
    "voc": write_voc,
    "yolo": write_yolo,
    "bdd100k": write_bdd100k,
    "visdrone": write_visdrone,
    "kitti": write_kitti,
}
