"""URLs of SQLite databases, as SQLAlchemy reads them: ``?`` begins options, and ``%`` a byte in hexadecimal."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

SQLITE = "sqlite"


def sqlite_url(path: Path, scheme: str = SQLITE) -> str:
    """URL of the database at ``path``, which is made absolute. All other characters stay as they are."""
    return f"{scheme}:///{str(path.absolute()).replace('%', '%25').replace('?', '%3F')}"


def sqlite_path(url: str) -> Path | None:
    """The path in a URL of SQLite; None: it is of another database, or of one in memory."""
    scheme, separator, rest = url.partition(":///")
    path = unquote(rest.partition("?")[0])
    return Path(path) if separator and scheme.partition("+")[0] == SQLITE and path else None
