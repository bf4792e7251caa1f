"""Ctrl-C and SIGTERM: a run ends cleanly on both, and neither is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

AGAIN_SECONDS = 0.05


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as cleanly as Ctrl-C. Either comes again where it met a finalizer: Python would print and
    forget the exception.
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
    """The signals that came while they were deferred."""

    def __init__(self) -> None:
        self._seen = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self._seen = True

    def check(self) -> None:
        """
        Raises:
            KeyboardInterrupt: one came.
        """
        if self._seen:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[Interrupts]:
    """Ctrl-C and SIGTERM raise at the next :meth:`Interrupts.check`, or at the end of this.

    Raised wherever the process happens to be, they may be lost: modules catch everything around an import.
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
