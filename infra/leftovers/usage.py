"""The disk space that each part of a home takes on this machine, and how it is freed."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CLEAN, REMOVE = "fedbench clean", "fedbench remove RUN, fedbench clean --toys"


@dataclass(frozen=True)
class Usage:
    """The bytes of one part of a home. freed: commands that make it smaller, or what limits it."""

    part: str
    bytes: int
    freed: str


def disk_usage(home: Path) -> list[Usage]:
    """Return the usage of each part of ``home`` that takes any space, in a fixed order; the last is all the rest."""
    named: list[tuple[str, tuple[str, ...], str]] = [
        ("runs: weights, records (store)", ("s3",), f"{REMOVE}, {CLEAN}"),
        ("runs: plots, logs; reports of suites", ("runs", "suites", "comparisons", "checks"), f"{REMOVE}"),
        ("cache of weights", ("cache/weights",), "limited by weight_cache_megabytes"),
        ("cache of drawn images", ("cache/data",), "drawn again when it is missing"),
        ("databases of Prefect and MLflow", ("prefect", "mlflow.db", "mlflow.db-wal", "mlflow.db-shm"), ""),
        ("first weights", ("weights",), "files that were put there"),
        ("logs of services", ("logs",), "their files are limited"),
    ]
    found = [Usage(part, sum(size_of(home / path) for path in paths), freed) for part, paths, freed in named]
    rest = size_of(home) - sum(usage.bytes for usage in found)
    return [usage for usage in (*found, Usage("other files", max(rest, 0), "")) if usage.bytes]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder. Links are not followed; what vanishes meanwhile is 0."""
    total = 0
    with suppress(OSError):
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
    for folder, _, files in os.walk(path):
        for file in files:
            with suppress(OSError):
                total += (Path(folder) / file).lstat().st_size
    return total
