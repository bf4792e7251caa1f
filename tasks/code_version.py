"""Identify the code that a result is from, and the code that a process runs.

A version number alone is the same for two commits, and for a changed file.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tasks.spec.extensions import packages

DIGITS = 8
PACKAGES = ("flows", "infra", "tasks")
# The module beside them, which every process starts with and which Prefect finds the worker type in.
MODULE = "fedbench.py"
# Files that only present or export results. Changing them does not change the results' digest.
_PRESENTING = ("analysis", "figures", "portable", "report", "suite")


@functools.cache
def code_version() -> str:
    """Return ``0.1.0-3f2a9c1e``: the version, and a digest of the sources that decide what is learned.

    These are the sources of this package, except those that make plots and reports, and the sources of other installed
    packages that bring methods or detectors.
    """
    root = Path(__file__).resolve().parent
    return _versioned(root, sources(root))


@functools.cache
def installed_code() -> str:
    """Return the version, and a digest of all sources of fedbench. Two processes that return the same run one code.

    Other installed packages that bring methods or detectors count too: a resident may not run another version of them.
    """
    return code_below(Path(__file__).resolve().parents[1])


def code_below(root: Path) -> str:
    """Return the version, and a digest of the sources of the module and the packages below ``root``."""
    below = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return _versioned(root, [root / MODULE, *below])


def sources(root: Path) -> list[Path]:
    """Return the sources below ``root`` that decide what is learned, in order."""
    return [path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] not in _PRESENTING]


def _versioned(root: Path, paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for package in packages():
        digest.update(f"{package.name} {package.version}\n".encode())
        for name, path in package.sources():
            digest.update(f"{name}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{metadata.version('fedbench')}-{digest.hexdigest()[:DIGITS]}"
