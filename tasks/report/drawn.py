"""Figures as the bytes of an image file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_bytes(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """Return ``figure`` as PNG or SVG. The same figure gives the same bytes: an SVG has no date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {})
    return buffer.getvalue()
