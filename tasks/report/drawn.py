"""Figures as the bytes of an image file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["png", "svg"]


class DrawnOnce:
    """The plots of one report by name. Each is drawn once, for the page and for the plot's own files."""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}
        self._images: dict[tuple[str, Kind], bytes] = {}

    def image(self, name: str, draw: Callable[[], Figure], kind: Kind) -> bytes:
        """Return the plot ``name``, which ``draw`` returns as a figure, as PNG or SVG."""
        if (name, kind) not in self._images:
            if name not in self._figures:
                self._figures[name] = draw()
            self._images[name, kind] = image_bytes(self._figures[name], kind)
        return self._images[name, kind]


def image_bytes(figure: Figure, kind: Kind) -> bytes:
    """Return ``figure`` as PNG or SVG. The same figure gives the same bytes: an SVG has no date."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    if kind == "png":
        # The same bytes as those of savefig, which draws the figure twice.
        FigureCanvasAgg(figure).print_png(buffer, metadata={})
    else:
        figure.savefig(buffer, format=kind, dpi="figure", metadata={"Date": None})
    return buffer.getvalue()
