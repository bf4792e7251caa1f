"""Folders of the original's task files, as its generators write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def write_tasks(
    folder: Path, stem: str, server: dict[str, Any], model: dict[str, Any], client: Callable[[int], dict[str, Any]]
) -> None:
    """Write the files of a task with five clients to ``folder``. stem: ``yolo`` or ``faster``."""
    write(folder / f"{stem}_task.json", server)
    write(folder / f"{stem}_model.json", model)
    for number in range(1, 6):
        write(folder / f"{stem}_task{number}.json", client(number))
