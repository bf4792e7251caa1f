"""The current time in the tests of leftovers, and files of a known age."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTES, HOURS, DAYS = (timedelta(**{unit: 1}) for unit in ("minutes", "hours", "days"))


def aged(path: Path, age: timedelta, content: bytes | None = b"12345") -> Path:
    """Make a file that was last written ``age`` before NOW, or a folder if ``content`` is None. Return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir(mode=0o700)
        (path / "inner").write_bytes(b"123")
    else:
        path.write_bytes(content)
    written = (NOW - age).timestamp()
    for each in [*path.glob("*"), path]:
        os.utime(each, (written, written))
    return path
