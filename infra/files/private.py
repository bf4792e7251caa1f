"""Keep a user's home private, whatever the umask: make it with narrow rights, or narrow those that it has."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

from infra.errors import SettingsError

log = logging.getLogger(__name__)

PRIVATE_UMASK = 0o077
OTHERS = 0o077  # mode bits that give rights to anybody but the owner
_ELSEWHERE = "expected a folder of your own; set FEDBENCH_HOME, or --home, to one"


def private_home(home: Path) -> None:
    """Make ``home`` a folder for its owner alone (0700). Wider rights are removed, with a warning.

    Missing folders above it are made as the umask allows, but never writable by others: who can rename the home can
    put another folder in its place.

    Raises:
        SettingsError: it is no folder, cannot be made or written to, or belongs to another user and this process cannot
            change its rights.
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
    # On a read-only file system, root cannot write either.
    if not os.access(home, os.W_OK | os.X_OK):
        raise SettingsError(f"home: {home} cannot be written to; {_ELSEWHERE}")


def require_folder(home: Path) -> None:
    """Check that ``home`` is a folder or does not exist yet. Nothing is made.

    Raises:
        SettingsError: it is a file, below a file, or in a folder that this process may not enter.
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
    """Make ``home``, and all files that this process makes later, private. For processes that write only below it.

    Raises:
        SettingsError: see :func:`private_home`.
    """
    private_home(home)
    os.umask(PRIVATE_UMASK)


def data_cache(home: Path) -> Path:
    """Make ``home`` private, and return its folder of drawn data sets.

    Raises:
        SettingsError: see :func:`private_home`.
    """
    private_home(home)
    return home / "cache" / "data"


def narrow(home: Path) -> str | None:
    """Remove other users' rights to ``home``, if it exists. Return a warning; None: nobody else had any.

    The warning names the rights removed, or another user who owns the home and so keeps all rights.

    Raises:
        SettingsError: it belongs to another user, and this process cannot change its rights.
    """
    try:
        status = home.stat()
    except OSError:  # missing or unusable: the code that uses it reports that
        return None
    mode, owner = stat.S_IMODE(status.st_mode), status.st_uid
    # Root can enter every folder anyway, so its ownership is no risk.
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
