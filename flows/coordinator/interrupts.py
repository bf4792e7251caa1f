"""Ctrl-C and SIGTERM: make a run end cleanly on both, and lose neither."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

AGAIN_SECONDS = 0.05
# Prefect's exceptions for a run that was cancelled or whose process was asked to end. Its module is not imported here.
_OF_PREFECT = ("CancelledRun", "TerminationSignal", "Abort", "Pause")


def was_stopped(error: BaseException) -> bool:
    """Return whether ``error`` means that somebody stopped the run, by Ctrl-C, a signal or Prefect. Else it failed."""
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return True
    prefect = sys.modules.get("prefect.exceptions")
    kinds = tuple(kind for name in _OF_PREFECT if (kind := getattr(prefect, name, None)) is not None)
    return isinstance(error, kinds)


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


@contextlib.contextmanager
def stops_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt in place of the exceptions with which Prefect and asyncio end a run that was stopped."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or not was_stopped(error):
            raise
        raise KeyboardInterrupt from None


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
