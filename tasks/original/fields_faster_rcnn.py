"""The fields of the original's Faster R-CNN tasks, and the rest of its code.

The original's detector is that of ``model/faster_rcnn_vgg16.py``, ``model/faster_rcnn_trainer.py``, ``data/dataset.py``
and ``utils/eval_tool.py``. The model file may have every field of ``utils/config.py``. As published, the task does not
start: the generator writes ``model_config`` where the wrapper reads ``model_config_file``; both are read here.
"""

from __future__ import annotations

from typing import Any

from tasks.errors import SpecError
from tasks.original.fields import (
    MULTIPLE,
    NOT_CARRIED,
    SHARED,
    STREET_SIZE,
    Handler,
    State,
    flag,
    local_epoch,
    note,
    whole,
    workers,
)
from tasks.original.fields import text as as_text
from tasks.original.task_files import shown

# torchvision's VGG16, trained on ImageNet. The original starts from Caffe's weights by default, which are not published
# in a form that is read here.
WEIGHTS = "vgg16-397923af.pth"
_UNUSED = f"{NOT_CARRIED}the original's federated code never uses it"


def published() -> dict[str, Any]:
    """Return the values of the published files and code. They stand for all that the task's files leave out."""
    return {
        "best_metric": "map50_voc07",
        "detector": {"kind": "faster-rcnn-vgg16", "weights": {"kind": "torchvision", "name": WEIGHTS}},
        "training": {
            "local_epochs": 5,
            "batch_size": 1,
            "optimizer": {"kind": "sgd", "lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"warmup_steps": 0},
            "clip_norm": None,
            "augmentation": {"flip": 0.5, "scale": 0.0, "translate": 0.0, "color": 0.0},
            "loader_workers": 8,
        },
        "evaluation": {"nms_iou": 0.3},
        "participation": {},
    }


def finish(state: State) -> list[tuple[str, str]]:
    """Set the input's size. Return the line on it."""
    least, most = state.sides
    scale = min(least / min(STREET_SIZE), most / max(STREET_SIZE))
    width, height = (MULTIPLE * max(round(side * scale / MULTIPLE), 2) for side in STREET_SIZE)
    state.document["detector"] |= {"width": width, "height": height}
    exact = " x ".join(f"{side * scale:.0f}" for side in STREET_SIZE)
    line = f"detector.width: {width}, detector.height: {height}; the original scaled Street's images to {exact}"
    return [("input", line)]


def _sides(state: State, at: str, value: Any) -> str:
    pixels = whole(at, value, MULTIPLE)
    state.sides = (pixels, state.sides[1]) if at.endswith("min_size") else (state.sides[0], pixels)
    return "detector.width, detector.height; see input"


def _epoch(state: State, at: str, value: Any) -> str:
    """Take ``epoch`` of a client's task, as older copies name it. In a model file it is another number."""
    if any(at == f"{client.path}: epoch" for client in state.task.clients):
        return local_epoch(state, at, value)
    return _UNUSED


def _batch_size(state: State, at: str, value: Any) -> str:
    images = whole(at, value, 1)
    if images > 1:
        return (
            f"{NOT_CARRIED}training.batch_size: 1; the original's code takes one image a step, and fails with {images}"
        )
    return "training.batch_size"


def _optimizer(name: str) -> Handler:
    def handle(state: State, at: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10:
            raise SpecError(f"{at}: expected a number from 0 to 10, found {shown(value)}")
        state.document["training"]["optimizer"][name] = float(value)
        return f"training.optimizer.{name}"

    return handle


def _adam(state: State, at: str, value: Any) -> str:
    if not flag(at, value):
        return "training.optimizer.kind: sgd"
    optimizer = state.document["training"]["optimizer"]
    optimizer.pop("momentum", None)
    optimizer["kind"] = "adam"
    return "training.optimizer.kind: adam"


def _dropout(state: State, at: str, value: Any) -> str:
    return f"{NOT_CARRIED}there is no dropout here" if flag(at, value) else "no dropout"


def _caffe(state: State, at: str, value: Any) -> str:
    source = "Caffe's" if flag(at, value) else "torchvision's"
    return (
        f"detector.weights: torchvision's {WEIGHTS}, expected in the folder that FEDBENCH_WEIGHTS_DIR names; the "
        f"original loads {source}"
    )


def _load_path(state: State, at: str, value: Any) -> str:
    if value is None:
        return "detector.weights: see caffe_pretrain"
    as_text(at, value)
    return f"{NOT_CARRIED}expected none; the original's checkpoints are pickles, see fedbench original weights"


_VISDOM = f"{NOT_CARRIED}the original's display; metrics are in MLflow"
HANDLERS: dict[str, Handler] = {
    **SHARED,
    "model_name": note("detector.kind: faster-rcnn-vgg16"),
    "epoch": _epoch,
    "train_size": note(f"{NOT_CARRIED}the number of the client's images is counted"),
    "test_size": note(f"{NOT_CARRIED}the number of test images is counted"),
    "batch_size": _batch_size,
    "min_size": _sides,
    "max_size": _sides,
    "num_workers": workers,
    "test_num_workers": note(f"{NOT_CARRIED}evaluation loads images in its own process"),
    "lr": _optimizer("lr"),
    "weight_decay": _optimizer("weight_decay"),
    "lr_decay": note(_UNUSED),
    "use_adam": _adam,
    "use_drop": _dropout,
    "use_chainer": note(_UNUSED),
    "caffe_pretrain": _caffe,
    "caffe_pretrain_path": note(f"{NOT_CARRIED}see caffe_pretrain"),
    "load_path": _load_path,
    "pretrained_model": note("detector.kind: faster-rcnn-vgg16, the only one in the original's code"),
    "rpn_sigma": note(f"{NOT_CARRIED}smooth L1 loss turns linear at 1/9, which is the published sigma 3"),
    "roi_sigma": note(f"{NOT_CARRIED}smooth L1 loss turns linear at 1/9, as in torchvision; sigma 1 means at 1"),
    "label_names": note("the data's own classes, in alphabetical order, which is the original's order for Street"),
    "voc_data_dir": SHARED["data_path"],
    "data": note(_UNUSED),
    "test_num": note(f"{NOT_CARRIED}all test images are scored; the original stops after this many"),
    "env": note(_VISDOM),
    "port": note(_VISDOM),
    "plot_every": note(_VISDOM),
    "debug_file": note(_UNUSED),
}
CODE_ROWS = (
    ("seed 1234", "seed: 1234"),
    ("SGD, 0.0001", "training.optimizer: sgd, momentum 0.9, weight decay 0.0005, constant; the original trains biases "
                    "at twice the rate and without decay"),
    ("horizontal flip", "training.augmentation: flip 0.5, nothing else"),
    ("VGG16", f"detector.weights: torchvision's {WEIGHTS}; its first four convolutions are frozen, as there"),
    ("20 classes", f"{NOT_CARRIED}the head has outputs for the data's classes, not for PASCAL VOC's 20"),
    ("VOC 2007 mAP", "best_metric: map50_voc07; map50_voc10, map50_coco and map_coco are measured too"),
    ("score 0.05", f"{NOT_CARRIED}mAP is over detections with score ≥ 0.001 (evaluation.score_threshold)"),
    ("NMS 0.3", "evaluation.nms_iou: 0.3"),
    ("GPU", "training.device: cpu unless a field says otherwise; with a GPU, -s training.device=cuda"),
)  # fmt: skip
