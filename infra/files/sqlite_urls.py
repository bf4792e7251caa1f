"""URLs of SQLite databases, as SQLAlchemy reads them: ``?`` begins options, and ``%`` a byte in hexadecimal."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

SQLITE = "sqlite"


def sqlite_url(path: Path, scheme: str = SQLITE) -> str:
    """Return the URL of the database at ``path``, made absolute. Only ``%`` and ``?`` are escaped."""
    return f"{scheme}:///{str(path.absolute()).replace('%', '%25').replace('?', '%3F')}"


def sqlite_path(url: str) -> Path | None:
    """Return the path in a URL of SQLite; None: the URL names another kind of database, or one in memory."""
    scheme, separator, rest = url.partition(":///")
    path = unquote(rest.partition("?")[0])
    return Path(path) if separator and scheme.partition("+")[0] == SQLITE and path else None
