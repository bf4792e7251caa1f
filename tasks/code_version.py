"""Which code a result is of: a version alone would not tell two commits apart, nor a changed file."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

DIGITS = 8
# What is told of results: a plot that is drawn otherwise does not make them others.
_TELLING = ("figures", "report", "suite")


@functools.cache
def code_version() -> str:
    """``0.1.0-3f2a9c1e``: the version, and a digest of the sources that decide what is learned: this package's, but for
    those that make plots and reports.
    """
    root = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sources(root):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{metadata.version('fedbench')}-{digest.hexdigest()[:DIGITS]}"


def sources(root: Path) -> list[Path]:
    """Those below ``root``, in order."""
    return [path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] not in _TELLING]
