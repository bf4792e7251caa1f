"""Waiting for what other processes do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psutil


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
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
