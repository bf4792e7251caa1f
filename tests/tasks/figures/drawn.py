"""Plots as images, and their lines as arrays."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image


def drawn(figure: Figure) -> Image.Image:
    """Return ``figure`` as the image that it is saved as."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def xs(line: Line2D) -> np.ndarray:
    """Return the x of a line's points."""
    return np.asarray(line.get_xdata())


def ys(line: Line2D) -> np.ndarray:
    """Return the y of a line's points."""
    return np.asarray(line.get_ydata())
