"""Numbers as the written forms have them."""

from __future__ import annotations


def plain(value: float) -> int | float:
    """Return a whole number as an int, because COCO and VOC usually write it without a point."""
    return int(value) if value.is_integer() else value
