"""Convert a task of the original benchmark to a :class:`FederationSpec`, field by field.

Every field of the files gets a line: what it became, or why it was not carried over. So does every value that the
original has in its code instead of its files. Unknown fields are listed, never refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.original.fields import CODE_ROWS, HANDLERS, NOT_CARRIED, ORIGINAL_INPUT, State, height_for
from tasks.original.task_files import OriginalTask, find, read_task, shown
from tasks.spec.detector import YOLOV3_ANCHORS, YOLOV3_TINY_ANCHORS
from tasks.spec.federation import FederationSpec, parse_spec

IN_CODE = "(its code)"
PUBLISHED_INPUT = 416  # pixels of the input's side; the published anchors are fractions of it


@dataclass(frozen=True)
class FieldRow:
    """A field of the original: its file, name and value as text, and what became of it. Each is one printable line."""

    file: str
    field: str
    value: str
    became: str


@dataclass(frozen=True)
class Conversion:
    """A converted task. ``document`` is the specification's YAML as a mapping, with the original's values only."""

    name: str
    document: dict[str, Any]
    rows: tuple[FieldRow, ...]
    spec: FederationSpec

    def to_yaml(self) -> str:
        """Return the specification as a file for ``fedbench run``. Comments at its head say what each field became."""
        import yaml  # here, so that the core loads without it

        head = [f"From {shown(self.name)} of the federated_object_detection_benchmark (arXiv 1910.11089)", ""]
        for row in self.rows:
            value = f" {row.value}" if row.value else ""
            head.append(f"{row.file}: {row.field}{value}: {row.became}")
        comments = "\n".join(f"# {line}".rstrip() for line in head)
        body = yaml.safe_dump(self.document, sort_keys=False, default_flow_style=None, width=120)
        return f"{comments}\n\n{body}"


def convert_task(path: Path, model: Path | None = None) -> Conversion:
    """Convert the task file ``path`` (the server's or a client's) with its model file: ``model``, or the one it names.

    Raises:
        SpecError: a file or a field's value cannot be used, or the task is for another detector than YOLOv3. The
            message names the file and field.
    """
    task = read_task(path, model)
    split, why = _split(task)
    state = State(task, _published(split, task))
    rows = [FieldRow(IN_CODE, "data", "", f"data: federated-street, split {split} ({why})")]
    for file in task.files:
        for name, value in file.fields.items():
            handler = HANDLERS.get(name)
            at = f"{file.path}: {name}"
            became = f"{NOT_CARRIED}unknown to this reader" if handler is None else handler(state, at, value)
            rows.append(FieldRow(shown(file.path.name), shown(name), shown(value), became))
    rows += [FieldRow(IN_CODE, name, "", became) for name, became in (*_left_out(task), *_anchors(state), *CODE_ROWS)]
    return Conversion(path.name, state.document, tuple(rows), parse_spec(state.document, source=str(path)))


def _published(split: int, task: OriginalTask) -> dict[str, Any]:
    """Return the values of the published files and code. They stand for all that the task's files leave out."""
    # Use the original's own folders of devices if they exist, otherwise the set as published.
    folders = find(f"data/street_{split}/1/Annotations", task.path)
    return {
        "seed": 1234,
        "max_rounds": 1001,
        "data": {"kind": "federated-street", "split": split, **({"form": "voc"} if folders else {})},
        "detector": {
            "kind": "yolov3",
            "width": ORIGINAL_INPUT,
            "height": height_for(ORIGINAL_INPUT),
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


def _split(task: OriginalTask) -> tuple[int, str]:
    """Return the number of devices, 5 or 20, and the evidence for it."""
    texts = [value for file in task.files for value in file.fields.values() if isinstance(value, str)]
    for text in (*texts, str(task.path.absolute())):
        named = re.search(r"street_(5|20)(?!\d)", text)
        if named:
            return int(named[1]), f"{named[0]} is in {shown(text)}"
    workers = task.server.fields.get("MIN_NUM_WORKERS") if task.server else None
    many = len(task.clients) > 5 or (isinstance(workers, int) and workers > 5)
    return (20 if many else 5), "no path names street_5 or street_20"


def _left_out(task: OriginalTask) -> list[tuple[str, str]]:
    """Return lines on missing files, and on clients that differ from the first."""
    lines = []
    if not task.clients:
        lines.append(("local_epoch, batch_size", "5 and 1, as published: no client's task file is beside the server's"))
    if task.server is None:
        lines.append(
            ("MAX_NUM_ROUNDS, …", "max_rounds: 1001, as published: no server's task file is beside the client's")
        )
    if task.model is None:
        lines.append(("model file", "as published: no field names one"))
    for name in ("local_epoch", "batch_size", "model_config"):
        first, others = task.clients[:1], task.clients[1:]
        different = [shown(file.path.name) for file in others if file.fields.get(name) != first[0].fields.get(name)]
        if different:
            other = f"{NOT_CARRIED}another one in {', '.join(different)}"
            lines.append((name, f"{shown(first[0].path.name)}'s for every client; {other}"))
    return lines


def _anchors(state: State) -> list[tuple[str, str]]:
    """Set the detector's anchors and masks. Return the line on them.

    Anchors keep the original's sizes in pixels at the input's width and height.
    """
    detector = state.document["detector"]
    detector["kind"] = state.kind
    if state.network is None:
        published = YOLOV3_ANCHORS if state.kind == "yolov3" else YOLOV3_TINY_ANCHORS
        pixels = tuple((width * PUBLISHED_INPUT, height * PUBLISHED_INPUT) for width, height in published)
        line = ("anchors", "detector.anchors: the published ones, of COCO: the cfg was not found")
    else:
        pixels = state.network.anchors
        detector["masks"] = [list(mask) for mask in state.network.masks]
        line = ("anchors, masks", f"detector.anchors, detector.masks: the cfg's, {len(pixels)} anchors")
    sides = (detector["width"], detector["height"])
    detector["anchors"] = [[round(width / sides[0], 6), round(height / sides[1], 6)] for width, height in pixels]
    return [line]
