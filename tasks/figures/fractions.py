"""Axes of fractions, such as mAP and recall: they end at 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes


def fraction_top(values: Iterable[float | None]) -> float:
    """Return the upper limit of an axis of fractions: 1, or just above the greatest value if that is under a half."""
    greatest = max((value for value in values if value is not None), default=0.0)
    return 1.0 if greatest >= 0.5 else max(0.05, 1.06 * greatest)


def end_at_one(axes: Axes, values: Sequence[float | None]) -> None:
    """Set the upper limit, and draw the legend below the axis, where no line can cross it."""
    if any(value is not None for value in values):
        axes.set_ylim(0, fraction_top(values))
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, columnspacing=1.2)
