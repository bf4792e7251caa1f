"""Several federations in one figure: what they reach for what they spend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks.figures.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, draw_line, new_figure, style_axes
from tasks.metrics.over_rounds import Costs
from tasks.spec.federation import MapName

# Okabe and Ito's, of which grey is kept for centralised runs; then the same again with other lines.
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """One federation: its figure and its costs at each round, from 0; at least one of them."""

    name: str
    values: tuple[float | None, ...]
    costs: tuple[Costs, ...]
    centralised: bool

    @property
    def best(self) -> int | None:
        """The round of the greatest figure, the first of equals; None without any."""
        present = [(value, -number) for number, value in enumerate(self.values) if value is not None]
        return -max(present)[1] if present else None


def comparison_plot(curves: Sequence[Curve], metric: MapName) -> Figure:
    """``metric`` over image passes, wall time and bytes of weights, one line a federation, its best round starred.

    A centralised run is grey and dashed. Among the bytes it is a level line at its best: weights are not what it
    would have to move.
    """
    figure = new_figure(16, 4.6 + 0.22 * ((len(curves) + 2) // 3))
    passes, time, exchanged = figure.subplots(1, 3, sharey=True, width_ratios=[1.25, 1, 1])
    unit, seconds = _time_unit(max(curve.costs[-1].seconds for curve in curves))
    most = max((curve.costs[-1].exchanged for curve in curves if not curve.centralised), default=0)
    size, count = ("GB", 1e9) if most >= 2e9 else ("MB", 1e6)
    style_axes(passes, f"{metric} on test", metric, x="passes over the training images")
    style_axes(time, "by wall time", "", x=unit)
    style_axes(exchanged, "by weights exchanged", "", x=f"{size}, clients up and down")
    for number, curve in enumerate(curves):
        look = _look(number, curve)
        _draw(passes, curve, look, lambda costs: costs.passes)
        _draw(time, curve, look, lambda costs: costs.seconds / seconds)
        if not curve.centralised:
            _draw(exchanged, curve, look, lambda costs: costs.exchanged / count)
        elif curve.best is not None:
            exchanged.axhline(curve.values[curve.best] or 0.0, color=look[0], linestyle=look[1], linewidth=1.4)
    highest = max((value for curve in curves for value in curve.values if value is not None), default=0.0)
    passes.set_ylim(0, max(0.05, 1.08 * highest))
    for axes in (passes, time, exchanged):
        axes.set_xlim(left=0)
    handles, labels = passes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(curves)), frameon=False)
    return figure


def _look(number: int, curve: Curve) -> tuple[str, str, str]:
    """Colour, line and marker."""
    marker = _MARKERS[number % len(_MARKERS)]
    if curve.centralised:
        return GREY, "--", marker
    return _COLORS[number % len(_COLORS)], _LINES[number // len(_COLORS) % len(_LINES)], marker


def _draw(axes: Axes, curve: Curve, look: tuple[str, str, str], x_of: Callable[[Costs], float]) -> None:
    color, linestyle, marker = look
    x = [x_of(costs) for costs in curve.costs]
    draw_line(axes, x, curve.values, color, _label(curve), marker=marker, linestyle=linestyle)
    best = curve.best
    if best is not None:
        y = float(curve.values[best] or 0.0)
        axes.plot([x[best]], [y], marker="*", markersize=13, color=color, markeredgecolor="white", zorder=5)


def _label(curve: Curve) -> str:
    """The name, with what is best of it."""
    best = curve.best
    return curve.name if best is None else f"{curve.name}: best {curve.values[best]:.3f} in round {best}"


def _time_unit(most: float) -> tuple[str, float]:
    """The unit in which ``most`` seconds are read best, and its seconds."""
    if most < 600:
        return "seconds", 1.0
    return ("minutes", 60.0) if most < 36_000 else ("hours", 3600.0)
