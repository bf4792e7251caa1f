"""Check SQLite files before a server opens them: damaged, foreign, locked, or of a newer version.

Prefect's database is only a view of the store. So a damaged one is renamed, and the server makes a new one. MLflow's
has data that is nowhere else (:func:`damaged_tracking`), so a person decides.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from infra.errors import ServiceFailed

log = logging.getLogger(__name__)

LOCKED_SECONDS = 10.0  # for a process that is just ending
# A whole check reads the whole file, 0.1 s for so many bytes. Larger files get it only after a sign of damage.
CHECKED_BYTES = 50_000_000
_BESIDE = ("-wal", "-shm", "-journal")
_DAMAGED = (
    "database disk image is malformed",
    "file is not a database",
    "malformed database schema",
    "unsupported file format",
)


def says_damaged(error: BaseException) -> bool:
    """Whether ``error``, SQLite's or one that quotes it, reports a damaged database or a file that is none."""
    return any(words in str(error) for words in _DAMAGED)


def damage(path: Path, *, whole: bool) -> str | None:
    """Return what is wrong with the database ``path``; None: no fault was found, or the file is missing or empty.

    whole: read all of it, whatever its size.

    Raises:
        ServiceFailed: another process keeps it locked, or it cannot be opened.
    """
    if not path.exists():
        return None
    if not path.is_file():
        return "it is no file"
    if path.stat().st_size == 0:  # a new database to SQLite, but a log beside it is another database's
        return "it is empty, and has a log" if _beside(path) else None
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCKED_SECONDS, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")  # fails unless the lock can be had
            pages = database.execute("PRAGMA page_count").fetchone()[0]
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            size = pages * database.execute("PRAGMA page_size").fetchone()[0]
            found = None
            if whole or size <= CHECKED_BYTES:
                found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            database.execute("ROLLBACK")
            return None if found in (None, "ok") else str(found).splitlines()[0]
    except sqlite3.OperationalError as error:
        if says_damaged(error):
            return str(error)
        if "locked" in str(error):
            raise ServiceFailed(
                f"{path}: another process has kept this database locked for {LOCKED_SECONDS:.0f} s; "
                "end that process, and start again"
            ) from None
        raise ServiceFailed(f"{path}: this database cannot be opened: {error}") from None
    except sqlite3.DatabaseError as error:
        return str(error)


def set_aside(path: Path, reason: str) -> Path:
    """Rename the damaged database ``path`` and SQLite's files beside it. Return its new path."""
    kept = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}")
    for beside in _beside(path):
        beside.rename(kept.with_name(kept.name + beside.name.removeprefix(path.name)))
    path.rename(kept)
    log.warning("%s is damaged (%s): kept as %s, and made anew", path, reason, kept.name)
    return kept


def require_known_revision(path: Path, package: str, versions: str) -> None:
    """Check that the installed ``package`` has a migration for the revision of the database ``path``.

    versions: pattern of the migration files, below the package's folder, with {} for the revision.

    Raises:
        ServiceFailed: it has none, so a newer version has written the database.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)) as database:
            found = [str(row[0]) for row in database.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.Error:  # no such table: the database has no version, or is damaged, which the server reports
        return
    spec = find_spec(package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    for revision in found:
        known = revision.isalnum() and any(any(folder.glob(versions.format(revision))) for folder in folders)
        if folders and not known:
            raise ServiceFailed(
                f"{path}: expected a database of the installed {package} or an older one, found revision "
                f"{revision!r}, which a newer {package} has written; install that version again, or move the file "
                "away: it only shows runs, and all results are in the store"
            )


def damaged_tracking(path: Path) -> str:
    """Return a message for the user about MLflow's damaged database.

    Records are in the store. Only the database has the notes, tags and aliases that people set, and the versions of
    registered models.
    """
    return (
        f"MLflow's database {path} is damaged. Runs go on without it. It also holds what people wrote in MLflow "
        "(notes, tags, aliases) and the registered models, so it is left as it is: restore it from a backup, or move "
        "it away, and the next command of each run fills a new one from the store"
    )


def _beside(path: Path) -> list[Path]:
    return [beside for end in _BESIDE if (beside := path.with_name(path.name + end)).exists()]


def _quoted(path: Path) -> str:
    return quote(str(path))
