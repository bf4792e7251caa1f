"""Changes to each Python process of a run with a fault: its turns learn nothing, and it writes down its syncs.

This folder is on ``PYTHONPATH``, so Python imports this file when it starts: in the coordinator, in its slots, in
Prefect's servers and workers and in their runs. fedbench itself needs no change for it.

- Turns neither train nor evaluate (:mod:`turns`), and the detector has an eighth of its channels, so a round takes
  a fraction of a second.
- Each ``os.fsync`` and ``os.fdatasync`` adds a line of JSON to the file that ``FAULTS_SYNCED`` names. rclone is not
  Python, but syncs nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import stat
import sys
from typing import Any

# Module: the function of `turns` that changes it as soon as it is imported.
_CHANGES = {
    "tasks.detectors.yolo_network": "narrow_layers",
    "tasks.client_update": "learn_nothing",
    "tasks.client_eval": "detect_nothing",
}


class _Loader(importlib.abc.Loader):
    """A module's loader that changes the module after it has loaded it."""

    def __init__(self, loader: Any, change: str) -> None:
        self._loader, self._change = loader, change

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        self._loader.exec_module(module)
        import turns  # type: ignore[import-not-found]  # beside this file

        getattr(turns, self._change)(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Loader(spec.loader, _CHANGES[name])
        return spec


def _synced(descriptor: int) -> dict[str, Any]:
    """Return what a sync of ``descriptor`` makes lasting: a file's content or a folder's entries, as they are now."""
    status = os.fstat(descriptor)
    line = {"path": os.readlink(f"/proc/self/fd/{descriptor}"), "inode": status.st_ino, "time": status.st_mtime_ns}
    if stat.S_ISDIR(status.st_mode):
        line["entries"] = {name: os.lstat(name, dir_fd=descriptor).st_ino for name in os.listdir(descriptor)}
    return line


def _note(log: str, call: Any) -> Any:
    def noted(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        try:
            line = _synced(number)  # before the call: it may not sync data that is written during it
        except OSError:
            line = None
        call(descriptor)
        if line is not None:
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    return noted


sys.meta_path.insert(0, _Finder())
if os.environ.get("FAULTS_SYNCED"):
    for _name in ("fsync", "fdatasync"):
        setattr(os, _name, _note(os.environ["FAULTS_SYNCED"], getattr(os, _name)))
if os.environ.get("FAULTS_S3") and "worker" in sys.orig_argv:
    # `fedbench up` gives its worker the address of the store itself, but the faults are in the proxy in front of it.
    os.environ["FEDBENCH_S3__ENDPOINT"] = os.environ["FAULTS_S3"]
