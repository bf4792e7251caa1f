"""Plots of a suite: each federation between its references, all federations in one panel, and every class.

Lines are means over seeds, in a band from the least to the greatest seed. Roles differ in line and marker, not in
colour alone, so that the plots can be read in grey print. A panel is as wide as a phone's page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tasks.figures.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, style_axes, table_room
from tasks.plain_text import plot_label
from tasks.spec.suite import Role
from tasks.spec.suite_records import SuiteResult
from tasks.suite.course import Course, course_of
from tasks.suite.summary import ROLES, Between, Spread, summarise

By = Literal["round", "bytes", "time"]
BYS: tuple[By, ...] = ("round", "bytes", "time")

# Okabe and Ito's colours. Further lines have the same colours again, with other strokes.
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9")
_LINES = ("-", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Colour, line and width of each role.
_LOOKS: dict[Role, tuple[str, str, float]] = {
    "centralised": (GREY, "--", 1.6),
    "federated": (BLUE, "-", 2.2),
    "local-only": (ORANGE, ":", 2.0),
}
_NAMES: dict[Role, str] = {"centralised": "centralised", "federated": "federated", "local-only": "local only"}
_COLUMNS = 3


def experiment_plot(result: SuiteResult, experiment: str, by: By) -> Figure:
    """Plot one experiment's metric, federated between centralised and local only. By bytes, references are level."""
    figure, (axes,) = _figure(1, 1)
    _draw_experiment(axes, result, experiment, by, top=_top(result))
    axes.set_title(f"{experiment} by {by}", loc="left", fontweight="bold")
    return figure


def experiments_plot(result: SuiteResult, by: By) -> Figure:
    """Plot a panel for every experiment, up to three in a row, all with the same scale of the metric."""
    names = _experiments(result)
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure, panels = _figure(rows, columns)
    for axes, name in zip(panels, names, strict=False):
        _draw_experiment(axes, result, name, by, top=_top(result))
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def federations_plot(result: SuiteResult, by: By) -> Figure:
    """Plot the federated lines of all experiments in one panel. An experiment without one has a reference's line."""
    courses = {name: course for name in _experiments(result) if (course := _main_course(result, name)) is not None}
    figure, (axes,) = _figure(1, 1, below=0.1 + 0.2 * len(courses))
    even = _even(list(courses.values()))
    label, x_of = _scale(list(courses.values()), by, even=even)
    style_axes(axes, f"{result.metric} by {by if even or by != 'round' else 'passes'}", result.metric, x=label)
    for number, (name, course) in enumerate(courses.items()):
        color, line = _COLORS[number % len(_COLORS)], _LINES[number // len(_COLORS) % len(_LINES)]
        marker = _MARKERS[number % len(_MARKERS)]
        what = name if course.role == "federated" else f"{name}, {_NAMES[course.role]}"
        _draw_line(axes, x_of(course), course, (color, line, 1.8), f"{what} ({_seeds(course.n)})", marker=marker)
    _finish(axes, _top(result))
    if courses:
        figure.legend(loc="lower left", frameon=False, fontsize=9)
    return figure


def classes_plot(between: Between) -> Figure:
    """Plot every class's AP50 at the last round: a bar with its spread for the federation, a mark for each reference.

    Without a federation, the first reference has the bar.
    """
    main = between.rows.get("federated") or next(iter(between.rows.values()))
    classes = list(dict.fromkeys(name for row in between.rows.values() for name in row.per_class))
    longest = max((len(plot_label(name)) for name in classes), default=0)
    height, every = table_room(max(1, len(classes)), 0.34, 0.16)
    figure, (axes,) = _figure(1, 1, height=height, left=min(2.4, 0.3 + 0.09 * longest), below=0.3)
    style_axes(axes, f"{between.experiment}: by class", "", x="AP50 (VOC 2010), last round")
    y = np.arange(len(classes))
    spreads = [main.per_class.get(name) for name in classes]
    axes.barh(
        y, [_mean(spread) for spread in spreads], height=0.62, color=_LOOKS["federated"][0], alpha=0.75,
        label=_NAMES[main.role],
    )  # fmt: skip
    for place, spread in zip(y, spreads, strict=True):
        if spread is not None and spread.sd is not None:
            axes.errorbar(spread.mean, place, xerr=spread.sd, color="black", capsize=2.5, linewidth=1)
    # Role, marker, size, colour, edge's colour and width.
    marks: tuple[tuple[Role, str, int, str, str, float], ...] = (
        ("centralised", "|", 15, "black", "black", 2.2),
        ("local-only", "D", 6, ORANGE, "white", 1.0),
    )
    for role, marker, size, color, edge, width in marks:
        row = between.rows.get(role)
        if row is None or row is main:
            continue
        x = [_mean(row.per_class.get(name)) for name in classes]
        axes.plot(
            x, y, linestyle="", marker=marker, markersize=size, color=color, markeredgecolor=edge,
            markeredgewidth=width, label=_NAMES[role], zorder=4,
        )  # fmt: skip
    axes.set_yticks(y[::every], [plot_label(name) for name in classes[::every]])
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="lower left", ncols=3, frameon=False, fontsize=9, columnspacing=1.2)
    return figure


def suite_plots(result: SuiteResult) -> dict[str, Callable[[], Figure]]:
    """Return functions that draw figures for a paper, by file name without suffix. Without a run there are none.

    The names are ``by-round``, ``by-bytes``, ``by-time`` and ``by-class-NAME``, and with several experiments also
    ``federations-by-round``, ``federations-by-bytes`` and ``federations-by-time``.
    """
    if not result.cells:
        return {}
    plots: dict[str, Callable[[], Figure]] = {f"by-{by}": partial(experiments_plot, result, by) for by in BYS}
    if len(_experiments(result)) > 1:
        plots |= {f"federations-by-{by}": partial(federations_plot, result, by) for by in BYS}
    return plots | {
        f"by-class-{between.experiment}": partial(classes_plot, between)
        for between in summarise(result).experiments
        if any(row.per_class for row in between.rows.values())
    }


def _figure(
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


def _draw_experiment(axes: Axes, result: SuiteResult, experiment: str, by: By, *, top: float) -> None:
    courses = [course for role in ROLES if (course := course_of(result, experiment, role)) is not None]
    moving = [course for course in courses if by != "bytes" or course.role == "federated"]
    label, x_of = _scale(moving, by, even=_even(courses))
    style_axes(axes, experiment, result.metric, x=label)
    for course in courses:
        look, name = _LOOKS[course.role], f"{_NAMES[course.role]} ({_seeds(course.n)})"
        if course in moving:
            _draw_line(axes, x_of(course), course, look, name, marker="o" if course.role == "federated" else "")
            continue
        level = course.mean[-1]
        if level is not None:
            color, line, width = look
            axes.axhline(level, color=color, linestyle=line, linewidth=width, label=f"{name}, last round")
    _finish(axes, top)
    if axes.lines:
        axes.legend(loc="best", fontsize=8.5, framealpha=0.85, edgecolor="none")


def _draw_line(
    axes: Axes, x: Sequence[float], course: Course, look: tuple[str, str, float], label: str, *, marker: str
) -> None:
    color, line, width = look
    mean, least, greatest = (_numbers(values) for values in (course.mean, course.least, course.greatest))
    if course.n > 1:
        axes.fill_between(x, least, greatest, color=color, alpha=0.18, linewidth=0)
    every = max(1, len(x) // 12)
    axes.plot(
        x, mean, line, color=color, linewidth=width, marker=marker, markersize=4, markevery=every, label=label
    )  # fmt: skip


def _finish(axes: Axes, top: float) -> None:
    axes.set_ylim(0, top)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=axes.get_xlabel() == "round"))


def _scale(
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


def _even(courses: Sequence[Course]) -> bool:
    """Return whether all courses have passed over equally many images in each round, so that rounds are comparable."""
    return all(
        math.isclose(one, other, rel_tol=1e-6)
        for course in courses
        for one, other in zip(courses[0].passes, course.passes, strict=False)
    )


def _main_course(result: SuiteResult, experiment: str) -> Course | None:
    roles: tuple[Role, ...] = ("federated", "centralised", "local-only")
    return next((course for role in roles if (course := course_of(result, experiment, role)) is not None), None)


def _experiments(result: SuiteResult) -> list[str]:
    return list(dict.fromkeys(cell.experiment for cell in result.cells))


def _top(result: SuiteResult) -> float:
    """Return one upper limit for all panels, so that they are comparable."""
    values = [point.figures.get(result.metric) for cell in result.cells for point in cell.points]
    return max(0.05, 1.06 * max((value for value in values if value is not None), default=0.0))


def _seeds(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _mean(spread: Spread | None) -> float:
    return math.nan if spread is None else spread.mean
