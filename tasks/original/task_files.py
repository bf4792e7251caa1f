"""Find and read the original benchmark's task files.

The known fields are those that the original's ``data/generate_task_json.py`` writes and that its ``fl_server.py``,
``fl_client.py`` and ``model/model_wrapper.py`` read, in the copies that its author and others keep:

* the server's ``yolo_task.json``: ``model_name``, ``model_config`` (``model_config_file`` in older copies),
  ``log_dir`` or ``log_filename``, ``model_path``, ``MIN_NUM_WORKERS``, ``MAX_NUM_ROUNDS``, ``NUM_TOLERATE``,
  ``NUM_CLIENTS_CONTACTED_PER_ROUND``, ``ROUNDS_BETWEEN_VALIDATIONS``;
* beside it a ``yolo_task<k>.json`` for client k: ``model_name``, ``model_config``, ``log_filename``, ``train``,
  ``test``, ``names``, ``n_cpu``, ``local_epoch``, ``batch_size``;
* ``yolo_model.json``: ``model_def``, ``pretrained_weights``, ``multiscale_training``, ``gradient_accumulations``,
  ``img_size``;
* of Faster R-CNN ``faster_task.json``, ``faster_task<k>.json`` (with ``data_path``, and in older copies ``epoch``,
  ``train_size``, ``test_size``) and ``faster_model.json``, with any field of the original's ``utils/config.py``.

Paths in these files are relative to the original's root folder.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.documents.errors import DuplicateKey
from tasks.documents.json_text import read_json
from tasks.documents.regular_file import open_regular
from tasks.errors import SpecError

MAX_BYTES = 1_000_000
Detector = Literal["yolo", "faster-rcnn"]
SERVER_KEY, CLIENT_KEY = "MAX_NUM_ROUNDS", "local_epoch"
_MODEL_KEYS = ("model_config", "model_config_file")
_SHOWN = 60  # most characters of a value in a message or table


@dataclass(frozen=True)
class OriginalFile:
    """A JSON file of the original, and its fields in its order."""

    path: Path
    fields: dict[str, Any]


@dataclass(frozen=True)
class OriginalTask:
    """A task: the path that the user named, the files of the server and the clients in its folder, the model file."""

    path: Path
    detector: Detector
    server: OriginalFile | None
    clients: tuple[OriginalFile, ...]
    model: OriginalFile | None

    @property
    def files(self) -> tuple[OriginalFile, ...]:
        """The files of the server, the first client and the model that exist."""
        return tuple(file for file in (self.server, *self.clients[:1], self.model) if file is not None)


def read_task(path: Path, model: Path | None = None) -> OriginalTask:
    """Read a server's or client's task file, the task files that belong to it in its folder, and its model file.

    Raises:
        SpecError: a file is missing or not a JSON object, the task is for an unknown detector, or the model file that
            it names is not found.
    """
    named = _read(path)
    detector = _detector_of(named)
    if SERVER_KEY in named.fields:
        server: OriginalFile | None = named
        clients = _clients_of(path)
        if CLIENT_KEY in named.fields:  # one file for both, in some copies
            clients = (named, *clients)
    else:
        server, clients = _server_of(path), (named,)
    others = (server, *clients[:1])
    return OriginalTask(path, detector, server, clients, _model_of([named, *filter(None, others)], model))


def find(named: str, task: Path) -> Path | None:
    """Return the path of ``named``, a file or folder in a task, or None if it does not exist.

    The path is relative to the task's folder, a folder above it or the working folder, or is a name in its folder.
    """
    folder = task.absolute().parent
    places = [start / named for start in (folder, *folder.parents, Path.cwd())]
    for candidate in (*places, folder / Path(named).name):
        try:
            if candidate.exists():
                return candidate
        except (OSError, ValueError):  # a name that no file can have
            continue
    return None


def shown(value: Any) -> str:
    """Return a value or name from a file as one printable line, cut to ``_SHOWN`` characters."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _detector_of(file: OriginalFile) -> Detector:
    name = file.fields.get("model_name", "Yolo")
    plain = re.sub(r"[^a-z0-9]", "", name.lower()) if isinstance(name, str) else ""
    if plain.startswith("yolo"):
        return "yolo"
    if plain.startswith("faster"):
        return "faster-rcnn"
    raise SpecError(f"{file.path}: model_name: expected Yolo or FasterRCNN, found {shown(name)}")


def _read(path: Path) -> OriginalFile:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise SpecError(f"{path}: more than {MAX_BYTES} bytes; expected a task or model file of the original benchmark")
    try:
        document = read_json(content)
    except DuplicateKey as error:
        raise SpecError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: expected JSON: {error}") from None
    if not isinstance(document, dict):
        raise SpecError(f"{path}: expected a mapping of fields, found {type(document).__name__}")
    return OriginalFile(path, document)


def _clients_of(server: Path) -> tuple[OriginalFile, ...]:
    """Read the clients' task files: ``yolo_task1.json`` or ``yolo_task_1.json``, … beside ``yolo_task.json``."""
    pattern = re.compile(re.escape(server.stem) + r"_?([0-9]{1,4})" + re.escape(server.suffix))
    numbered = [
        (int(match[1]), path) for path in server.absolute().parent.iterdir() if (match := pattern.fullmatch(path.name))
    ]
    return tuple(_read(path) for _, path in sorted(numbered))


def _server_of(client: Path) -> OriginalFile | None:
    match = re.fullmatch(r"(.+?)_?[0-9]{1,4}", client.stem)
    path = client.with_name(match[1] + client.suffix) if match else None
    return _read(path) if path is not None and path.is_file() else None


def _model_of(tasks: Sequence[OriginalFile], given: Path | None) -> OriginalFile | None:
    if given is not None:
        return _read(given)
    for task, key in itertools.product(tasks, _MODEL_KEYS):
        named = task.fields.get(key)
        if named is None:
            continue
        if not isinstance(named, str) or not named:
            raise SpecError(f"{task.path}: {key}: expected the model file's path, found {shown(named)}")
        found = find(named, task.path)
        if found is None or not found.is_file():
            raise SpecError(
                f"{task.path}: {key}: no file {shown(named)} in the task's folder, those above it or the working "
                "folder; give the model file after the task file"
            )
        return _read(found)
    return None
