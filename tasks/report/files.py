"""The files of the report on a suite's result, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tasks.report.csv import rounds_csv
from tasks.report.detections import CellAnalysis, suite_errors_csv
from tasks.report.detections import suite_plots as analysed_plots
from tasks.report.drawn import DrawnOnce
from tasks.report.html import report_html
from tasks.report.latex import latex_tables
from tasks.spec.suite_records import SuiteResult
from tasks.suite.methods import Compared


def report_parts(
    result: SuiteResult,
    *,
    before: SuiteResult | None = None,
    notes: Sequence[str] = (),
    analyses: Sequence[CellAnalysis] = (),
    compared: Sequence[Compared] | None = None,
) -> dict[str, Callable[[], bytes]]:
    """Return the function that makes each file, by name, so that a caller can do without a file that fails.

    The files are ``report.html``, ``rounds.csv``, ``table.tex``, and each plot as PNG and SVG. ``before`` and ``notes``
    are for the page, as in :func:`tasks.report.html.report_html`. ``analyses`` of experiments' detections add plots as
    PNG and ``errors.csv``. compared: the methods, as in :func:`tasks.report.method_tables.methods_table`; left out,
    they are compared without detections.
    """
    from tasks.figures.suite import suite_plots  # here: matplotlib takes a second

    drawn = DrawnOnce()
    parts: dict[str, Callable[[], bytes]] = {
        "report.html": lambda: report_html(
            result, before=before, notes=notes, analyses=analyses, compared=compared, drawn=drawn
        ).encode(),
        "rounds.csv": lambda: rounds_csv(result).encode(),
        "table.tex": lambda: latex_tables(result, compared).encode(),
    }
    for name, draw in suite_plots(result).items():
        parts[f"{name}.png"] = partial(drawn.image, name, draw, "png")
        parts[f"{name}.svg"] = partial(drawn.image, name, draw, "svg")
    if analyses:
        parts["errors.csv"] = lambda: suite_errors_csv(analyses).encode()
    return parts | analysed_plots(analyses)
