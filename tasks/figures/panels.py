"""Panels of a suite's plots: their places, their scales, and the line of one role with its band.

Lines are means over seeds. Their bands reach one sample standard deviation to each side. A panel is as wide as a
phone's page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tasks.figures.fractions import fraction_top
from tasks.figures.plots import BLUE, GREEN, ORANGE, PURPLE, new_figure
from tasks.spec.suite_records import SuiteResult
from tasks.suite.course import Course
from tasks.suite.sharing import sharing_of

By = Literal["round", "bytes", "time"]
BYS: tuple[By, ...] = ("round", "bytes", "time")
# Okabe and Ito's colours. Further lines have the same colours again, with other strokes.
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9")
LINES = ("-", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")


def bys_of(result: SuiteResult) -> tuple[By, ...]:
    """Return what the result's plots are over. Time is left out if runs shared a machine: it does not compare."""
    return tuple(by for by in BYS if by != "time" or not sharing_of(result).shared)


def new_panels(
    rows: int, columns: int, *, height: float = 2.45, left: float = 0.62, below: float = 0.0
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """Return panels of a phone's width with margins for their labels, and room of ``below`` for a legend, in inches.

    Margins are fixed. A layout that measures the labels takes as long as drawing them, and a report has many plots.
    """
    top, bottom, right, width = 0.3, 0.55, 0.16, 4.6
    whole = rows * (top + height + bottom) + below
    figure = new_figure(width * columns, whole)
    figure.set_layout_engine("none")
    grid = [
        figure.add_axes(
            (
                (column * width + left) / (width * columns),
                (below + (rows - row - 1) * (top + height + bottom) + bottom) / whole,
                (width - left - right) / (width * columns),
                height / whole,
            )
        )
        for row in range(rows)
        for column in range(columns)
    ]
    return figure, grid


def draw_course(
    axes: Axes, x: Sequence[float], course: Course, look: tuple[str, str, float], label: str, *, marker: str
) -> None:
    """Draw a role's line, and its band if there are several seeds. look: colour, line and width."""
    color, line, width = look
    mean, low, high = (numbers(values) for values in (course.mean, course.low, course.high))
    if course.n > 1:
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    every = max(1, len(x) // 12)
    axes.plot(
        x, mean, line, color=color, linewidth=width, marker=marker, markersize=4, markevery=every, label=label
    )  # fmt: skip


def finish(axes: Axes, top: float) -> None:
    """Set the limits and the ticks of a panel."""
    axes.set_ylim(0, top)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axes.get_xlabel() == "round"))


def scale_of(
    courses: Sequence[Course], by: By, *, even: bool
) -> tuple[str, Callable[[Course], list[float]]]:  # fmt: skip
    """Return the label of the axis, and a function for a course's values on it, in readable units."""
    if by == "round":
        if even:
            return "round", lambda course: [float(number) for number in course.rounds]
        return "passes over the training images", lambda course: list(course.passes)
    if by == "bytes":
        most = max((course.exchanged[-1] for course in courses), default=0.0)
        unit, bytes_ = ("GB", 1e9) if most >= 2e9 else ("MB", 1e6)
        return f"{unit} of weights, clients up and down", lambda course: [value / bytes_ for value in course.exchanged]
    most = max((course.seconds[-1] for course in courses), default=0.0)
    unit, seconds = ("s", 1.0) if most < 600 else ("min", 60.0) if most < 36_000 else ("h", 3600.0)
    return f"wall time, {unit}", lambda course: [value / seconds for value in course.seconds]


def are_even(courses: Sequence[Course]) -> bool:
    """Return whether all courses have passed over equally many images in each round, so that rounds are comparable."""
    return all(
        math.isclose(one, other, rel_tol=1e-6)
        for course in courses
        for one, other in zip(courses[0].passes, course.passes, strict=False)
    )


def top_of(result: SuiteResult) -> float:
    """Return one upper limit for all panels, so that they are comparable."""
    values = [point.figures.get(result.metric) for cell in result.cells for point in cell.points]
    return fraction_top(values)


def seeds_text(n: int) -> str:
    """Return ``3 seeds``."""
    return f"{n} seed{'' if n == 1 else 's'}"


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """Return ``values`` as an array, with NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float64)
