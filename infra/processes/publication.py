"""The file with a service's process and address, for the runs of its home, and the end of processes left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
from pydantic import BaseModel, ValidationError

from infra.files.durable import write_durably

DIE_SECONDS = 10.0  # time for the kernel to kill a process


class Publication(BaseModel):
    """``<name>.json``: the process, and its address while it answers (None before and after).

    created: when the process was started, in seconds since the epoch.
    since_boot: the same, in seconds since this machine's start, which does not depend on the clock; None: unknown.
    """

    port: int
    pid: int
    created: float
    address: str | None = None
    since_boot: float | None = None


def read_publication(path: Path) -> Publication | None:
    """Read a publication; None: it is missing or cannot be read."""
    try:
        return Publication.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def publication_of(pid: int, port: int, address: str | None) -> Publication:
    """Return the publication of the process ``pid``, started at ``port``."""
    return Publication(
        port=port, pid=pid, created=started_at(pid) or 0.0, address=address, since_boot=started_since_boot(pid)
    )


def write_publication(path: Path, document: Publication) -> None:
    write_durably(path, document.model_dump_json())


def started_at(pid: int) -> float | None:
    """Return when the process was started, in seconds since the epoch; None: it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def started_since_boot(pid: int) -> float | None:
    """Return when the process was started, in seconds since this machine's start; None: it is gone."""
    created = started_at(pid)
    return None if created is None else created - psutil.boot_time()


def end_session(leader: int, grace: float) -> None:
    """End all processes of ``leader``'s session: with SIGTERM, and with SIGKILL after ``grace`` seconds."""
    members = _session(leader)
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, DIE_SECONDS)):
        if number == signal.SIGTERM:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(leader, number)
        else:
            members = _session(leader)
            for process in members:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        deadline = time.monotonic() + seconds
        while any(map(_lives, members)) and time.monotonic() < deadline:
            time.sleep(0.05)


def end_left_behind(found: Publication) -> None:
    """End a service whose holder died, or the children of a service that died itself.

    Another process may have the published id by now, so the start of the process and the port in its arguments are
    checked. The kernel does not reuse a session's id while the session has members. So if another process has the id,
    no child of the service is left.
    """
    if found.since_boot is None:  # written by an older fedbench
        created, expected = started_at(found.pid), found.created
    else:
        created, expected = started_since_boot(found.pid), found.since_boot
    if created is not None and abs(created - expected) >= 1.0:
        return
    if any(_mentions(process, str(found.port)) for process in _session(found.pid)):
        end_session(found.pid, grace=0.0)


def _session(leader: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and _lives(process):
                members.append(process)
    return members


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _mentions(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in argument for argument in process.cmdline())
    except psutil.Error:
        return False
