"""The terminal of the command line, on which no text can do more than be read."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from infra.files.disk import says_full
from tasks.plain_text import visible

log = logging.getLogger(__name__)


class PlainConsole(Console):
    """A console that prints every string as it is: no markup, no names of emojis, no control characters.

    Styles come from :class:`rich.text.Text` and from tables alone. What clients, files or the store have written may
    hold terminal commands, or rich's markup; it is printed character for character. Markup is off, instead of escaped
    by :func:`rich.markup.escape` wherever such text is printed: one call that forgets to would print it as markup.
    ``markup=True`` of a single call still asks for markup.

    outlives_reader: whether the command goes on, and prints nothing more, when the other end of its pipe is closed
    (``| head``, or a ``tee`` that was killed); else that ends it with exit code 1, as rich has it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})
        self.outlives_reader = False

    def on_broken_pipe(self) -> None:
        """:meth:`rich.console.Console.on_broken_pipe`."""
        if not self.outlives_reader:
            super().on_broken_pipe()
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # for what is still in its buffer, which Python writes at exit
        os.close(nowhere)
        log.warning("nobody reads the output any more: nothing more is printed")

    def render_str(self, text: str, **options: Any) -> Text:
        """:meth:`rich.console.Console.render_str`, which gets strings before their width is known."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """:meth:`rich.console.Console.render`; what reaches it within other objects (``Text``) is made visible."""
        return _visible_segments(super().render(renderable, options))


def _visible_segments(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        # Control segments are rich's own: they move the cursor of the live display.
        if segment.control or segment.text.isprintable():
            yield segment
        else:
            yield Segment(visible(segment.text), segment.style)


class PlainFormatter(logging.Formatter):
    """Formats records for a file that people read in a terminal: control characters are visible, and only the first
    line of a record begins at the margin, so that no message can pass for a record of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", "\n    ")


class LogFile(logging.FileHandler):
    """A log file whose lines are left out while its disk is full, instead of a traceback on the terminal for each.

    How many are missing stands on standard error when the file is closed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.missing = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exception()
        if error is None or not says_full(error):
            super().handleError(record)
            return
        self.missing += 1

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # of what was still in memory
            if not says_full(error):
                raise
            self.missing = self.missing or 1
        if self.missing:
            missing, self.missing = self.missing, 0
            sys.stderr.write(f"{self.baseFilename}: {missing} lines are missing: no space was left\n")
