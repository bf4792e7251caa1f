"""Plots of a federation: learning by round, the classes on each device, and every client's loss.

Each function returns a ``matplotlib.figure.Figure`` drawn by Agg, outside pyplot's global state, so that
flows may draw from any thread; save it with ``figure.savefig``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from tasks.data.entries import natural
from tasks.figures.fractions import end_at_one
from tasks.plain_text import plot_label
from tasks.spec.federation import MapName
from tasks.spec.plans import PARTS
from tasks.spec.records import Decision, PersonalMetrics, RoundRecord
from tasks.spec.training import PART_NAMES

# Okabe and Ito's colours, distinct for colour-blind readers too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6B7280"
PURPLE = "#CC79A7"
# Label, colour, line and marker of each mAP.
_MAPS: dict[MapName, tuple[str, str, str, str]] = {
    "map50_voc10": ("VOC 2010, IoU 0.5", GREEN, "-", "o"),
    "map50_voc07": ("VOC 2007, IoU 0.5", ORANGE, "--", "s"),
    "map50_coco": ("COCO, IoU 0.5", BLUE, ":", "^"),
    "map_coco": ("COCO, IoU .50:.95", PURPLE, "-", "D"),
}
_GRID = "#E5E7EB"
_INK = "#1F2937"
_MOST_INCHES = 50.0  # longest side of a plot's table: 6500 dots


def rounds_plot(records: Sequence[RoundRecord], *, stacked: bool = False) -> Figure:
    """Plot train and test loss, test mAP and recall, and all four mAPs, by round.

    A star marks the best round on the metric by which the federation chooses it. If the rounds scored test sets and
    held-out images, dotted lines are the loss and that metric on the latter. If they scored only held-out images, all
    lines are of these. ``stacked``: one panel above the other, for narrow pages.
    """
    records = sorted(records, key=lambda record: record.round)
    figure = new_figure(8, 9.6) if stacked else new_figure(16, 4.2)
    losses, scores, maps = figure.subplots(*((3, 1) if stacked else (1, 3)))
    rounds = [record.round for record in records]
    decision = records[-1].decision if records else Decision(stop=False, best_round=0)
    metric, decides = decision.best_metric, decision.on
    scored = [part for part in PARTS if any(part in record.scored_on for record in records)] or [decides]
    part, both = scored[0], len(scored) > 1
    test_loss = [record.figures_on(part).loss for record in records]
    held_loss = [record.figures_on("holdout").loss for record in records] if both else []
    train_loss = [record.metrics.train_loss for record in records]
    recall = [record.figures_on(part).recall for record in records]
    by_name = {name: [getattr(record.figures_on(part), name) for record in records] for name in _MAPS}
    held = [getattr(record.figures_on("holdout"), metric) for record in records] if both else []
    name_of_part = PART_NAMES[part]
    own = [record.metrics.on(decides).personal for record in records]
    own_mean, own_worst = _own(own, metric)

    draw_line(losses, rounds, train_loss, BLUE, "train (mean over local epochs)", marker="o")
    draw_line(losses, rounds, test_loss, ORANGE, name_of_part, marker="s")
    if both:
        draw_line(losses, rounds, held_loss, ORANGE, PART_NAMES["holdout"], marker="D", linestyle=":")
    style_axes(losses, "Loss", "loss per image")
    drawn = [value for value in [*train_loss, *test_loss, *held_loss] if value is not None]
    if drawn:
        losses.set_ylim(0, 1.06 * max(drawn))
        losses.legend(frameon=False, loc="best")

    draw_line(scores, rounds, by_name["map50_voc10"], GREEN, "mAP (VOC 2010, IoU 0.5)", marker="o")
    draw_line(scores, rounds, recall, GREY, "recall (IoU 0.5)", marker="s", linestyle="--")
    style_axes(scores, f"{name_of_part.capitalize()} mAP and recall", "fraction")
    end_at_one(scores, [*by_name["map50_voc10"], *recall])

    for name, (label, color, linestyle, marker) in _MAPS.items():
        draw_line(maps, rounds, by_name[name], color, label, marker=marker, linestyle=linestyle)
    if both:
        label, color = f"{PART_NAMES['holdout']} {_MAPS[metric][0]}", _MAPS[metric][1]
        draw_line(maps, rounds, held, color, label, marker="*", linestyle=":")
    if any(value is not None for value in own_worst):
        label, color = _MAPS[metric][0], _MAPS[metric][1]
        if not any(item is not None and item.decides for item in own):  # else the line above is their mean
            draw_line(maps, rounds, own_mean, GREY, f"own models, {label}", marker="P", linestyle="-.")
        draw_line(maps, rounds, own_worst, GREY, "own models, worst client", marker="v", linestyle=":")
    style_axes(maps, f"{name_of_part.capitalize()} mAP by its rules", "fraction")
    end_at_one(maps, [value for values in (*by_name.values(), held, own_mean, own_worst) for value in values])

    deciding = held if both and decides == "holdout" else by_name[metric]
    present = [(value, -number) for number, value in zip(rounds, deciding, strict=True) if value is not None]
    if present:
        value, number = max(present)[0], -max(present)[1]
        color = _MAPS[metric][1]
        in_scores = metric == "map50_voc10" and deciding is not held
        for axes in (scores, maps) if in_scores else (maps,):
            _mark(axes, number, value, color)
        # Beside the title, where no line can cross it.
        panel = scores if in_scores else maps
        best = metric if decides == "test" else f"{PART_NAMES[decides]} {metric}"
        panel.set_title(f"best {best} {value:.3f}, round {number}", loc="right", color=color, fontsize=10)
    return figure


def _own(personal: Sequence[PersonalMetrics | None], metric: str) -> tuple[list[float | None], list[float | None]]:
    """Return the mean over the clients' own models and the worst client's figure, by round."""
    spreads = [None if item is None else item.figures.get(metric) for item in personal]
    mean = [None if spread is None else spread.mean for spread in spreads]
    return mean, [None if spread is None else spread.worst for spread in spreads]


def class_by_device_plot(class_counts: Mapping[str, Mapping[str, int | None]]) -> Figure:
    """Plot the training boxes of each class (rows) on each device (columns), with the counts and their sums.

    A dot stands for no box, a dash for a class that the device does not label (None).

    With hundreds of classes or devices, only some have a label, and only the shade shows the counts.
    """
    devices = list(class_counts)
    classes = sorted({name for counts in class_counts.values() for name in counts})
    table = np.array(
        [[class_counts[device].get(name) or 0 for device in devices] for name in classes], dtype=np.int64
    ).reshape(len(classes), len(devices))
    width, columns = table_room(len(devices), 0.52, 0.3)
    height, rows = table_room(len(classes), 0.42, 0.16)
    figure = new_figure(max(5.5, 2.6 + width), max(2.6, 1.6 + height))
    axes = figure.subplots()
    axes.set_title("Training boxes by class and device", loc="left", fontweight="bold", color=_INK)
    if not table.size:
        axes.set_axis_off()
        return figure
    largest = max(2, int(table.max()))
    shade = LogNorm(1, largest)  # counts span three orders of magnitude; a linear scale would show one cell
    axes.imshow(np.ma.masked_equal(table, 0), cmap="Blues", norm=shade, aspect="auto")
    for row, counts in enumerate(table if columns == rows == 1 else ()):
        for column, count in enumerate(counts):
            dark = count > 0 and shade(count) > 0.5
            unlabelled = class_counts[devices[column]].get(classes[row], 0) is None
            axes.text(
                column,
                row,
                "—" if unlabelled else f"{count:d}" if count else "·",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else _INK if count else "#9CA3AF",
            )
    x_labels = [f"{plot_label(name)}\n{sum_}" for name, sum_ in zip(devices, table.sum(0), strict=True)]
    y_labels = [f"{plot_label(name)}  {sum_}" for name, sum_ in zip(classes, table.sum(1), strict=True)]
    axes.set_xticks(range(0, len(devices), columns), x_labels[::columns])
    axes.set_yticks(range(0, len(classes), rows), y_labels[::rows])
    axes.set_xlabel("device, and its boxes in all")
    axes.set_ylabel("class, and its boxes in all")
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    if columns == rows == 1:
        axes.set_xticks(np.arange(len(devices) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    return figure


def client_losses_plot(records: Sequence[RoundRecord]) -> Figure:
    """Plot every client's train loss by round: the mean and range above, one row a client below.

    A cross marks a client that was asked and dropped. The cell of a client that was not asked is empty.
    """
    records = sorted((record for record in records if record.plan is not None), key=lambda record: record.round)
    clients = sorted(
        {client for record in records if record.plan for client in record.plan.cohort}
        | {update.client for record in records for update in record.updates},
        key=natural,
    )
    rounds = [record.round for record in records]
    table = np.full((len(clients), len(rounds)), np.nan)
    row = {client: number for number, client in enumerate(clients)}
    for column, record in enumerate(records):
        for update in record.updates:
            table[row[update.client], column] = update.train_loss

    height, every = table_room(max(4, len(clients)), 0.24, 0.16)
    figure = new_figure(max(6.5, min(14.0, 3.0 + 0.45 * len(rounds))), 3.4 + height)
    top, cells = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, height])
    style_axes(top, "Train loss of the clients", "loss per image")
    top.set_xlabel("")
    cells.set_xlabel("round")
    cells.set_ylabel("client")
    if not np.isfinite(table).any():
        cells.set_yticks([])
        return figure
    trained = np.isfinite(table).any(axis=0)
    x = np.array(rounds)[trained]
    low, high = np.nanmin(table[:, trained], axis=0), np.nanmax(table[:, trained], axis=0)
    top.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="least to greatest client")
    mean = [record.metrics.train_loss for record in records]
    draw_line(top, rounds, mean, BLUE, "mean, weighted by images", marker="o")
    top.set_ylim(bottom=0)

    edges = (rounds[0] - 0.5, rounds[-1] + 0.5)
    image = cells.imshow(
        table,
        cmap="viridis_r",
        norm=_shade(table[np.isfinite(table)]),
        aspect="auto",
        interpolation="nearest",
        extent=(*edges, len(clients) - 0.5, -0.5),
    )
    lost = [
        (record.round, row[failure.client]) for record in records for failure in record.dropped if failure.client in row
    ]
    handles, _ = top.get_legend_handles_labels()
    if lost:
        handles.append(
            cells.scatter(*zip(*lost, strict=True), marker="x", color=ORANGE, s=28, linewidths=1.6, label="dropped")
        )
    top.legend(handles=handles, frameon=False, loc="best")
    cells.set_yticks(range(0, len(clients), every), [plot_label(client) for client in clients[::every]], fontsize=8)
    cells.set_xlim(*edges)
    cells.xaxis.set_major_locator(MaxNLocator(integer=True))
    cells.tick_params(length=0)
    cells.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=cells, label="loss per image", pad=0.01, fraction=0.05)
    bar.outline.set_visible(False)
    shade = image.norm
    bar.set_ticks([float(shade.inverse(part)) for part in (0, 0.25, 0.5, 0.75, 1)])
    bar.ax.yaxis.set_major_formatter("{x:.3g}")
    bar.ax.yaxis.set_minor_locator(NullLocator())
    return figure


def table_room(count: int, size: float, smallest: float) -> tuple[float, int]:
    """Return the inches for ``count`` cells of ``size`` inches, and n if every n-th cell has room for a label.

    A label takes ``smallest`` inches. The inches are limited, because Agg draws at most 65,536 dots, and a picture that
    large takes gigabytes.
    """
    inches = min(count * size, _MOST_INCHES)
    return inches, max(1, math.ceil(smallest * count / inches)) if count else 1


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of these inches at 130 dots an inch. Constrained layout keeps labels from overlapping."""
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw_line(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[float | None],
    color: str,
    label: str,
    *,
    marker: str = "o",
    linestyle: str = "-",
) -> None:
    """Draw a line with gaps where a round has no figure. A line of many rounds has no markers."""
    shown = marker if len(x) <= 40 else ""
    heights = [np.nan if value is None else value for value in values]
    axes.plot(x, heights, linestyle, color=color, label=label, marker=shown, markersize=4, linewidth=1.8)


def style_axes(axes: Axes, title: str, label: str, *, x: str = "round") -> None:
    """Set titles and a light grid, and remove the box."""
    axes.set_title(title, loc="left", fontweight="bold", color=_INK)
    axes.set_xlabel(x)
    axes.set_ylabel(label)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9CA3AF")
    axes.tick_params(color="#9CA3AF", labelcolor=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _mark(axes: Axes, number: int, value: float, color: str) -> None:
    """Draw a star on the line."""
    axes.plot([number], [value], marker="*", markersize=15, color=color, markeredgecolor="white", zorder=5)


def _shade(losses: np.ndarray) -> Normalize:
    """Return a scale of colours: logarithmic if no loss is 0, so that round 1 does not take all the colours."""
    least, greatest = float(losses.min()), float(losses.max())
    if least > 0:
        return LogNorm(least, max(greatest, least * 1.01))
    return Normalize(least, max(greatest, least + 0.01))
