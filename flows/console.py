"""The terminal of the command line, on which no text can do more than be read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from tasks.plain_text import visible


class PlainConsole(Console):
    """A console that prints every string as it is: no markup, no names of emojis, no control characters.

    Styles come from :class:`rich.text.Text` and from tables alone. What clients, files or the store have written may
    hold terminal commands, or rich's markup; it is shown, character for character. ``markup=True`` of a single call
    still asks for markup.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

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
