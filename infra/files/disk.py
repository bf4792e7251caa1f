"""Full disks: recognize the errors that they cause, and find the full folder and its free space.

A full disk causes many errors: an ``OSError``, an error of SQLite or another library that only its text identifies, a
server's status 500, or the end of a process. So there are two checks: whether an error reports a full disk
(:func:`says_full`), and, for an error that one may have caused, whether a folder has no room (:func:`without_room`).
A full disk is never an outage: retrying does not help, so nothing is retried.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.errors import (
    DiskFull,
    HomeInUse,
    InfraError,
    PoolUnusable,
    RunLocked,
    SettingsError,
    StoredResultRefused,
)
from infra.plain_text import first_line

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Texts of errors without an error number, from libraries and servers: libc's two, SQLite's, rclone's and Rust's.
_TEXTS = (
    "no space left on device",
    "disk quota exceeded",
    "database or disk is full",
    "file too big for remaining disk space",
    f"os error {errno.ENOSPC})",
    f"os error {errno.EDQUOT})",
)
PROBE_BYTES = 1_000_000  # a folder without room for so much is full: with less, SQLite and logs fail
LITTLE_BYTES = 1_000_000_000  # one file of a run may need so much free space
# Folders below the home that may be on file systems of their own.
_PARTS = ("s3", "prefect", "cache", "runs", "logs", "services")
# Their messages name the cause already.
_CLEAR = (SettingsError, PoolUnusable, RunLocked, HomeInUse, StoredResultRefused)


@dataclass(frozen=True)
class NoRoom:
    """A folder without room. root: the home or temporary folder above it. quota: whether a user's quota is used up."""

    folder: Path
    root: Path
    quota: bool = False

    def __str__(self) -> str:
        status = os.statvfs(self.folder)
        free = f"{shutil.disk_usage(self.folder).free // 1_000_000} MB free in {self.folder}"
        if self.quota:
            return f"this user's disk quota is used up under {self.root} ({free})"
        if status.f_files and not status.f_favail:
            free += ", which can hold no further files"
        return f"no space left under {self.root} ({free})"


def says_full(error: BaseException) -> bool:
    """Whether ``error`` or one of its causes reports a full disk or a used-up quota."""
    return any(isinstance(item, DiskFull) or _number(item) in FULL or _texts(item) for item in _chain(error))


def folders_of(home: Path) -> list[tuple[Path, Path]]:
    """Return the folders that fedbench and its servers write to on this machine, each with its root."""
    home = home.absolute()
    temporary = Path(tempfile.gettempdir())
    folders = [(home, home), *((home / part, home) for part in _PARTS), (temporary, temporary)]
    shared_memory = Path("/dev/shm")  # images travel through it from the processes that prepare them
    folders += [(shared_memory, shared_memory)] if shared_memory.is_dir() else []
    return [(folder, root) for folder, root in folders if folder.is_dir() or folder == home]


def without_room(folders: Iterable[tuple[Path, Path]], size: int = PROBE_BYTES) -> NoRoom | None:
    """Return the first of ``folders`` without room for ``size`` bytes; None: all have room. Takes milliseconds."""
    seen: set[int] = set()
    for folder, root in folders:
        there = existing(folder)
        device = there.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        number = _refusal(there, max(size, PROBE_BYTES))
        if number is not None:
            return NoRoom(there, root, quota=number == errno.EDQUOT)
    return None


def full_disk(error: BaseException, home: Path, *, suspected: bool) -> DiskFull | None:
    """Return the error to raise instead of ``error`` if a full disk caused it; None: no full disk did.

    home: its folders and the temporary folder are checked.
    suspected: whether a full disk may have caused ``error`` even if it does not report one. Then the folders decide.
    """
    known = next((item for item in _chain(error) if isinstance(item, DiskFull)), None)
    if known is not None:
        return known
    reported = says_full(error)
    if not reported and not suspected:
        return None
    folders = folders_of(home)
    found = without_room(folders)
    if found is None and reported:
        found = _named(error) or _fullest(folders)
        if found is None:
            return DiskFull(
                f"{first_line(error)}; there is space under {home} and {tempfile.gettempdir()}, so another file "
                "system is full: that of the output, or of a folder that the command names"
            )
    return None if found is None else DiskFull(str(found))


def infra_failed(error: BaseException) -> bool:
    """Whether ``error`` comes from a server, a slot or a store, so that a full disk may have caused it."""
    return isinstance(error, InfraError) and not isinstance(error, _CLEAR)


@contextmanager
def full_disk_named(home: Path, suspected: Callable[[BaseException], bool] = infra_failed) -> Iterator[None]:
    """Raise DiskFull instead of any error inside that a full disk caused.

    suspected: whether a full disk may have caused an error that does not report one.

    Raises:
        DiskFull: the message names the folder and its free space.
    """
    try:
        yield
    except Exception as error:
        full = full_disk(error, home, suspected=suspected(error))
        if full is None or full is error:
            raise
        raise full from error


def require_room(home: Path) -> None:
    """Check that the folders of ``home`` and the temporary folder have room.

    Raises:
        DiskFull: one of them has none.
    """
    found = without_room(folders_of(home))
    if found is not None:
        raise DiskFull(str(found))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield ``error`` and its causes and contexts, also those that ``from None`` hides."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        item = waiting.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, BaseExceptionGroup):
            waiting += item.exceptions
        waiting += [item.__context__, item.__cause__]


def _number(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _texts(error: BaseException) -> bool:
    text = str(error).lower()
    return any(words in text for words in _TEXTS)


def _named(error: BaseException) -> NoRoom | None:
    """Return the folder of the file that an ``OSError`` names; None: none names one."""
    for item in _chain(error):
        if isinstance(item, OSError) and item.errno in FULL and isinstance(item.filename, str | os.PathLike):
            folder = existing(Path(item.filename).absolute().parent)
            return NoRoom(folder, folder, quota=item.errno == errno.EDQUOT)
    return None


def _fullest(folders: Iterable[tuple[Path, Path]]) -> NoRoom | None:
    """Return the folder with the least free space, if that is little. The refused file may have been removed since."""
    free, folder, root = min(
        (shutil.disk_usage(existing(folder)).free, existing(folder), root) for folder, root in folders
    )
    return NoRoom(folder, root) if free < LITTLE_BYTES else None


def existing(folder: Path) -> Path:
    """Return ``folder``, or the nearest folder above it that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _refusal(folder: Path, size: int) -> int | None:
    """Return the error number with which a full ``folder`` refuses a file of ``size`` bytes.

    None: it takes the file, or refuses it for another reason.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for _ in range(0, size, PROBE_BYTES):
                    file.write(bytes(PROBE_BYTES))
                file.flush()
    except OSError as error:
        return error.errno if error.errno in FULL else None
    return None
