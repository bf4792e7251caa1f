"""Locks that the operating system releases when their process dies, and the check for free disk space.

POSIX only (``flock``): Linux and macOS. A lock is a file that is never removed: removing one while another
process waits for it would let two processes hold "the" lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import DiskFull, RunLocked
from infra.files.disk import existing


class FileLock:
    """An exclusive ``flock`` on ``path``. When this process ends, in whatever way, the lock is free.

    Not re-entrant. Two objects on one path exclude each other, also between threads of one process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    @property
    def descriptor(self) -> int:
        """Descriptor of the open file. A process that inherits it keeps the lock taken while it has the file open."""
        if self._descriptor is None:
            raise RuntimeError(f"{self.path}: the lock is not held")
        return self._descriptor

    def acquire(self, timeout: float | None = 0.0, *, note: str = "") -> bool:
        """Take the lock, waiting at most ``timeout`` seconds (None: no limit). Return False if it stays taken.

        note: text that others can read with :meth:`note`.
        """
        if self._descriptor is not None:
            raise RuntimeError(f"{self.path}: this object holds the lock already")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _flock(descriptor, timeout):
                os.close(descriptor)
                return False
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {note}".rstrip().encode() + b"\n")
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _HELD.add(self)
        return True

    def release(self) -> None:
        """Free the lock, if it is held."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            _HELD.discard(self)
            os.close(descriptor)

    def is_taken(self) -> bool:
        """Whether anybody holds the lock at the moment, this object included."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that checks do not exclude each other
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def holder(self) -> int | None:
        """Return the process id that the last holder wrote; None: unreadable. Valid while the lock is taken."""
        try:
            return int(self._words()[0])
        except (OSError, ValueError, IndexError):
            return None

    def note(self) -> str:
        """Return the note that the last holder wrote."""
        try:
            return " ".join(self._words()[1:])
        except OSError:
            return ""

    def _words(self) -> list[str]:
        return self.path.read_text(encoding="ascii", errors="replace").split()

    def _forget(self) -> None:
        # flock belongs to the open file, which a fork shares. Closed in the child, it ends with the parent.
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_HELD: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_HELD):
        lock._forget()
    _HELD.clear()


os.register_at_fork(after_in_child=_after_fork)


def _flock(descriptor: int, timeout: float | None) -> bool:
    if timeout is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def run_lock_path(home: Path, name: str) -> Path:
    """File that :func:`run_lock` locks."""
    return home / "locks" / f"{name}.lock"


@contextmanager
def run_lock(home: Path, name: str) -> Iterator[None]:
    """Hold the lock of the federation ``name``, which this process runs. It is free once the process has ended.

    Raises:
        RunLocked: another process holds it; the message names the federation and the process.
    """
    lock = FileLock(run_lock_path(home, name))
    if not lock.acquire():
        pid = lock.holder()
        raise RunLocked(
            f"{name}: already running in process {pid if pid is not None else 'unknown'} (lock {lock.path}); "
            "wait for it to end, end it, or choose another name"
        )
    try:
        yield
    finally:
        lock.release()


def require_free_disk(path: Path, megabytes: int, what: str) -> None:
    """Check that the file system of ``path`` (which need not exist yet) has ``megabytes`` (10^6 bytes) free.

    Raises:
        DiskFull: the message names ``what`` needs the space, the folder, and the megabytes free and needed.
    """
    free = shutil.disk_usage(existing(path.absolute())).free // 1_000_000
    if free < megabytes:
        raise DiskFull(
            f"{what}: {free} MB free under {path}, expected at least {megabytes} MB",
            "free some space, or set FEDBENCH_HOME to a larger disk",
        )
