"""Results that an attacker stored. Each creates a file when Prefect loads it, or already when it parses the state."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Importable if the plants' folder is on the path. It stands for an installed module whose import has side effects.
MODULE = "planted_module"


@dataclass(frozen=True)
class Plant:
    """A stored result. ``data`` refers to it in a run's state; ``marker`` exists once its code has run."""

    data: dict[str, Any]
    marker: Path


class _Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return subprocess.check_call, (["touch", str(self._marker)],)


def make_plants(folder: Path) -> dict[str, Plant]:
    """Write hostile results into ``folder``, which may be another user's. Return them by name.

    They are a pickle, JSON that calls a function, and two that import a module by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("parsed", "named"):
        module = f"from pathlib import Path\nPath({str(folder / f'{name}.ran')!r}).touch()\n"
        (folder / f"{MODULE}_{name}.py").write_text(f"{module}\nclass dumps: pass\nclass loads: pass\n")
    call = ["touch", str(folder / "json.ran")]
    named = {"__class__": f"{MODULE}_named.dumps", "data": {}}
    parsed = {"type": "pickle", "picklelib": f"{MODULE}_parsed"}
    pickled = base64.encodebytes(pickle.dumps(_Touch(folder / "pickle.ran"))).decode()
    return {
        "pickle": _plant(folder, "pickle", {"type": "pickle"}, pickled),
        # The decoder accepts any function as a class, and calls it.
        "json": _plant(
            folder, "json", {"type": "json"}, json.dumps({"__class__": "subprocess.check_call", "data": [call]})
        ),
        "named": _plant(folder, "named", {"type": "json"}, json.dumps(named)),
        "parsed": _plant(folder, "parsed", parsed, ""),
    }


def _plant(folder: Path, name: str, serializer: dict[str, Any], result: str) -> Plant:
    metadata = {"storage_key": str(folder / f"{name}.record"), "serializer": serializer, "prefect_version": "3.9.1"}
    record = {"metadata": {**metadata, "serializer": {"type": serializer["type"]}}, "result": result}
    (folder / f"{name}.record").write_text(json.dumps(record))
    return Plant(metadata, folder / f"{name}.ran")


def forget_modules() -> None:
    """Remove the planted modules from ``sys.modules``, so that the next import runs their code again."""
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]
