"""The home of a user is nobody else's: its rights, whatever the umask, and those of a home that is there already."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

from infra.errors import SettingsError

log = logging.getLogger(__name__)

PRIVATE_UMASK = 0o077
OTHERS = 0o077  # the bits of a mode that give anybody but the owner anything
_ELSEWHERE = "expected a folder of your own; set FEDBENCH_HOME, or --home, to one"


def private_home(home: Path) -> None:
    """Have the folder ``home``, for its owner alone (0700). Wider rights are taken back, with a warning.

    Folders above that are missing are made as the umask says, but never writable by others: whoever could rename the
    home could put another in its place.

    Raises:
        SettingsError: it is no folder, cannot be made or written to, or is another user's whose rights this process
            cannot change.
    """
    require_folder(home)
    try:
        for folder in reversed(home.absolute().parents):
            if not folder.exists():
                folder.mkdir(mode=0o755, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"home: {home} cannot be made: {error.strerror}; {_ELSEWHERE}") from None
    narrowed = narrow(home)
    if narrowed is not None:
        log.warning("%s", narrowed)
    # Of a file system that is mounted for reading this is true for root too.
    if not os.access(home, os.W_OK | os.X_OK):
        raise SettingsError(f"home: {home} cannot be written to; {_ELSEWHERE}")


def require_folder(home: Path) -> None:
    """Hold that ``home`` is a folder, or that there is nothing yet where it would be. Nothing is made.

    Raises:
        SettingsError: it is a file, below a file, or where this process may not look.
    """
    try:
        if stat.S_ISDIR(home.stat().st_mode):
            return
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise SettingsError(f"home: expected a folder, found a file above it: {home}") from None
    except OSError as error:
        raise SettingsError(f"home: {home} cannot be used: {error.strerror}; {_ELSEWHERE}") from None
    raise SettingsError(f"home: expected a folder, found a file: {home}")


def private_process(home: Path) -> None:
    """Have ``home`` private, and all that this process writes from now on: for processes that write below it alone.

    Raises:
        SettingsError: see :func:`private_home`.
    """
    private_home(home)
    os.umask(PRIVATE_UMASK)


def data_cache(home: Path) -> Path:
    """The folder of drawn data sets, in a home that is private.

    Raises:
        SettingsError: see :func:`private_home`.
    """
    private_home(home)
    return home / "cache" / "data"


def narrow(home: Path) -> str | None:
    """Take from others what rights they have to ``home``, if it is there. Returns one line about that, or about an
    owner whose rights nobody can take; None: nobody else has any.

    Raises:
        SettingsError: it is another user's whose rights this process cannot change.
    """
    try:
        status = home.stat()
    except OSError:  # none yet, or none that could be used; who uses it says so
        return None
    mode, owner = stat.S_IMODE(status.st_mode), status.st_uid
    # Root can enter every folder, one that waited for it too.
    foreign = "" if owner in (0, os.geteuid()) else f"{home}: user {owner} owns it, and can read and change all in it"
    if not mode & OTHERS:
        return foreign or None
    try:
        home.chmod(mode & ~OTHERS)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise SettingsError(f"home: {home} cannot be written to: {error.strerror}; {_ELSEWHERE}") from None
        raise SettingsError(
            f"home: expected a folder of your own (user {os.geteuid()}), found one of user {owner} that "
            f"others may enter: {home}; name one below it"
        ) from None
    return foreign or f"{home}: others could enter it ({mode:04o}); from now on only you can (0700)"
