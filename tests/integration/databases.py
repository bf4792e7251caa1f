"""Databases as their servers create them on the first start: made once for all tests, and copied into new homes.

Prefect's server takes twice the CPU time to start if it has to create its database; so does MLflow's client.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

from infra.files.lock import FileLock
from infra.servers.mlflow_server import default_tracking_uri
from infra.servers.prefect_server import PrefectService

MADE_SECONDS = 600.0

# Folder of the home that they are copied from. All of pytest-xdist's processes share it.
_origin: Path | None = None


def set_origin(folder: Path) -> None:
    """Use ``folder`` for the databases. They are made there when a home first needs them."""
    global _origin
    _origin = folder


def copy_databases(home: Path) -> None:
    """Copy migrated databases of Prefect and MLflow into the new home ``home``, unless it has a folder for Prefect."""
    if _origin is None or (home / "prefect").exists():
        return
    _make(_origin)
    (home / "prefect").mkdir(mode=0o700, parents=True)
    for name in ("prefect/prefect.db", "prefect/guarded-databases.json", "prefect/memo_store.toml", "mlflow.db"):
        shutil.copy2(_origin / name, home / name)


def _make(folder: Path) -> None:
    lock = FileLock(folder.with_suffix(".lock"))
    assert lock.acquire(MADE_SECONDS)
    try:
        done = folder / "done"
        if not done.exists():
            folder.mkdir(mode=0o700)
            prefect = PrefectService(folder)
            try:
                prefect.ensure()
                _make_tracking(folder)
            finally:
                prefect.stop()
            for name in ("prefect/prefect.db", "mlflow.db"):
                _close(folder / name)
            done.touch()
    finally:
        lock.release()


def _make_tracking(folder: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(default_tracking_uri(folder), "s3://fedbench/mlflow")
    (folder / "mlflow.db").chmod(0o600)


def _close(database: Path) -> None:
    """Move SQLite's write-ahead log into the file ``database`` itself, so that this file alone can be copied."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
