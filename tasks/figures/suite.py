"""Plots of a suite: each federation between its references, all federations in one panel, and every class.

Lines are means over seeds. Bands, and whiskers of bars, reach one sample standard deviation to each side. Roles differ
in line and marker, not in colour alone, so that the plots can be read in grey print.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tasks.figures.panels import (
    COLORS,
    LINES,
    MARKERS,
    By,
    are_even,
    bys_of,
    draw_course,
    finish,
    new_panels,
    scale_of,
    seeds_text,
    top_of,
)
from tasks.figures.plots import BLUE, GREY, ORANGE, style_axes, table_room
from tasks.figures.published import draw_levels, published_plot
from tasks.plain_text import plot_label
from tasks.spec.suite import Role
from tasks.spec.suite_records import SuiteResult
from tasks.suite.course import Course, course_of
from tasks.suite.published import street_splits
from tasks.suite.summary import ROLES, Between, Spread, summarise

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
    figure, (axes,) = new_panels(1, 1)
    _draw_experiment(axes, result, experiment, by, top=top_of(result))
    axes.set_title(f"{experiment} by {by}", loc="left", fontweight="bold")
    return figure


def experiments_plot(result: SuiteResult, by: By) -> Figure:
    """Plot a panel for every experiment, up to three in a row, all with the same scale of the metric."""
    names = _experiments(result)
    columns = min(_COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure, panels = new_panels(rows, columns)
    for axes, name in zip(panels, names, strict=False):
        _draw_experiment(axes, result, name, by, top=top_of(result))
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure


def federations_plot(result: SuiteResult, by: By) -> Figure:
    """Plot the federated lines of all experiments in one panel. An experiment without one has a reference's line."""
    courses = {name: course for name in _experiments(result) if (course := _main_course(result, name)) is not None}
    levels = street_splits(result) if by == "round" else []
    figure, (axes,) = new_panels(1, 1, below=0.1 + 0.2 * (len(courses) + len(levels)))
    even = are_even(list(courses.values()))
    label, x_of = scale_of(list(courses.values()), by, even=even)
    style_axes(axes, f"{result.metric} by {by if even or by != 'round' else 'passes'}", result.metric, x=label)
    for number, (name, course) in enumerate(courses.items()):
        color, line = COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]
        marker = MARKERS[number % len(MARKERS)]
        what = name if course.role == "federated" else f"{name}, {_NAMES[course.role]}"
        draw_course(axes, x_of(course), course, (color, line, 1.8), f"{what} ({seeds_text(course.n)})", marker=marker)
    draw_levels(axes, levels, top_of(result))
    finish(axes, top_of(result))
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
    figure, (axes,) = new_panels(1, 1, height=height, left=min(2.4, 0.3 + 0.09 * longest), below=0.3)
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
    ``federations-by-round``, ``federations-by-bytes`` and ``federations-by-time``. Those over time are left out if runs
    shared a machine. Experiments on Federated Street also have ``published-5`` or ``published-20``.
    """
    if not result.cells:
        return {}
    bys = bys_of(result)
    plots: dict[str, Callable[[], Figure]] = {f"by-{by}": partial(experiments_plot, result, by) for by in bys}
    if len(_experiments(result)) > 1:
        plots |= {f"federations-by-{by}": partial(federations_plot, result, by) for by in bys}
    plots |= {f"published-{split}": partial(published_plot, result, split) for split in street_splits(result)}
    return plots | {
        f"by-class-{between.experiment}": partial(classes_plot, between)
        for between in summarise(result).experiments
        if any(row.per_class for row in between.rows.values())
    }


def _draw_experiment(axes: Axes, result: SuiteResult, experiment: str, by: By, *, top: float) -> None:
    courses = [course for role in ROLES if (course := course_of(result, experiment, role)) is not None]
    moving = [course for course in courses if by != "bytes" or course.role == "federated"]
    label, x_of = scale_of(moving, by, even=are_even(courses))
    style_axes(axes, experiment, result.metric, x=label)
    for course in courses:
        look, name = _LOOKS[course.role], f"{_NAMES[course.role]} ({seeds_text(course.n)})"
        if course in moving:
            draw_course(axes, x_of(course), course, look, name, marker="o" if course.role == "federated" else "")
            continue
        level = course.mean[-1]
        if level is not None:
            color, line, width = look
            axes.axhline(level, color=color, linestyle=line, linewidth=width, label=f"{name}, last round")
    if by == "round":
        draw_levels(axes, street_splits(result, experiment), top)
    finish(axes, top)
    if axes.lines:
        axes.legend(loc="best", fontsize=8.5, framealpha=0.85, edgecolor="none")


def _main_course(result: SuiteResult, experiment: str) -> Course | None:
    roles: tuple[Role, ...] = ("federated", "centralised", "local-only")
    return next((course for role in roles if (course := course_of(result, experiment, role)) is not None), None)


def _experiments(result: SuiteResult) -> list[str]:
    return list(dict.fromkeys(cell.experiment for cell in result.cells))


def _mean(spread: Spread | None) -> float:
    return math.nan if spread is None else spread.mean
