"""A stream that counts as a terminal."""

from __future__ import annotations

import io


class Terminal(io.StringIO):
    """A text stream that counts as a terminal."""

    def isatty(self) -> bool:
        return True
