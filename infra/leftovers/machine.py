"""Find what dead processes left on this machine's disk: temporary files, scratch folders, folders of forgotten runs."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from infra.leftovers.store import SERVER_TEMPORARY, YOUNG, Leftover

CACHE_TEMPORARY = "weight cache: temporary file of a dead process"
DRAFT = "data set that a dead process did not finish drawing"
REGISTERING = "model that a dead process did not finish registering"
SCRATCH = "scratch folder of a dead process"
RUN_FOLDER = "run folder of a federation that is not in the store"

SCRATCH_AGE = timedelta(days=1)  # minimum: a process may keep such a folder for hours without writing there
_SCRATCH = re.compile(r"fedbench-[a-z0-9_]{8}")  # as tempfile names them


def machine_leftovers(
    home: Path, temporary: Path, *, embedded_store: bool, older_than: timedelta, now: datetime
) -> list[Leftover]:
    """Return the files and folders under ``home``, and scratch folders in ``temporary``, that nobody uses any more.

    embedded_store: whether an embedded S3 server has its objects under ``home``.
    """
    found = [
        *_old(home.glob("cache/weights/??/*.tmp"), CACHE_TEMPORARY, YOUNG, now),
        *_old(home.glob("cache/data/*/.*.*"), DRAFT, YOUNG, now),
        *_old(_scratch_folders(temporary), SCRATCH, max(older_than, SCRATCH_AGE), now),
    ]
    if embedded_store:
        found += _old((home / "s3").rglob(".rclone_temp_*"), SERVER_TEMPORARY, YOUNG, now)
    return found


def registering_leftovers(folder: Path, federation: str, now: datetime) -> list[Leftover]:
    """Return the unfinished registration in a run's ``folder``, for a federation that nobody runs."""
    return _old([folder / "registering"], REGISTERING, YOUNG, now, federation)


def run_folder_leftovers(folder: Path, federation: str, older_than: timedelta, now: datetime) -> list[Leftover]:
    """Return the run's ``folder`` itself, for a federation that is not in the store."""
    return _old([folder], RUN_FOLDER, max(older_than, YOUNG), now, federation)


def remove_path(path: Path) -> None:
    """Remove a file, or a folder with its contents. A missing path is no error.

    Raises:
        OSError: it, or something in it, cannot be removed.
    """
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def _scratch_folders(temporary: Path) -> Iterator[Path]:
    """Yield the folders that ``tempfile.mkdtemp`` made for this user's fedbench."""
    for path in temporary.glob("fedbench-*"):
        with suppress(OSError):
            status = path.lstat()
            private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
            if private and status.st_uid == os.getuid() and _SCRATCH.fullmatch(path.name):
                yield path


def _old(
    paths: Iterator[Path] | list[Path], reason: str, age: timedelta, now: datetime, federation: str = ""
) -> list[Leftover]:
    found = []
    for path in paths:
        size, newest = _extent(path)
        if newest is not None and now.timestamp() - newest >= age.total_seconds():
            found.append(Leftover(str(path), size, reason, federation, "path"))
    return sorted(found, key=lambda leftover: leftover.key)


def _extent(path: Path) -> tuple[int, float | None]:
    """Return the bytes of a file, or of all files in a folder, and the time of the last write.

    The time is None for a missing path and for a link, which is left alone. Links in a folder are not followed.
    """
    size, newest = 0, None
    with suppress(OSError):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return 0, None
        size, newest = (0 if stat.S_ISDIR(status.st_mode) else status.st_size), status.st_mtime
        for folder, _, files in os.walk(path):
            for inner in (Path(folder), *(Path(folder, file) for file in files)):
                with suppress(OSError):
                    status = inner.lstat()
                    size += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
                    newest = max(newest, status.st_mtime)
    return size, newest
