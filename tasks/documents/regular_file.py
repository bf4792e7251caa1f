"""Open a user's file, which must be a regular one: the reader of a named pipe would wait for ever.

Errors are OSErrors, as those of a missing file are, so that each caller's message names the file and the reason.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file, or a link to one, to read its bytes.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    require_regular(path)
    # Without O_NONBLOCK, a pipe that replaces the file just now would be waited for. Regular files ignore the flag.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        return file.read()


def read_regular_text(path: Path) -> str:
    """Return the text of a regular file in UTF-8, with a line feed for each end of line.

    Raises:
        OSError: as :func:`read_regular`.
        UnicodeDecodeError: it is not in UTF-8.
    """
    with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        return file.read()


def require_regular(path: Path) -> None:
    """Check a file that a library will open by its path.

    Raises:
        OSError: there is none, or it is no regular file.
    """
    _check(os.stat(path).st_mode, path)


def _check(mode: int, path: Path) -> None:
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        found = _KINDS.get(kind, "something else")
        raise OSError(errno.EINVAL, f"expected a regular file, found {found}", str(path))
