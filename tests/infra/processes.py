"""Processes of services: waited for, counted, and one with a child of its own."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable

import psutil

from infra.services.s3 import S3Service


class WithChildren(S3Service):
    """A command whose own child answers, like MLflow's server."""

    has_children = True

    def command(self, port: int) -> list[str]:
        script = "import subprocess, sys; subprocess.call(sys.argv[1:])"
        return [sys.executable, "-c", script, *super().command(port)]


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether ``condition`` comes true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


async def came_true(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits while other tasks of the loop go on; fails when ``condition`` does not come true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether the process has ended, though its parent may not have asked yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def session(leader: int) -> list[int]:
    """Living processes of the session that ``leader`` led; those of a service, whose session is its group too."""
    members = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and not gone(pid):
                members.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members
