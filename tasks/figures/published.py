"""The published curves on Federated Street beside a suite's runs: as level lines in panels, and as a plot of their own.

They are thin, grey and dashed, so that nobody takes them for runs of the suite.
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from tasks.figures.panels import COLORS, LINES, MARKERS, draw_course, new_panels, seeds_text
from tasks.figures.plots import style_axes
from tasks.plain_text import plot_label
from tasks.spec.suite_records import SuiteResult
from tasks.suite.course import Course, course_of
from tasks.suite.published import METRIC, curves_beside, published_split, street_splits

_GREY = "#8A919C"
_DASHES: tuple[tuple[int, Sequence[float]], ...] = (
    (0, (7, 2)),
    (0, (3, 2)),
    (0, (7, 2, 1.5, 2)),
    (0, (1.2, 1.6)),
)
_TICKS = (1, 3, 10, 30, 100, 300, 1000)


def draw_levels(axes: Axes, splits: Sequence[int], top: float) -> None:
    """Draw a level line at the last round of the best published curve with each of these numbers of clients.

    A line above ``top``, the axis's upper limit, is left out.
    """
    for number, split in enumerate(splits):
        value = max(curve.values[-1] for curve in curves_beside(split) if curve.clients == split)
        if value <= top:
            label = f"published, {split} clients: {value:.3f}"
            axes.axhline(value, color=_GREY, linestyle=_DASHES[number % len(_DASHES)], linewidth=1.0, label=label)


def published_plot(result: SuiteResult, split: int) -> Figure:
    """Plot the federated runs on Federated Street with ``split`` devices beside the published curves, by round.

    The axis of rounds is logarithmic: published curves have 1,000 rounds. Round 0 is left out.
    """
    curves, courses = curves_beside(split), _courses(result, split)
    figure, (axes,) = new_panels(1, 1, below=0.1 + 0.2 * (len(curves) + len(courses)))
    style_axes(axes, f"Beside the published curves, {split} devices", METRIC)
    for number, (name, course) in enumerate(courses.items()):
        look = (COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)], 1.8)
        label = f"{plot_label(name)} ({seeds_text(course.n)})"
        draw_course(axes, list(course.rounds), course, look, label, marker=MARKERS[number % len(MARKERS)])
    for number, curve in enumerate(curves):
        style = _DASHES[number % len(_DASHES)]
        label = f"published: {curve.label} ({curve.values[-1]:.3f})"
        axes.plot(curve.rounds, curve.values, color=_GREY, linestyle=style, linewidth=1.1, label=label)
    axes.set_xscale("log")
    axes.set_xlim(1, 1400)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, 1)
    figure.legend(loc="lower left", frameon=False, fontsize=9)
    return figure


def _courses(result: SuiteResult, split: int) -> dict[str, Course]:
    names = [name for name, spec in result.specs.items() if published_split(spec) == split]
    names = [name for name in names if street_splits(result, name)]
    return {name: course for name in names if (course := course_of(result, name, "federated")) is not None}
