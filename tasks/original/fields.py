"""What each field of the original's files becomes: one function a field, which changes the state of a conversion.

Each function returns the line on the field that the user reads. The original's behaviour is that of its
``fl_server.py``, ``fl_client.py``, ``model/model_wrapper.py``, ``model/yolo.py`` and ``utils/datasets.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import SpecError
from tasks.original.network_file import NetworkFile, read_network
from tasks.original.task_files import OriginalTask, find, shown

NOT_CARRIED = "not carried over: "
# Street's images. The original pads them to a square; the same scale without the bars is 416 x 340, here 416 x 352.
STREET_SIZE = (704, 576)
MULTIPLE = 32
ORIGINAL_INPUT = 416
MULTI_SCALE_REACH = 96  # pixels below and above the input's side, in the original's ListDataset


@dataclass
class State:
    """The state of a conversion. ``document`` is the specification so far; network and kind come from ``model_def``."""

    task: OriginalTask
    document: dict[str, Any] = field(default_factory=dict)
    network: NetworkFile | None = None
    kind: str = "yolov3"


# It takes the state, the field as messages name it ("file: field"), and its value, and returns what became of it.
Handler = Callable[[State, str, Any], str]


def height_for(width: int) -> int:
    return MULTIPLE * round(width * STREET_SIZE[1] / STREET_SIZE[0] / MULTIPLE)


def _whole(at: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SpecError(f"{at}: expected a whole number from {least}, found {shown(value)}")
    return value


def _flag(at: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{at}: expected true or false, found {shown(value)}")
    return value


def _part(at: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SpecError(f"{at}: expected a number from 0 to 1, found {shown(value)}")
    return float(value)


def _text(at: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{at}: expected text, found {shown(value)}")
    return value


def _note(text: str) -> Handler:
    return lambda state, at, value: text


def _min_workers(state: State, at: str, value: Any) -> str:
    state.document["participation"]["min_clients"] = _whole(at, value, 1)
    return "participation.min_clients"


def _rounds(state: State, at: str, value: Any) -> str:
    rounds = _whole(at, value, 0)
    state.document["max_rounds"] = rounds + 1
    return f"max_rounds: {rounds + 1}; the original counts from 0 and stops after round {rounds}: one round more"


def _tolerate(state: State, at: str, value: Any) -> str:
    tolerated = _whole(at, value, -(10**9))
    if tolerated <= 0:
        return "patience: none; the original stops early only for numbers from 1"
    state.document |= {"patience": tolerated + 1, "patience_metric": "loss"}
    return (
        f"patience: {tolerated + 1}, patience_metric: loss. There: the test loss rose more than {tolerated} times in a "
        "row (its clients never send that loss, so it never stopped); here: as many rounds without a lower one"
    )


def _contacted(state: State, at: str, value: Any) -> str:
    state.document["participation"]["clients_per_round"] = _whole(at, value, 1)
    return "participation.clients_per_round; a round goes on with more than half of them, where the original hung"


def _between(state: State, at: str, value: Any) -> str:
    _whole(at, value, 1)
    return f"{NOT_CARRIED}every round is evaluated, as in the original, whose code reads this number and never uses it"


def _local_epoch(state: State, at: str, value: Any) -> str:
    state.document["training"]["local_epochs"] = _whole(at, value, 1)
    return "training.local_epochs; Adam starts afresh every round; the original kept its state from round to round"


def _batch_size(state: State, at: str, value: Any) -> str:
    state.document["training"]["batch_size"] = _whole(at, value, 1)
    return "training.batch_size; evaluation has its own, and never depends on it (BatchNorm in evaluation mode)"


def _workers(state: State, at: str, value: Any) -> str:
    state.document["training"]["loader_workers"] = min(_whole(at, value, 0), 64)
    return "training.loader_workers; they never change the result"


def _device(state: State, at: str, value: Any) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise SpecError(f"{at}: expected cpu, cuda or a GPU's number, found {shown(value)}")
    device = "cpu" if value == "cpu" else "cuda"
    state.document["training"]["device"] = device
    return f"training.device: {device}"


def _load(state: State, at: str, value: Any) -> str:
    enforced = not _flag(at, value)
    state.document["participation"]["check_load"] = enforced
    return f"participation.check_load: {str(enforced).lower()}, under the same max_load of 0.4"


def _accumulations(state: State, at: str, value: Any) -> str:
    batches = _whole(at, value, 1)
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
    if not _flag(at, value):
        return "training.multi_scale: none"
    limits = [ORIGINAL_INPUT - MULTI_SCALE_REACH, ORIGINAL_INPUT + MULTI_SCALE_REACH]
    state.document["training"]["multi_scale"] = limits
    return (
        f"training.multi_scale: {limits}, another size every ten steps (in the original every ten batches); anchors "
        "scale with the size (in the original they stayed)"
    )


def _img_size(state: State, at: str, value: Any) -> str:
    size = _whole(at, value, MULTIPLE)
    text = (
        f"detector.width: {ORIGINAL_INPUT}, detector.height: {height_for(ORIGINAL_INPUT)}. The original padded the "
        "704 x 576 images to a square; this is the same scale without the bars"
    )
    if size != ORIGINAL_INPUT:
        text += f". {NOT_CARRIED}{size}: the original's data loader always used {ORIGINAL_INPUT}"
    return text


def _confidence(state: State, at: str, value: Any) -> str:
    _part(at, value)
    return _SCORES


def _nms(state: State, at: str, value: Any) -> str:
    state.document["evaluation"]["nms_iou"] = _part(at, value)
    return "evaluation.nms_iou"


def _iou(state: State, at: str, value: Any) -> str:
    overlap = _part(at, value)
    if overlap == 0.5:
        return "map50_voc10 is at this overlap, as are map50_voc07 and map50_coco"
    return f"{NOT_CARRIED}mAP is at overlap 0.5 (map50_voc10), or over 0.50 to 0.95 (map_coco)"


def _model_def(state: State, at: str, value: Any) -> str:
    named = _text(at, value)
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
    name = _text(at, value).replace("\\", "/").rpartition("/")[2]
    if name.endswith((".pth", ".pt", ".pkl")) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        return f"{NOT_CARRIED}expected a Darknet file; the weights of round 0 are drawn from the seed"
    state.document["detector"]["weights"] = {"kind": "darknet", "name": name}
    return f"detector.weights: {name}, expected in the folder that FEDBENCH_WEIGHTS_DIR names"


_SCORES = (
    f"{NOT_CARRIED}mAP is over detections with score ≥ 0.001 (evaluation.score_threshold), because 0.5 cuts the recall "
    "axis short; the original's figures are not comparable"
)
_PATHS = "the data's split; each machine names its folder (FEDBENCH_STREET_DIR), and every device has its own images"
_LOGS = f"{NOT_CARRIED}logs are below the home folder, rounds in the store and in MLflow (fedbench show, export)"

HANDLERS: dict[str, Handler] = {
    "model_name": _note("detector: YOLOv3"),
    "model_config": _note("read; its fields are below"),
    "model_config_file": _note("read; its fields are below"),
    "log_dir": _note(_LOGS),
    "log_filename": _note(_LOGS),
    "model_path": _note(f"{NOT_CARRIED}global weights are in the store, one a round; see fedbench original weights"),
    "data_path": _note(_PATHS),
    "data_config": _note(_PATHS),
    "train": _note(_PATHS),
    "test": _note(_PATHS + "; one test set for all"),
    "valid": _note(_PATHS + "; one test set for all"),
    "names": _note("the data's own classes, in alphabetical order, which is the original's order for Street"),
    "MIN_NUM_WORKERS": _min_workers,
    "MAX_NUM_ROUNDS": _rounds,
    "NUM_TOLERATE": _tolerate,
    "NUM_CLIENTS_CONTACTED_PER_ROUND": _contacted,
    "ROUNDS_BETWEEN_VALIDATIONS": _between,
    "ignore_load": _load,
    "local_epoch": _local_epoch,
    "batch_size": _batch_size,
    "n_cpu": _workers,
    "device": _device,
    "gpu": _device,
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
