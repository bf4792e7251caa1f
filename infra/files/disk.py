"""Full disks: which errors say that one is full, which folder it is, and what is free there.

A full disk shows itself in many forms: as ``OSError``, as SQLite's or another library's own error whose text alone
says so, as a server's 500, or as a process that ended. So there are two questions. Does an error say it
(:func:`says_full`)? And if it only may have come from that: does one of the folders refuse to take more
(:func:`without_room`)? A full disk is never an outage: trying again does not help, so nothing is tried again.
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
# Of libraries and servers that hand on no error number: libc's two texts, SQLite's, rclone's and Rust's.
_TEXTS = (
    "no space left on device",
    "disk quota exceeded",
    "database or disk is full",
    "file too big for remaining disk space",
    f"os error {errno.ENOSPC})",
    f"os error {errno.EDQUOT})",
)
PROBE_BYTES = 1_000_000  # a folder that does not take so much is full: SQLite and logs are refused with less
LITTLE_BYTES = 1_000_000_000  # free space that one file of a run may have used up
# Folders below the home that may be on file systems of their own.
_PARTS = ("s3", "prefect", "cache", "runs", "logs", "services")
# They say what is wrong themselves.
_CLEAR = (SettingsError, PoolUnusable, RunLocked, HomeInUse, StoredResultRefused)


@dataclass(frozen=True)
class NoRoom:
    """A folder that takes no more. ``root``: the home or temporary folder that it belongs to; ``quota``: of a user."""

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
    """Whether ``error``, or one that led to it, says that a disk is full or a quota is used up."""
    return any(isinstance(item, DiskFull) or _number(item) in FULL or _texts(item) for item in _chain(error))


def folders_of(home: Path) -> list[tuple[Path, Path]]:
    """Folders that fedbench and its servers write to on this machine, each with the root that it is part of."""
    home = home.absolute()
    temporary = Path(tempfile.gettempdir())
    folders = [(home, home), *((home / part, home) for part in _PARTS), (temporary, temporary)]
    shared_memory = Path("/dev/shm")  # images travel through it from the processes that prepare them
    folders += [(shared_memory, shared_memory)] if shared_memory.is_dir() else []
    return [(folder, root) for folder, root in folders if folder.is_dir() or folder == home]


def without_room(folders: Iterable[tuple[Path, Path]], size: int = PROBE_BYTES) -> NoRoom | None:
    """The first of ``folders`` that does not take a file of ``size`` bytes; None when all do. Takes milliseconds."""
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
    """What to raise instead of ``error`` if a full disk is behind it; None: none is.

    home: the home, whose folders are looked at, and the temporary folder.
    suspected: ``error`` does not say it itself, but may come from it: the folders decide.
    """
    known = next((item for item in _chain(error) if isinstance(item, DiskFull)), None)
    if known is not None:
        return known
    told = says_full(error)
    if not told and not suspected:
        return None
    folders = folders_of(home)
    found = without_room(folders)
    if found is None and told:
        found = _named(error) or _fullest(folders)
        if found is None:
            return DiskFull(
                f"{first_line(error)}; there is space under {home} and {tempfile.gettempdir()}, so it is another "
                "file system that is full: that of the output, or of a folder that the command names"
            )
    return None if found is None else DiskFull(str(found))


def infra_failed(error: BaseException) -> bool:
    """Whether ``error`` is one of a server, a slot or a store, which may come from a full disk."""
    return isinstance(error, InfraError) and not isinstance(error, _CLEAR)


@contextmanager
def full_disk_named(home: Path, suspected: Callable[[BaseException], bool] = infra_failed) -> Iterator[None]:
    """Raise DiskFull for any error inside that a full disk is behind.

    suspected: of an error that does not say it, whether the folders are to be looked at.

    Raises:
        DiskFull: naming the folder and what is free there.
    """
    try:
        yield
    except Exception as error:
        full = full_disk(error, home, suspected=suspected(error))
        if full is None or full is error:
            raise
        raise full from error


def require_room(home: Path) -> None:
    """
    Raises:
        DiskFull: a folder of ``home``, or the temporary folder, takes no more.
    """
    found = without_room(folders_of(home))
    if found is not None:
        raise DiskFull(str(found))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what led to it, what it hides (``from None``) too."""
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
    """The folder of the file that an ``OSError`` names."""
    for item in _chain(error):
        if isinstance(item, OSError) and item.errno in FULL and isinstance(item.filename, str | os.PathLike):
            folder = existing(Path(item.filename).absolute().parent)
            return NoRoom(folder, folder, quota=item.errno == errno.EDQUOT)
    return None


def _fullest(folders: Iterable[tuple[Path, Path]]) -> NoRoom | None:
    """The folder with the least free space, if that is little: what was refused has been removed again by now."""
    free, folder, root = min(
        (shutil.disk_usage(existing(folder)).free, existing(folder), root) for folder, root in folders
    )
    return NoRoom(folder, root) if free < LITTLE_BYTES else None


def existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _refusal(folder: Path, size: int) -> int | None:
    """The error number with which ``folder`` refuses a file of ``size`` bytes as full; None: it takes it, or nobody's
    files.
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
