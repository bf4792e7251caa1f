"""A clock that a test sets."""

from __future__ import annotations


class Clock:
    """A clock whose seconds pass only when the test adds them to ``now``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
