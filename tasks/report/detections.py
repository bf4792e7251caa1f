"""The analysis of models' detections in reports: tables, plots, and a section of a suite's report."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from tasks.analysis.analyse import DetectionAnalysis
from tasks.analysis.confusion import BACKGROUND, MISSED
from tasks.analysis.error_types import ERROR_TYPES
from tasks.plain_text import spreadsheet_cell
from tasks.report.drawn import image_bytes
from tasks.report.tables import Table, TableCell
from tasks.report.text import NONE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ERROR_HEAD = ("error", "count", "ap_gain")


def curves_csv(analysis: DetectionAnalysis) -> str:
    """Return the curves of precision over recall: a row for each right detection of each class, best first.

    At a wrong detection only the precision falls, so the rows at right ones have the whole area.
    """
    rows: list[Sequence[object]] = []
    for curve in analysis.curves:
        steps = np.flatnonzero(np.diff(curve.recall, prepend=0.0) > 0)
        rows += [
            (curve.name, float(curve.recall[at]), float(curve.precision[at]), round(float(curve.scores[at]), 6))
            for at in steps
        ]
    return _csv(("class", "recall", "precision", "score"), rows)


def confusion_csv(analysis: DetectionAnalysis) -> str:
    """Return the confusion matrix: a row for each class of objects and of detections, with their number."""
    confusion = analysis.confusion
    truths, found = [*confusion.classes, BACKGROUND], [*confusion.classes, MISSED]
    return _csv(
        ("object", "detected_as", "count", "score_threshold"),
        (
            (truth, name, int(confusion.counts[row, column]), round(confusion.threshold, 6))
            for row, truth in enumerate(truths)
            for column, name in enumerate(found)
            if (row, column) != (len(confusion.classes), len(confusion.classes))
        ),
    )


def errors_csv(analysis: DetectionAnalysis) -> str:
    """Return the types of errors, with their number and ΔAP; then all false positives and false negatives."""
    return _csv(_ERROR_HEAD, _error_rows(analysis))


def _error_rows(analysis: DetectionAnalysis) -> list[tuple[str, int, float | None]]:
    errors = analysis.errors
    rows: list[tuple[str, int, float | None]] = [(kind, errors.count(kind), errors.gain(kind)) for kind in ERROR_TYPES]
    return [
        *rows,
        ("false positives", errors.false_positives, errors.false_positive_gain),
        ("false negatives", errors.false_negatives, errors.false_negative_gain),
    ]


def analysis_plots(analysis: DetectionAnalysis, title: str = "") -> dict[str, Callable[[], Figure]]:
    """Return functions that draw the plots, by file name without suffix. title: of the model, above each."""
    from tasks.figures.detections import confusion_plot, curves_plot, errors_plot  # here: matplotlib takes a second

    return {
        "precision-recall": partial(curves_plot, analysis, title),
        "confusion": partial(confusion_plot, analysis, title),
        "errors": partial(errors_plot, analysis, title),
    }


def analysis_files(analysis: DetectionAnalysis, title: str = "") -> dict[str, Callable[[], bytes]]:
    """Return the function that makes each file, by name: plots as PNG and tables as CSV."""
    files: dict[str, Callable[[], bytes]] = {
        "precision-recall.csv": lambda: curves_csv(analysis).encode(),
        "confusion.csv": lambda: confusion_csv(analysis).encode(),
        "errors.csv": lambda: errors_csv(analysis).encode(),
    }
    return files | {f"{name}.png": partial(_png, cache(draw)) for name, draw in analysis_plots(analysis, title).items()}


@dataclass(frozen=True, eq=False)
class CellAnalysis:
    """The analysis of the last round of an experiment's run with ``seed``."""

    experiment: str
    seed: int
    round: int
    analysis: DetectionAnalysis

    _drawn: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)

    @property
    def title(self) -> str:
        return f"{self.experiment}, seed {self.seed}, round {self.round}"

    def png(self, name: str) -> bytes:
        """Return the plot ``name`` of :func:`analysis_plots` as PNG. It is drawn once, for the page and its file."""
        if name not in self._drawn:
            self._drawn[name] = _png(analysis_plots(self.analysis, self.title)[name])
        return self._drawn[name]


def errors_table(analyses: Sequence[CellAnalysis]) -> Table:
    """Return the table of each type's ΔAP and number by experiment; then of all false positives and negatives."""
    rows = []
    for item in analyses:
        errors = item.analysis.errors
        gains = [(errors.gain(kind), errors.count(kind)) for kind in ERROR_TYPES]
        gains += [
            (errors.false_positive_gain, errors.false_positives),
            (errors.false_negative_gain, errors.false_negatives),
        ]
        mean = errors.average_precision
        rows.append(
            [
                TableCell(item.experiment, f"seed {item.seed}", strong=True),
                TableCell(NONE if mean is None else f"{mean:.3f}"),
                *(TableCell(NONE if gain is None else f"{gain:.3f}", f"n = {count}") for gain, count in gains),
            ]
        )
    head = ["experiment", "AP50", *ERROR_TYPES, "false positives", "false negatives"]
    return Table("ΔAP by type of errors, at the last round", head, rows, cards=True)


def suite_errors_csv(analyses: Sequence[CellAnalysis]) -> str:
    """Return the rows of :func:`errors_csv` for each experiment, with its name, seed and round."""
    rows = [(item.experiment, item.seed, item.round, *row) for item in analyses for row in _error_rows(item.analysis)]
    return _csv(("experiment", "seed", "round", *_ERROR_HEAD), rows)


def suite_plots(analyses: Sequence[CellAnalysis]) -> dict[str, Callable[[], bytes]]:
    """Return functions that draw the plots of each experiment as PNG, by file name, as ``confusion-NAME.png``."""
    return {
        f"{name}-{item.experiment}.png": partial(item.png, name)
        for item in analyses
        for name in analysis_plots(item.analysis)
    }


def _png(draw: Callable[[], Figure]) -> bytes:
    return image_bytes(draw(), "png")


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return lines that end in ``\\n``. A missing figure is empty; a text that looks like a formula is escaped."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()
