"""Results that somebody else stored. Each makes a file when Prefect loads it, or already when it parses a state."""

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

# Importable where the folder of the plants is on the path, as an installed module with effects of its own is.
MODULE = "planted_module"


@dataclass(frozen=True)
class Plant:
    """A stored result. ``data`` is what the state of a run says of it; ``marker`` exists once its code has run."""

    data: dict[str, Any]
    marker: Path


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return subprocess.check_call, (["touch", str(self._marker)],)


def make_plants(folder: Path) -> dict[str, Plant]:
    """Records in ``folder``, which may be that of another user: pickle, JSON that calls, and an import by name."""
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
        # The decoder takes any function for a class, and calls it.
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
    """So that the next import runs their code again."""
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        del sys.modules[name]
