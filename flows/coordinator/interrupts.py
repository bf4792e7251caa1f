"""Ctrl-C and SIGTERM: make a run end cleanly on both, and lose neither."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.05
# Prefect's exceptions for a run that was cancelled or whose process was asked to end. Its module is not imported here.
_OF_PREFECT = ("CancelledRun", "TerminationSignal", "Abort", "Pause")


def was_stopped(error: BaseException) -> bool:
    """Return whether ``error`` means that somebody stopped the run, by Ctrl-C, a signal or Prefect. Else it failed.

    Prefect's engine can fail while it handles such a stop: a task that has no run yet ends with a ValueError. So the
    errors that were handled when ``error`` was raised count too. Only a cancelled coroutine has other reasons, like a
    time limit; it counts where it is the error itself.
    """
    if isinstance(error, asyncio.CancelledError):
        return True
    prefect = sys.modules.get("prefect.exceptions")
    kinds = tuple(kind for name in _OF_PREFECT if (kind := getattr(prefect, name, None)) is not None)
    handled: BaseException | None = error
    seen: set[int] = set()
    while handled is not None and id(handled) not in seen:
        if isinstance(handled, (KeyboardInterrupt, *kinds)):
            return True
        seen.add(id(handled))
        handled = handled.__cause__ or handled.__context__
    return False


def run_until_stopped(work: Coroutine[Any, Any, Result]) -> Result:
    """Run ``work`` in a new event loop. The first Ctrl-C or SIGTERM cancels it, the second raises at once.

    ``asyncio.run`` does so for Ctrl-C only, and not where a shell started this process in the background. An exception
    that a handler raises at any instruction is worse: Prefect may turn it into another one, or drop it.

    Raises:
        KeyboardInterrupt: a signal came and ``work`` raised after it, whatever it raised. Or Prefect stopped the run.
    """
    interrupted = False
    task: asyncio.Task[Any] | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted or task is None or task.done():
            interrupted = True
            raise KeyboardInterrupt
        interrupted = True
        task.cancel()
        task.get_loop().call_soon_threadsafe(lambda: None)  # wakes a loop that waits for its sockets

    async def cancellable() -> Result:
        nonlocal task
        task = asyncio.current_task()
        return await work

    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        return asyncio.run(cancellable())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if not was_stopped(error):
            if not interrupted:
                raise
            log.info("raised while the run was being stopped", exc_info=error)
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM too, so that it ends a run as cleanly as Ctrl-C.

    A KeyboardInterrupt that is raised inside a finalizer is raised again shortly after, because Python only prints it.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def unraisable(what: sys.UnraisableHookArgs) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
            again.daemon = True
            again.start()
        else:
            hook(what)

    old, hook = signal.signal(signal.SIGTERM, interrupt), sys.unraisablehook
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, old)


class Interrupts:
    """Remembers whether Ctrl-C or SIGTERM came while they were deferred."""

    def __init__(self) -> None:
        self._seen = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember that it came."""
        self._seen = True

    def check(self) -> None:
        """Raise the deferred interrupt.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came.
        """
        if self._seen:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[Interrupts]:
    """Let Ctrl-C and SIGTERM raise only at the next :meth:`Interrupts.check`, or at the end of this block.

    If they were raised at any moment, they could be lost: some modules catch every exception around an import.
    """
    interrupts = Interrupts()
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupts.note) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    interrupts.check()
