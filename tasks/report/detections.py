"""The files of the analysis of a model's detections: three tables as CSV, and three plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from tasks.metrics.analysis import DetectionAnalysis
from tasks.metrics.confusion import BACKGROUND, MISSED
from tasks.metrics.errors import ERROR_TYPES
from tasks.plain_text import spreadsheet_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    """Return the types of errors, with their number and ΔAP; then false positives and false negatives.

    The number of the latter two is that of all wrong detections, and of all objects that none finds.
    """
    errors = analysis.errors
    rows: list[Sequence[object]] = [(kind, errors.count(kind), errors.gain(kind)) for kind in ERROR_TYPES]
    lost = int((errors.matches.counted & ~errors.matches.found).sum())
    rows += [
        ("false positives", int((errors.kinds >= 0).sum()), errors.false_positive_gain),
        ("false negatives", lost, errors.false_negative_gain),
    ]
    return _csv(("error", "count", "ap_gain"), rows)


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


def _png(draw: Callable[[], Figure]) -> bytes:
    buffer = io.BytesIO()
    draw().savefig(buffer, format="png")
    return buffer.getvalue()


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return lines that end in ``\\n``. A missing figure is empty; a text that looks like a formula is escaped."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()
