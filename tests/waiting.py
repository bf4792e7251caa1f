"""Wait for other processes and tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psutil


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Wait until ``condition`` is true. Return False if it is not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


async def came_true(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until ``condition`` is true, while other tasks of the loop run. Fail if it is not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not come true within {seconds:g} s"
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    """Return whether the process has ended, even if its parent has not collected its status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
