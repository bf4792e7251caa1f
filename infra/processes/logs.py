"""The services' log files: append to them, read their last lines, follow them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.3
BLOCK = 65536  # bytes
LOG_LIMIT = 16_000_000  # bytes; a longer log is set aside at the next start


def open_log(path: Path) -> IO[bytes]:
    """Open the log to append to it, readable by its owner only. Set a log that is too long aside first."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def last_lines(path: Path, count: int) -> tuple[list[str], int]:
    """Return the last ``count`` lines of a file that may be long, and its size in bytes; ([], 0): there is no file."""
    try:
        with path.open("rb") as file:
            size = start = file.seek(0, 2)
            text = b""
            while start > 0 and text.count(b"\n") <= count:
                start = max(0, start - BLOCK)
                file.seek(start)
                text = file.read(size - start)
    except OSError:
        return [], 0
    lines = text.decode("utf-8", "replace").splitlines()
    return (lines[-count:] if count else []), size


def follow_logs(paths: Mapping[str, Path], offsets: dict[str, int], show: Callable[[str, str], None]) -> None:
    """Call ``show`` for ever with each new line and its service's name. Read a replaced log from its start."""
    while True:
        for name, path in paths.items():
            offsets[name] = _show_new(path, offsets[name], lambda line, name=name: show(name, line))  # type: ignore[misc]
        time.sleep(POLL_SECONDS)


def _show_new(path: Path, offset: int, show: Callable[[str], None]) -> int:
    """Call ``show`` with each complete line after ``offset``. Return the offset of the rest."""
    try:
        if path.stat().st_size < offset:
            offset = 0
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read()
    except OSError:
        return 0
    whole, newline, _ = text.rpartition(b"\n")
    for line in (whole + newline).decode("utf-8", "replace").splitlines():
        show(line)
    return offset + len(whole) + len(newline)
