"""Files that are no regular files, for tests of readers. A test that waits for one is interrupted after a minute."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

LONGEST_SECONDS = 60


def put_pipe(path: Path) -> None:
    """Put a named pipe without a writer at ``path``: its reader waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    """Put a socket at ``path``. It is bound by its name alone, because the whole path may be too long for one."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def put_device(path: Path) -> None:
    """Put a link to a device without an end at ``path``."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a named pipe": put_pipe,
    "a socket": put_socket,
    "a device": put_device,
}


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Fail if the block waits for a file."""

    def interrupt(*_: object) -> None:
        raise AssertionError("the reader waits for a file that has no end")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
