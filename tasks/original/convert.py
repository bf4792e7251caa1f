"""Convert a task of the original benchmark to a :class:`FederationSpec`, field by field.

Every field of the files gets a line: what it became, or why it was not carried over. So does every value that the
original has in its code instead of its files. Unknown fields are listed, never refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.original import fields_faster_rcnn, fields_yolo
from tasks.original.fields import NOT_CARRIED, State
from tasks.original.task_files import OriginalTask, find, read_task, shown
from tasks.spec.federation import FederationSpec, parse_spec

IN_CODE = "(its code)"
# The module of each detector: the published values, what each field becomes, and what is in the code alone.
DETECTORS = {"yolo": fields_yolo, "faster-rcnn": fields_faster_rcnn}


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
        SpecError: a file or a field's value cannot be used, or the task is for another detector than the original's
            two. The message names the file and field.
    """
    task = read_task(path, model)
    detector = DETECTORS[task.detector]
    split, why = _split(task)
    state = State(task, {"seed": 1234, "max_rounds": 1001, "data": _data(split, task), **detector.published()})
    rows = [FieldRow(IN_CODE, "data", "", f"data: federated-street, split {split} ({why})")]
    for file in task.files:
        for name, value in file.fields.items():
            handler = detector.HANDLERS.get(name)
            at = f"{file.path}: {name}"
            became = f"{NOT_CARRIED}unknown to this reader" if handler is None else handler(state, at, value)
            rows.append(FieldRow(shown(file.path.name), shown(name), shown(value), became))
    rows += [
        FieldRow(IN_CODE, name, "", became)
        for name, became in (*_left_out(task), *detector.finish(state), *detector.CODE_ROWS)
    ]
    return Conversion(path.name, state.document, tuple(rows), parse_spec(state.document, source=str(path)))


def _data(split: int, task: OriginalTask) -> dict[str, Any]:
    """Return the data: the original's own folders of devices if they exist, otherwise the set as published."""
    folders = find(f"data/street_{split}/1/Annotations", task.path)
    return {"kind": "federated-street", "split": split, **({"form": "voc"} if folders else {})}


def _split(task: OriginalTask) -> tuple[int, str]:
    """Return the number of devices, 5 or 20, and the evidence for it."""
    texts = [value for file in task.files for value in file.fields.values() if isinstance(value, str)]
    for text in (*texts, str(task.path.absolute())):
        named = re.search(r"street_(5|20)(?![0-9])", text)
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
