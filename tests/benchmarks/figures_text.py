"""Format figures as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping


def line(figures: Mapping[str, float]) -> str:
    """Return a line of JSON with the figures, each rounded to three digits after the point."""
    return json.dumps({name: round(value, 3) for name, value in figures.items()})


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows of the same columns as aligned text."""
    lines = list(rows)
    shown = [list(lines[0]), *([_cell(value) for value in row.values()] for row in lines)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in shown)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
