"""The terminal and log files of the command line, which print text from elsewhere and never interpret it."""

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

    Styles come from :class:`rich.text.Text` and from tables alone. Text from clients, files or the store may hold
    terminal commands or rich's markup; it is printed character for character. Markup is off for the whole console.
    The alternative, :func:`rich.markup.escape` in every call, fails with the first call that forgets it. A single
    call can still turn markup on with ``markup=True``.

    outlives_reader: whether the command continues without output when the other end of its pipe is closed
    (``| head``, or a killed ``tee``). Otherwise it exits with code 1, which is rich's default.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})
        self.outlives_reader = False

    def on_broken_pipe(self) -> None:
        """Print nothing more. Exit with code 1 unless ``outlives_reader``."""
        if not self.outlives_reader:
            super().on_broken_pipe()
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # Python writes the rest of the buffer there at exit
        os.close(nowhere)
        log.warning("the reader of the output has ended: nothing more is printed")

    def render_str(self, text: str, **options: Any) -> Text:
        """Make the control characters of ``text`` visible before rich measures its width."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make control characters visible also in strings inside other objects, such as ``Text``."""
        return _visible_segments(super().render(renderable, options))


def _visible_segments(segments: Iterable[Segment]) -> Iterator[Segment]:
    for segment in segments:
        # Control segments are rich's own: they move the cursor of the live display.
        if segment.control or segment.text.isprintable():
            yield segment
        else:
            yield Segment(visible(segment.text), segment.style)


class PlainFormatter(logging.Formatter):
    """A formatter for log files that people read in a terminal: control characters are made visible.

    Only the first line of a record begins at the margin, so that no line of a message can pass for another record.
    """

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", "\n    ")


class LogFile(logging.FileHandler):
    """A log file that leaves out lines while its disk is full, instead of printing a traceback for each.

    When the file is closed, the number of missing lines is printed on standard error.
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
        except OSError as error:  # the buffered lines could not be written
            if not says_full(error):
                raise
            self.missing = self.missing or 1
        if self.missing:
            missing, self.missing = self.missing, 0
            sys.stderr.write(f"{self.baseFilename}: {missing} lines are missing: no space was left\n")
