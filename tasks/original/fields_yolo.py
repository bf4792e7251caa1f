"""The fields of the original's YOLOv3 tasks, and what its code has (``model/yolo.py``, ``utils/datasets.py``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tasks.original.fields import (
    MULTIPLE,
    NOT_CARRIED,
    SHARED,
    STREET_SIZE,
    Handler,
    State,
    flag,
    note,
    part,
    text,
    whole,
)
from tasks.original.network_file import read_network
from tasks.original.task_files import find
from tasks.spec.detector import YOLOV3_ANCHORS, YOLOV3_TINY_ANCHORS

ORIGINAL_INPUT = 416  # pixels of the input's side; the published anchors are fractions of it
MULTI_SCALE_REACH = 96  # pixels below and above the input's side, in the original's ListDataset

_SCORES = (
    f"{NOT_CARRIED}mAP is over detections with score ≥ 0.001 (evaluation.score_threshold), because 0.5 cuts the recall "
    "axis short; the original's figures are not comparable"
)


def published() -> dict[str, Any]:
    """Return the values of the published files and code. They stand for all that the task's files leave out."""
    return {
        "detector": {
            "kind": "yolov3",
            "width": ORIGINAL_INPUT,
            "height": _height_for(ORIGINAL_INPUT),
            "assignment": "best-prior",
            "box_loss": "squared-error",
            "ignore_iou": 0.5,
        },
        "training": {
            "local_epochs": 5,
            "batch_size": 1,
            "accumulate": 2,
            "optimizer": {"kind": "adam", "lr": 0.001, "betas": [0.9, 0.999], "weight_decay": 0.0},
            "schedule": {"warmup_steps": 0},
            "clip_norm": None,
            "augmentation": {"flip": 0.5, "scale": 0.0, "translate": 0.0, "color": 0.0},
        },
        "evaluation": {"nms_iou": 0.5},
        "participation": {},
    }


def finish(state: State) -> list[tuple[str, str]]:
    """Set the detector's anchors and masks. Return the line on them.

    Anchors keep the original's sizes in pixels at the input's width and height.
    """
    detector = state.document["detector"]
    detector["kind"] = state.kind
    if state.network is None:
        published = YOLOV3_ANCHORS if state.kind == "yolov3" else YOLOV3_TINY_ANCHORS
        pixels = tuple((width * ORIGINAL_INPUT, height * ORIGINAL_INPUT) for width, height in published)
        line = ("anchors", "detector.anchors: the published ones, of COCO: the cfg was not found")
    else:
        pixels = state.network.anchors
        detector["masks"] = [list(mask) for mask in state.network.masks]
        line = ("anchors, masks", f"detector.anchors, detector.masks: the cfg's, {len(pixels)} anchors")
    sides = (detector["width"], detector["height"])
    detector["anchors"] = [[round(width / sides[0], 6), round(height / sides[1], 6)] for width, height in pixels]
    return [line]


def _height_for(width: int) -> int:
    """Return the input's height. The original pads images to a square; the same scale without bars is 416 x 340."""
    return MULTIPLE * round(width * STREET_SIZE[1] / STREET_SIZE[0] / MULTIPLE)


def _accumulations(state: State, at: str, value: Any) -> str:
    batches = whole(at, value, 1)
    state.document["training"]["accumulate"] = batches
    text = (
        "training.accumulate: a step takes the mean of the batches' gradients; the original took their sum (little "
        "difference with Adam)"
    )
    if batches != 2:
        # The original steps whenever the count of batches is not a multiple of this value.
        text += f"; in the original, {batches} meant " + (
            "no step at all" if batches == 1 else f"{batches - 1} steps in {batches}"
        )
    return text


def _multi_scale(state: State, at: str, value: Any) -> str:
    if not flag(at, value):
        return "training.multi_scale: none"
    limits = [ORIGINAL_INPUT - MULTI_SCALE_REACH, ORIGINAL_INPUT + MULTI_SCALE_REACH]
    state.document["training"]["multi_scale"] = limits
    return (
        f"training.multi_scale: {limits}, another size every ten steps (in the original every ten batches); anchors "
        "scale with the size (in the original they stayed)"
    )


def _img_size(state: State, at: str, value: Any) -> str:
    size = whole(at, value, MULTIPLE)
    text = (
        f"detector.width: {ORIGINAL_INPUT}, detector.height: {_height_for(ORIGINAL_INPUT)}. The original padded the "
        "704 x 576 images to a square; this is the same scale without the bars"
    )
    if size != ORIGINAL_INPUT:
        text += f". {NOT_CARRIED}{size}: the original's data loader always used {ORIGINAL_INPUT}"
    return text


def _confidence(state: State, at: str, value: Any) -> str:
    part(at, value)
    return _SCORES


def _nms(state: State, at: str, value: Any) -> str:
    state.document["evaluation"]["nms_iou"] = part(at, value)
    return "evaluation.nms_iou"


def _iou(state: State, at: str, value: Any) -> str:
    overlap = part(at, value)
    if overlap == 0.5:
        return "map50_voc10 is at this overlap, as are map50_voc07 and map50_coco"
    return f"{NOT_CARRIED}mAP is at overlap 0.5 (map50_voc10), or over 0.50 to 0.95 (map_coco)"


def _model_def(state: State, at: str, value: Any) -> str:
    named = text(at, value)
    path = find(named, state.task.path)
    if path is None or not path.is_file():
        state.kind = "yolov3-tiny" if "tiny" in Path(named).name.lower() else "yolov3"
        return f"detector.kind: {state.kind}, by the file's name alone: the file was not found"
    state.network = read_network(path)
    state.kind = state.network.kind
    return f"detector.kind: {state.kind}; its {state.network.classes} classes follow from the data here"


def _pretrained(state: State, at: str, value: Any) -> str:
    if value in (None, "", False):
        return "detector.weights: random, drawn from the seed"
    name = text(at, value).replace("\\", "/").rpartition("/")[2]
    if name.endswith((".pth", ".pt", ".pkl")) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        return f"{NOT_CARRIED}expected a Darknet file; the weights of round 0 are drawn from the seed"
    state.document["detector"]["weights"] = {"kind": "darknet", "name": name}
    return f"detector.weights: {name}, expected in the folder that FEDBENCH_WEIGHTS_DIR names"


HANDLERS: dict[str, Handler] = {
    **SHARED,
    "model_name": note("detector: YOLOv3"),
    "model_def": _model_def,
    "pretrained_weights": _pretrained,
    "multiscale_training": _multi_scale,
    "gradient_accumulations": _accumulations,
    "img_size": _img_size,
    "conf_thres": _confidence,
    "nms_thres": _nms,
    "iou_thres": _iou,
}
CODE_ROWS = (
    ("seed 1234", "seed: 1234"),
    ("Adam, 0.001", "training.optimizer: adam, lr 0.001; no clipping, no warm-up, constant"),
    ("horizontal flip", "training.augmentation: flip 0.5, nothing else"),
    ("loss", "detector.assignment: best-prior, box_loss: squared-error; in the original, objectness without an object "
             "counts 100 times and terms are means over boxes, not over images: losses are not comparable"),
    ("confidence 0.5", _SCORES),
    ("NMS 0.5, IoU 0.5", "evaluation.nms_iou: 0.5, map50_voc10"),
    ("BatchNorm", f"{NOT_CARRIED}the original evaluates it in training mode, and each client keeps its own statistics"),
    ("GPU", "training.device: cpu unless a field says otherwise; with a GPU, -s training.device=cuda"),
)  # fmt: skip
