"""Plots of a model's detections: precision over recall by class, the confusion matrix, and the types of errors."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from tasks.analysis.analyse import DetectionAnalysis
from tasks.analysis.confusion import BACKGROUND, MISSED
from tasks.analysis.curves import Curve
from tasks.analysis.error_types import ERROR_TYPES, MEANINGS
from tasks.figures.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure, style_axes, table_room
from tasks.plain_text import plot_label

# Okabe and Ito's colours. Further lines have the same colours again, with other strokes.
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#E69F00", "#56B4E9")
_LINES = ("-", "--", "-.", ":")
_INK = "#1F2937"
_MOST_CURVES = len(_COLORS) * len(_LINES)
# Of a matrix with more classes, only the shade shows the numbers.
_MOST_NUMBERS = 25


def curves_plot(analysis: DetectionAnalysis, title: str = "") -> Figure:
    """Plot precision over recall of each class: the envelope, whose area is the average precision, and its area.

    A dot is at the threshold of the confusion matrix. Of more classes than lines can be told apart, the worst have a
    line with a name and the others a grey one.
    """
    curves = sorted(analysis.curves, key=lambda curve: -curve.average_precision)
    named = curves if len(curves) <= _MOST_CURVES else curves[-_MOST_CURVES:]
    height = max(4.2, 1.0 + 0.21 * len(named))
    figure = new_figure(8.4, height)
    axes = figure.subplots()
    style_axes(axes, "Precision over recall", "precision", x="recall")
    threshold = analysis.confusion.threshold
    for curve in curves[: len(curves) - len(named)]:
        axes.plot(*_steps(curve), color="#D1D5DB", linewidth=1)
    for number, curve in enumerate(named):
        color, line = _COLORS[number % len(_COLORS)], _LINES[number // len(_COLORS)]
        label = f"{curve.average_precision:.3f}  {plot_label(curve.name)} ({curve.objects})"
        axes.plot(*_steps(curve), line, color=color, linewidth=1.8, label=label)
        dot = curve.at(threshold)
        if dot is not None:
            recall, _ = dot
            kept = int((curve.scores >= threshold).sum())
            axes.plot(
                recall, curve.envelope[kept - 1], "o", color=color, markersize=6, markeredgecolor="white", zorder=4
            )
    _fractions(axes)
    what = "AP50  class (objects)" if named is curves else f"AP50  the {len(named)} worst of {len(curves)} classes"
    if named:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9, title=what, title_fontsize=9)
    _caption(figure, axes, analysis, title, f"dots: score {threshold:.2g}, the confusion matrix's threshold")
    return figure


def confusion_plot(analysis: DetectionAnalysis, title: str = "") -> Figure:
    """Plot the confusion matrix: shares of each row as shade and number, with the counts below them."""
    confusion = analysis.confusion
    size = len(confusion.classes)
    side, every = table_room(size + 1, 0.62, 0.17)
    longest = max(len(plot_label(name)) for name in (*confusion.classes, BACKGROUND))
    figure = new_figure(max(5.0, side + 1.9 + 0.08 * longest), max(3.6, side * 0.85 + 1.3 + 0.05 * longest))
    axes = figure.subplots()
    axes.set_title("What objects are detected as", loc="left", fontweight="bold", color=_INK)
    shares = np.ma.masked_invalid(confusion.shares)
    shares[size, size] = np.ma.masked
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if size <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(confusion.counts):
            if (row, column) != (size, size) and count:
                share = float(shares[row, column])
                axes.text(
                    column, row, f"{share:.2f}\n{count}", ha="center", va="center", fontsize=8, linespacing=1.05,
                    color="white" if share > 0.55 else _INK,
                )  # fmt: skip
    rows, columns = [*map(plot_label, confusion.classes), BACKGROUND], [*map(plot_label, confusion.classes), MISSED]
    counts = confusion.counts.sum(axis=1)
    axes.set_yticks(
        range(0, size + 1, every), [f"{name}  {count}" for name, count in zip(rows, counts, strict=True)][::every]
    )
    axes.set_xticks(range(0, size + 1, every), columns[::every], rotation=35, ha="right", rotation_mode="anchor")
    axes.set_ylabel("object, and how many")
    axes.set_xlabel("detected as")
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    if size <= _MOST_NUMBERS:
        axes.set_xticks(np.arange(size + 2) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 2) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
    # Lines apart the column of missed objects and the row of detections of nothing.
    axes.axhline(size - 0.5, color=GREY, linewidth=1)
    axes.axvline(size - 0.5, color=GREY, linewidth=1)
    bar = figure.colorbar(image, ax=axes, label="share of the row", pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    why = "highest F1 on these images" if analysis.errors.matches.right.any() else "no detection is right"
    note = f"score at least {confusion.threshold:.2g} ({why}), IoU at least 0.5"
    _caption(figure, axes, analysis, title, note)
    return figure


def errors_plot(analysis: DetectionAnalysis, title: str = "") -> Figure:
    """Plot what correcting each type of errors adds to the average precision (TIDE's ΔAP), with their numbers."""
    errors = analysis.errors
    rows = [(kind, MEANINGS[kind], errors.count(kind), errors.gain(kind), BLUE) for kind in ERROR_TYPES]
    special = [
        ("false positives", "all wrong detections", errors.false_positives, errors.false_positive_gain, GREY),
        ("false negatives", "all objects that are not found", errors.false_negatives, errors.false_negative_gain, GREY),
    ]
    figure = new_figure(8.4, 4.6)
    axes = figure.subplots()
    style_axes(
        axes, "What each type of errors costs", "", x="ΔAP: AP50 with these errors corrected, less AP50 as it is"
    )
    # A gap separates the six types, which share no error, from the two sums.
    places = [*range(len(rows)), *(len(rows) + 0.5 + number for number in range(len(special)))]
    gains = [gain or 0.0 for *_, gain, _ in (*rows, *special)]
    top = min(1.0, max(0.05, 1.35 * max(gains)))
    for place, (_, _, count, gain, color) in zip(places, [*rows, *special], strict=True):
        axes.barh(place, gain or 0.0, height=0.66, color=color, alpha=0.85)
        text = f"{'–' if gain is None else format(gain, '.3f')}   n = {count:,}"
        inside = (gain or 0.0) > 0.8 * top  # only if the axis ends at 1.0
        axes.annotate(
            text, (gain or 0.0, place), xytext=(-6 if inside else 6, 0), textcoords="offset points", va="center",
            ha="right" if inside else "left", fontsize=9, color="white" if inside else _INK,
        )  # fmt: skip
    axes.set_yticks(places, [f"{name}\n{meaning}" for name, meaning, *_ in (*rows, *special)], fontsize=8.5)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlim(0, top)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    _caption(figure, axes, analysis, title, "TIDE, arXiv 2008.08115: IoU 0.5 and 0.1")
    return figure


def _steps(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of the envelope as a line of steps from recall 0 to the last one, and down from there."""
    recall, envelope = np.concatenate([[0.0], curve.recall]), curve.envelope
    if not len(envelope):
        return np.zeros(1), np.zeros(1)
    # Between two recalls the envelope is that of the greater one.
    x = np.concatenate([np.repeat(recall, 2)[1:], recall[-1:]])
    y = np.concatenate([np.repeat(envelope, 2), envelope[-1:], [0.0]])
    return x, y


def _fractions(axes: Axes) -> None:
    """Let both axes go from 0 to 1, with room for lines at the edge."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(0.2))
    for line in axes.lines:
        line.set_clip_on(False)


def _caption(figure: Figure, axes: Axes, analysis: DetectionAnalysis, title: str, note: str) -> None:
    """Write the model's name, its average precision, the images and ``note`` below the title's line."""
    mean = analysis.errors.average_precision
    images = f"{analysis.images:,} images" + (f" of {analysis.sets} sets, pooled" if analysis.sets > 1 else "")
    parts = [plot_label(title), f"AP50 {'–' if mean is None else format(mean, '.3f')}", images]
    figure.supxlabel("  ·  ".join(filter(None, [*parts, note])), fontsize=8.5, color=GREY)
